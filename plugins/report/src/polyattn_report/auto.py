"""The mechanism that is chosen by the data of its first call."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyattn_core import resolver
from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError
from polyattn_core.mechanism import Call, Mechanism, Pullback
from polyattn_core.spec import MechanismSpec

from .choice import Choice, choose
from .config import AutoConfig, ReportConfig
from .report import ReportBuilder


class Auto(Mechanism):
    """Looks at the queries, keys and values of its first call, and becomes what suits them.

    The geometry report of that call picks among the mechanisms that are installed; :attr:`choice`
    says which and why. Later calls use the same one, until :meth:`reset`. A choice made elsewhere
    can be set with :meth:`settle`.

    Time and memory are those of the mechanism that is chosen; the first call adds the report.
    Choosing is not thread-safe: make the first call before sharing an instance.

    Raises
    ------
    ArgumentError
        By :attr:`choice` before the first call.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> auto = pa.create("auto", dim=8, heads=2)
    >>> out = auto(np.random.default_rng(0).standard_normal((50, 8)))
    >>> auto.choice.mechanism  # in few dimensions neighbours tell more than dot products
    'gaussian'
    """

    config: AutoConfig

    def __init__(self, config: AutoConfig, *, spec: MechanismSpec) -> None:
        super().__init__(config, spec=spec)
        self._choice: Choice | None = None
        self._inner: Any = None

    @property
    def choice(self) -> Choice:
        """What was chosen, with the report that says why."""
        if self._choice is None:
            raise ArgumentError("choice", "none yet", "a first call, which chooses by its data")
        return self._choice

    def settle(self, choice: Choice) -> None:
        """Take a choice that was made elsewhere, with `recommend` say."""
        config = self.config
        options = {
            "dim": config.dim, "heads": config.heads, "kv_heads": config.kv_heads,
            "threads": config.threads, "causal": config.causal,
        }  # fmt: skip
        self._inner = resolver.current().create(choice.mechanism, **options)
        self._choice = choice

    def reset(self) -> None:
        """Forget what was chosen: the next call chooses anew."""
        self._choice = self._inner = None

    def _forward(self, call: Call) -> Array:
        out: Array = self._settled(call)._forward(call)
        return out

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        found: tuple[Array, Pullback] = self._settled(call)._vjp(call)
        return found

    def _settled(self, call: Call) -> Any:
        if self._inner is None:
            limits = ReportConfig(sample=self.config.sample, seed=self.config.seed)
            query, (key, value) = _finite(call.query), _finite(call.key, call.value)
            report = ReportBuilder(limits).analyze(query, key, value).build()
            self.settle(choose(report, self.config.candidates))
        return self._inner


def _finite(*arrays: Array) -> Any:
    """The tokens that are finite in all of them: what is hidden may hold anything."""
    shown = np.ones(arrays[0].shape[-2], bool)
    for array in arrays:
        shown &= np.isfinite(array).all(axis=(0, 1, 3))
    if shown.all() or not shown.any():
        return arrays if len(arrays) > 1 else arrays[0]
    kept = tuple(array[..., shown, :] for array in arrays)
    return kept if len(kept) > 1 else kept[0]
