"""Assertions whose messages say where, by how much, and what was permitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from polyattn_core.errors import PolyattnError

Array = npt.NDArray[Any]


class NotApplicable(Exception):
    """Raised by a check that finds nothing to check in this case; says why."""


def require(condition: object, message: str) -> None:
    """Fail with `message` unless `condition` holds."""
    # Not an assert statement: those of a module that pytest does not rewrite say nothing, and
    # vanish under `python -O`.
    if not condition:
        raise AssertionError(message)


def assert_close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    """|actual − expected| ≤ tolerance · (1 + |expected|); infinities must be the same."""
    found = np.asarray(actual).astype(np.float64)
    wanted = np.asarray(expected).astype(np.float64)
    require(found.shape == wanted.shape, f"{what}: shape {found.shape}, expected {wanted.shape}")
    with np.errstate(invalid="ignore"):
        error = np.abs(found - wanted)
        good = (error <= tolerance * (1 + np.abs(wanted))) | (found == wanted)
    if good.all():
        return
    wrong = np.argwhere(~good)
    # The worst is the most telling; a NaN is worse than any number.
    at = tuple(wrong[np.argmax(np.nan_to_num(error[~good], nan=np.inf))])
    place = ", ".join(map(str, at))
    raise AssertionError(
        f"{what}: {len(wrong)} of {found.size} numbers are wrong; at [{place}] got "
        f"{found[at]:.9g}, expected {wanted[at]:.9g} (tolerance {tolerance:g})"
    )


def assert_same(actual: Any, expected: Any, what: str) -> None:
    """Equal bit for bit, or NaN in the same places."""
    first, second = np.asarray(actual), np.asarray(expected)
    require(first.dtype == second.dtype, f"{what}: dtype {first.dtype} and {second.dtype}")
    require(first.shape == second.shape, f"{what}: shape {first.shape} and {second.shape}")
    same = (first == second) | ((first != first) & (second != second))
    require(same.all(), f"{what}: {int((~same).sum())} of {same.size} numbers are not the same")


def assert_refused(
    action: Callable[[], object],
    what: str,
    kinds: type[PolyattnError] | tuple[type[PolyattnError], ...],
    mentions: tuple[str, ...] = (),
) -> PolyattnError:
    """`action` raises an error of one of these kinds, whose message mentions all of `mentions`."""
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    names = " or ".join(kind.__name__ for kind in wanted)
    try:
        action()
    except wanted as error:
        message = str(error)
        for word in mentions:
            require(word in message, f"{what}: the message does not mention {word!r}: {message}")
        accepted = getattr(error, "accepted", None)
        require(accepted != "", f"{what}: the error does not say what is accepted: {message}")
        return error
    except Exception as error:
        raise AssertionError(
            f"{what}: expected {names}, got {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"{what}: expected {names}, but it was accepted")
