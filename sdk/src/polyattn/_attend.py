"""Attention in one call: the mechanism is made, and kept, behind the scenes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import polyattn_registry as registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from polyattn_core.spec import EntrySpec

_KEPT = 64

_lock = threading.Lock()
_made: OrderedDict[Hashable, tuple[EntrySpec, Any]] = OrderedDict()


def attend(
    query: npt.ArrayLike,
    key: npt.ArrayLike | None,
    value: npt.ArrayLike | None,
    mechanism: str,
    *,
    mask: Any = None,
    bias: npt.ArrayLike | None = None,
    training: bool = False,
    rng: int | np.random.Generator | None = None,
    **options: Any,
) -> npt.NDArray[Any]:
    """Attend once with the mechanism of that name.

    Equal to ``create(mechanism, dim=query.shape[-1], **options)(query, key, value, mask=mask, …)``.
    The last few mechanisms are kept, so that calling again with the same options is cheap. For
    learned parameters, gradients and statistics, `create` a mechanism.

    Parameters
    ----------
    query, key, value
        (…, queries, dim), (…, keys, dim), (…, keys, width); leading axes broadcast. A query (dim,)
        with keys (keys, dim) and values (keys, width) is the single-query form of vector search.
        `None` stands for the argument before it.
    mechanism
        ``[family/]name[@preset]``, as `create` takes it.
    mask
        A mask of `polyattn.masks`, or a boolean array, True where visible.
    bias
        Added to the scores; broadcasts to (…, heads, queries, keys).
    training, rng
        Dropout acts only in training, and draws from this seed or generator.
    **options
        Side inputs that the mechanism declares; all others are options of its configuration, such
        as ``heads=4`` or ``causal=True``. `dim` is taken from the query.

    Returns
    -------
    (…, queries, width), or (width,) for a single query, in the dtype of the query.

    Raises
    ------
    UnknownNameError, NotInstalledError, PluginError
        Where the name leads nowhere, as `create` raises them.
    ConfigError
        Where an option is unknown or out of bounds.
    ShapeError, DTypeError, MaskError
        Where an array or mask does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import polyattn as pa
    >>> tokens = np.random.default_rng(0).standard_normal((2, 5, 16))
    >>> pa.attend(tokens, tokens, tokens, "flash", heads=4, causal=True).shape
    (2, 5, 16)
    >>> keys, labels = np.eye(3), np.array([[10.0], [20.0], [30.0]])
    >>> pa.attend([0.0, 9.0, 0.0], keys, labels, "flash", scale=5.0).round(3)
    array([20.])
    """
    from polyattn_core.arrays import as_array
    from polyattn_core.errors import ShapeError
    from polyattn_core.spec import MechanismSpec

    array = as_array(query, "query")
    if array.ndim == 0:
        raise ShapeError("query", array.shape, "at least 1 axis: (dim,) or (..., tokens, dim)")
    spec = registry.spec(mechanism)
    assert isinstance(spec, MechanismSpec)  # the kind of entry that was asked for
    declared = [side.name for side in spec.capabilities.side_inputs]
    side = {name: options.pop(name) for name in declared if name in options}
    options.setdefault("dim", array.shape[-1])
    chosen = _mechanism(mechanism, spec, options)
    found: npt.NDArray[Any] = chosen(
        array, key, value, mask=mask, bias=bias, training=training, rng=rng, **side
    )
    return found


def refresh() -> None:
    """Discover plugins again, so that newly installed ones appear.

    What the running program registered and preferred stays. A manifest that was imported before is
    not imported again: for an upgraded plugin, start a new process.
    """
    with _lock:
        _made.clear()
    registry.refresh()


def _mechanism(name: str, spec: EntrySpec, options: Mapping[str, Any]) -> Any:
    key = _key(name, options)
    with _lock:
        before, kept = _made.get(key, (None, None))
        # A name may have come to mean something else: register, its undo and prefer do that.
        if before is spec:
            _made.move_to_end(key)
            return kept
    made = registry.create(name, **options)
    # What has a state to reset must begin each call afresh, so it is not kept.
    if key is not None and not hasattr(made, "reset"):
        with _lock:
            _made[key] = (spec, made)
            while len(_made) > _KEPT:
                _made.popitem(last=False)
    return made


def _key(name: str, options: Mapping[str, Any]) -> Hashable:
    """Tells option sets apart, by type too, as 1 == True; None where one cannot be hashed."""
    try:
        return name, frozenset((option, type(value), value) for option, value in options.items())
    except TypeError:
        return None
