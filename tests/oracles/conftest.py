"""What tests against PyTorch share: arrays there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tensor() -> Callable[..., Any]:
    """NumPy array → tensor of the same dtype, with a gradient where asked for."""
    torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")

    def convert(array: Any, *, gradient: bool = False) -> Any:
        array = np.ascontiguousarray(array)
        if array.dtype.name == "bfloat16":
            # NumPy and PyTorch have no dtype for it in common.
            found = torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        else:
            found = torch.from_numpy(array.copy())
        return found.requires_grad_(gradient)

    return convert


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """Assert that an array is close to a tensor."""

    def check(ours: Any, theirs: Any, tolerance: float, what: str) -> None:
        theirs = theirs.detach().double().numpy()
        ours = np.asarray(ours).astype(np.float64)
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=what)

    return check
