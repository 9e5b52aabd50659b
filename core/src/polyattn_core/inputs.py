"""What a mechanism is given: checked, and brought into one layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import resolver
from .arrays import (
    Array,
    as_array,
    canonical,
    check_qkv,
    compute_dtype,
    dtype_name,
    lead_shape,
    split_heads,
)
from .call import Call
from .config import AttentionConfig
from .errors import ArgumentError, CapabilityError, MaskError, MissingInputError, ShapeError
from .masks import Causal, Dense, Mask, MaskShape
from .masks.program import FAR
from .parameters import as_seed
from .spec import MechanismSpec


class Inputs:
    """The part of a mechanism that looks at its inputs, and knows what it may be given."""

    def __init__(self, config: AttentionConfig, spec: MechanismSpec) -> None:
        self.config = config
        self.spec = spec
        self.capabilities = spec.capabilities
        self._side_names = frozenset(s.name for s in spec.capabilities.side_inputs)
        self._masks = frozenset(spec.capabilities.masks)
        if config.key_heads != config.heads and not spec.capabilities.grouped:
            raise self._lacks("fewer key heads than query heads", "grouped")
        self._key_heads = config.key_heads
        """Heads of the keys and values that are passed in."""

    @property
    def name(self) -> str:
        """`family/name` of the mechanism."""
        return self.spec.full_name

    def _lacks(self, what: str, capability: str = "", value: object = True) -> CapabilityError:
        found = resolver.alternatives(capability, value) if capability else ()
        return CapabilityError(self.name, what, found)

    def _split(self, query: Any, key: Any, value: Any) -> tuple[Array, Array, Array, bool]:
        query = as_array(query, "query")
        key = query if key is None else as_array(key, "key")
        value = key if value is None else as_array(value, "value")
        single = query.ndim == 1
        if single:
            query = query[None]
        for argument, array in (("query", query), ("key", key), ("value", value)):
            if array.ndim < 2:
                raise ShapeError(argument, array.shape, "at least 2 axes: (..., tokens, width)")
        config = self.config
        if query.shape[-1] != config.dim:
            raise ShapeError("query", query.shape, f"a last axis of dim={config.dim}")
        key_heads = self._key_heads
        width = config.head_dim * key_heads
        if key.shape[-1] != width:
            raise ShapeError("key", key.shape, f"a last axis of {width}")
        if config.heads == 1:
            return query[..., None, :, :], key[..., None, :, :], value[..., None, :, :], single
        return (
            split_heads(query, config.heads, "query"),
            split_heads(key, key_heads, "key"),
            split_heads(value, key_heads, "value"),
            single,
        )

    def _prepare(
        self,
        query: Any,
        key: Any,
        value: Any,
        mask: Any,
        bias: Any,
        training: bool,
        rng: Any,
        side: Mapping[str, Any],
        start: int = 0,
        total: int | None = None,
        *,
        narrow: bool = False,
    ) -> tuple[Call, tuple[int, ...], np.dtype[Any]]:
        query = as_array(query, "query")
        key = as_array(key, "key")
        value = as_array(value, "value")
        check_qkv(query, key, value)
        config = self.config
        if query.shape[-3] != config.heads or query.shape[-1] != config.head_dim:
            raise ShapeError(
                "query",
                query.shape,
                f"{config.heads} heads of size {config.head_dim}, as dim={config.dim} and "
                f"heads={config.heads} say",
            )
        if key.shape[-3] != self._key_heads:
            raise ShapeError(
                "key", key.shape, f"{self._key_heads} heads, as heads= and kv_heads= say"
            )
        dtype = query.dtype
        if dtype_name(dtype) not in self.capabilities.dtypes:
            raise self._lacks(dtype.name, "dtypes", dtype.name)
        if not self.capabilities.cross and key.shape[-2] != query.shape[-2]:
            raise self._lacks("another number of keys than of queries", "cross")
        lead = lead_shape(query, key, value)
        if 0 in lead:
            raise ShapeError("query, key, value", lead, "no empty leading axis")
        working = compute_dtype(dtype, "query")
        if narrow and dtype_name(dtype) == "bfloat16":
            working = dtype
        keys = key.shape[-2]
        if total is not None or type(start) is not int or start:
            start, keys = _place(start, total, keys)
        shape = MaskShape(lead, query.shape[-3], query.shape[-2], keys)
        call = Call(
            canonical(query, lead, working),
            canonical(key, lead, working),
            canonical(value, lead, working),
            shape,
            key_start=start,
        )
        call.mask = self.combined_mask(mask, shape)
        if bias is not None:
            call.bias = self._checked_bias(bias, shape, working)
        if not isinstance(training, bool | np.bool_):
            raise ArgumentError("training", training, "True or False")
        if training and getattr(self.config, "dropout", None):
            if rng is None:
                raise ArgumentError("rng", rng, "a seed or generator: dropout is on in training")
            call.seed = as_seed(rng)
        if side or self._side_names:
            call.side = self._checked_side(side)
        return call, lead, dtype

    def combined_mask(self, mask: Any, shape: MaskShape) -> Mask | None:
        """The mask of a call of this shape together with that of the configuration."""
        own = self._own_mask(shape)
        if mask is None:
            return own
        given = self._as_mask(mask)
        if not self._masks >= given.kinds:
            unknown = sorted(given.kinds - self._masks)[0]
            raise self._lacks(f"{unknown} masks", "masks", unknown)
        return given if own is None else own & given

    def _as_mask(self, mask: Any) -> Mask:
        if isinstance(mask, np.ndarray):
            return Dense(mask, argument="mask")
        if isinstance(mask, Mask):
            return mask
        raise MaskError(
            "mask",
            mask,
            "a mask of polyattn.masks, or a boolean array; numbers to be added "
            "to scores are passed as bias=",
        )

    def _own_mask(self, shape: MaskShape) -> Mask | None:
        """The mask that the configuration implies for a call of this shape."""
        if getattr(self.config, "causal", False):
            return Causal()
        return None

    def _checked_bias(self, bias: Any, shape: MaskShape, dtype: np.dtype[Any]) -> Array:
        if not self.capabilities.bias:
            raise self._lacks("an additive bias", "bias")
        array = as_array(bias, "bias")
        full = (*shape.lead, shape.heads, shape.queries, shape.keys)
        try:
            fits = np.broadcast_shapes(array.shape, full) == full
        except ValueError:
            fits = False
        if not fits:
            raise ShapeError("bias", array.shape, f"a shape that broadcasts to {full}")
        return array.astype(dtype, copy=False)

    def _checked_side(self, side: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in side:
            if name not in self._side_names:
                known = ", ".join(sorted(self._side_names)) or "none"
                raise ArgumentError(
                    name, "an argument", f"mask, bias, training, rng or its side inputs ({known})"
                )
        for declared in self.capabilities.side_inputs:
            if declared.required and side.get(declared.name) is None:
                raise MissingInputError(
                    self.name, declared.name, f"{declared.description}, {declared.shape}"
                )
        return side


def _place(start: object, total: object, keys: int) -> tuple[int, int]:
    """Position of the first of `keys` keys, and the number of keys in all."""
    numbers = (start,) if total is None else (start, total)
    if all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in numbers):
        first, *rest = (int(n) for n in numbers)  # type: ignore[call-overload]
        end = rest[0] if rest else first + keys
        if 0 <= first <= end - keys and end <= FAR:
            return first, end
    raise ArgumentError(
        "start, total", (start, total), f"whole numbers, 0 ≤ start and start + {keys} keys ≤ total"
    )
