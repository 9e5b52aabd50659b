"""Launches scans: token by token, or in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.simd import threads

from .chunks import Scan, ScanGradients
from .problem import Problem
from .steps import lanes, step_kernel

Array = npt.NDArray[Any]


def forward(problem: Problem) -> tuple[Array, Array]:
    """The output (batch, heads, group, tokens, value size) and the state at the end.

    Token by token, if heads and coordinates of the values keep all threads busy; otherwise in
    chunks, which are parallel along the tokens too.
    """
    batch, heads = problem.units
    workers = problem.workers()
    if workers > 1 and batch * heads * _vectors(problem) < workers:
        scan = Scan(problem)
        if scan.finite:
            return scan.outputs(), scan.states[:, :, -1]
        # In a product of matrices what is not finite reaches tokens before it.
    return step_by_step(problem)


def step_by_step(problem: Problem) -> tuple[Array, Array]:
    """Like :func:`forward`, always token by token."""
    dtype = problem.key.dtype
    out, nothing = problem.output(), np.zeros((0, 0, 0, 0), dtype)
    batch, heads = problem.units
    size, width = problem.key.shape[-1], problem.value.shape[-1]
    across, workers = lanes(dtype.name), problem.workers()
    vectors = _vectors(problem)
    state = np.zeros((batch, heads, size, vectors * across), dtype)
    if problem.state is not None:
        state[..., :width] = problem.state
    # Whole states if there are enough of them: their columns share keys and queries.
    tasks = min(vectors, -(-2 * workers // (batch * heads))) if workers > 1 else 1
    share = -(-vectors // tasks)
    arguments = (
        problem.query, problem.key, problem.value,
        nothing if problem.logarithms is None else problem.logarithms,
        nothing if problem.beta is None else problem.beta, state, out, share,
    )  # fmt: skip
    kernel = step_kernel(dtype.name).compile()
    threads.run(kernel, arguments, batch * heads * -(-vectors // share), workers)
    return out, state[..., :width]


def _vectors(problem: Problem) -> int:
    """Of the coordinates of the values: what can be shared out."""
    width: int = problem.value.shape[-1]
    return -(-width // lanes(problem.key.dtype.name))


__all__ = ["Problem", "Scan", "ScanGradients", "forward", "step_by_step"]
