"""Which mechanism for this data: the advice of the geometry report, and its command and page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polyattn_registry as registry
from polyattn_core.errors import NotInstalledError, UnknownNameError

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._live import live

__all__ = ["live", "recommend", "report"]


def recommend(
    query: npt.ArrayLike, key: npt.ArrayLike | None = None, value: npt.ArrayLike | None = None
) -> Any:
    """Pick a mechanism for some data, and say why.

    Parameters
    ----------
    query, key, value
        (…, tokens, size); keys default to the queries, values to the keys.

    Returns
    -------
    A choice: `mechanism` is a name for `create`, `reasons` are in plain words, `report` has the
    metrics, and ``create(dim=…)`` builds it.

    Raises
    ------
    NotInstalledError
        Where polyattn-report is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import polyattn as pa
    >>> choice = pa.recommend(np.random.default_rng(0).standard_normal((200, 16)))
    >>> choice.create(dim=16).name == pa.spec(choice.mechanism).full_name
    True
    """
    return _entry("recommend")(query, key, value)


def report(
    query: npt.ArrayLike, key: npt.ArrayLike | None = None, value: npt.ArrayLike | None = None
) -> Any:
    """The geometry report on some data: metrics, health, recommendation, reasons."""
    return _entry("geometry")(query, key, value)


def _entry(name: str) -> Any:
    try:
        return registry.resolve(f"report/{name}", "report")
    except UnknownNameError:
        raise NotInstalledError("report", name, "polyattn-report") from None


def __getattr__(name: str) -> Any:
    # The command line imports this package for `--help`.
    if name != "live":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ._live import live

    return live
