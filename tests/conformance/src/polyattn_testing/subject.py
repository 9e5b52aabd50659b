"""A mechanism under test, and example calls of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

import polyattn_registry
from polyattn_core.arrays import named_dtype
from polyattn_core.errors import ParameterError
from polyattn_core.masks import Causal, Dense, Mask, MaskShape
from polyattn_core.mechanism import Gradients, Mechanism, Observation, Pullback
from polyattn_core.spec import Capabilities, ConformanceCase, MechanismSpec, resolve

from .sizes import PLAIN, Sizes

Array = npt.NDArray[Any]

TOLERANCE = {"float64": 1e-9, "float32": 5e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Of outputs against the reference in float64; relative, and absolute below 1."""
STEP = {"float64": 1e-6, "float32": 1e-2}
"""Of finite differences."""


@dataclass(frozen=True)
class Subject:
    """A mechanism, and the case in which it is checked."""

    spec: MechanismSpec
    case: ConformanceCase
    registry: polyattn_registry.Registry = field(default=polyattn_registry.default)

    @property
    def name(self) -> str:
        """`family/name`."""
        return self.spec.full_name

    @property
    def capabilities(self) -> Capabilities:
        """What the mechanism declares."""
        return self.spec.capabilities

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes it declares, the most precise first."""
        return tuple(name for name in TOLERANCE if name in self.capabilities.dtypes)

    @property
    def precise(self) -> str:
        """The most precise dtype that it computes in."""
        return self.dtypes[0]

    def tolerance(self, dtype: str | None = None) -> float:
        """How far a result in this dtype may be from the reference."""
        dtype = dtype or self.precise
        own = self.case.tolerance
        if own is None:
            return TOLERANCE[dtype]
        # The case speaks of the most precise dtype; others are not expected to do better.
        return own if dtype == self.precise else max(own, TOLERANCE[dtype])

    @property
    def gradient_tolerance(self) -> float:
        """How far a gradient in the most precise dtype may be from finite differences."""
        return max(1e-5 if self.precise == "float64" else 2e-2, self.tolerance())

    def fit(self, sizes: Sizes) -> Sizes:
        """The nearest sizes that the mechanism accepts: its capabilities, options of the case."""
        pinned, can = self.case.options, self.capabilities
        heads = int(pinned.get("heads", sizes.heads))
        size = sizes.size
        if "dim" in pinned:
            if "heads" not in pinned:
                heads = math.gcd(heads, int(pinned["dim"]))
            size = int(pinned["dim"]) // heads
        key_heads = sizes.key_heads
        if key_heads == sizes.heads or not can.grouped:
            key_heads = heads
        elif heads % key_heads:
            key_heads = 1
        key_heads = int(pinned.get("kv_heads") or key_heads)
        return replace(
            sizes,
            keys=sizes.keys if can.cross else sizes.queries,
            size=size,
            value_size=sizes.value_size if can.value_size else size,
            heads=heads,
            key_heads=key_heads,
        )

    def create(self, sizes: Sizes = PLAIN, **options: Any) -> Mechanism:
        """The mechanism for these sizes, its learned arrays a little off their first values.

        Those are often all 0 or 1, with which many errors do not show.
        """
        sizes = self.fit(sizes)
        chosen: dict[str, Any] = {"dim": sizes.heads * sizes.size, "heads": sizes.heads}
        if sizes.key_heads != sizes.heads:
            chosen["kv_heads"] = sizes.key_heads
        mechanism: Mechanism = self.registry.create(
            self.name, **{**chosen, **self.case.options, **options}
        )
        rng = np.random.default_rng(17)
        moved = {
            name: array + 0.1 * rng.standard_normal(array.shape)
            for name, array in mechanism.parameters.items()
        }
        try:
            mechanism.parameters.update(moved)
        except ParameterError:
            # Not every mechanism has room around its initial parameters.
            return mechanism
        return mechanism

    def example(
        self, sizes: Sizes = PLAIN, dtype: str | None = None, seed: int = 0, **options: Any
    ) -> Example:
        """A call with normally distributed inputs; `options` are those of `create`."""
        sizes = self.fit(sizes)
        mechanism = self.create(sizes, **options)
        # Some mechanisms take another number of heads than their configuration says.
        key_heads = getattr(mechanism, "_key_heads", sizes.key_heads)
        sizes = replace(sizes, key_heads=key_heads)
        rng = np.random.default_rng(seed)
        kind = named_dtype(dtype or self.precise)

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape).astype(kind)

        query = normal(*sizes.query_lead, sizes.heads, sizes.queries, sizes.size)
        key = normal(*sizes.key_lead, key_heads, sizes.keys, sizes.size)
        value = normal(*sizes.value_lead, key_heads, sizes.keys, sizes.value_size)
        side: Mapping[str, Any] = {}
        if self.case.inputs:
            side = resolve(self.case.inputs)(
                rng, sizes.lead, sizes.heads, sizes.queries, sizes.keys, sizes.heads * sizes.size
            )
        return Example(self, mechanism, sizes, query, key, value, side)


@dataclass(frozen=True)
class Example:
    """A mechanism with inputs that fit it."""

    subject: Subject
    mechanism: Mechanism
    sizes: Sizes
    query: Array
    key: Array
    value: Array
    side: Mapping[str, Any]

    @property
    def dtype(self) -> str:
        """Of the inputs."""
        return str(self.query.dtype)

    @property
    def tolerance(self) -> float:
        """Of outputs in this dtype."""
        return self.subject.tolerance(self.dtype)

    @property
    def inputs(self) -> dict[str, Array]:
        """Query, key and value."""
        return {"query": self.query, "key": self.key, "value": self.value}

    @property
    def shape(self) -> MaskShape:
        """What masks are lowered for."""
        sizes = self.sizes
        return MaskShape(sizes.lead, sizes.heads, sizes.queries, sizes.keys)

    def replace(self, **changes: Any) -> Example:
        """The same with other inputs, or another mechanism."""
        return replace(self, **changes)

    def attend(self, **options: Any) -> Array:
        """The output."""
        return self.mechanism.attend(self.query, self.key, self.value, **self.side, **options)

    def vjp(self, **options: Any) -> tuple[Array, Pullback]:
        """The output and the pullback."""
        return self.mechanism.attend_vjp(self.query, self.key, self.value, **self.side, **options)

    def gradients(self, incoming: Array, **options: Any) -> Gradients:
        """The gradients for one incoming gradient."""
        return self.vjp(**options)[1](incoming)

    def observe(self, *statistics: str, **options: Any) -> Observation:
        """The output and statistics."""
        return self.mechanism.observe(
            self.query, self.key, self.value, *statistics, **self.side, **options
        )

    def own_mask(self) -> Mask | None:
        """The mask that the configuration implies."""
        combined = getattr(self.mechanism, "combined_mask", None)
        if combined is not None:
            found: Mask | None = combined(None, self.shape)
            return found
        return Causal() if getattr(self.mechanism.config, "causal", False) else None

    def visible(self, mask: Mask | Array | None = None) -> Array:
        """Who sees whom, (batch, heads, queries, keys): by this mask and by the configuration."""
        shape = self.shape
        seen = np.ones((shape.batch, shape.heads, shape.queries, shape.keys), bool)
        # Put together here, so that a mechanism which drops one of them does not go unnoticed.
        for part in (mask, self.own_mask()):
            if part is not None:
                seen &= (Dense(part) if isinstance(part, np.ndarray) else part).dense(shape)
        return seen

    def visible_by_lead(self, mask: Mask | Array | None = None) -> Array:
        """`visible` with the leading axes of the output."""
        seen = self.visible(mask)
        return seen.reshape((*self.shape.lead, *seen.shape[1:]))

    def expected(self, mask: Mask | Array | None = None, bias: Array | None = None) -> Array:
        """What the reference computes, in float64."""
        shape = self.shape

        def flat(array: Array) -> Array:
            full = np.broadcast_to(array.astype(np.float64), shape.lead + array.shape[-3:])
            return full.reshape((shape.batch, *array.shape[-3:]))

        full_bias = None
        if bias is not None:
            size = (*shape.lead, shape.heads, shape.queries, shape.keys)
            full_bias = flat(np.broadcast_to(bias, size))
        masked = mask is not None or self.own_mask() is not None
        parameters = {
            name: np.asarray(array).astype(np.float64)
            for name, array in self.mechanism.parameters.items()
        }
        reference = resolve(self.subject.spec.reference)
        with np.errstate(all="ignore"):
            output = reference(
                flat(self.query),
                flat(self.key),
                flat(self.value),
                mask=self.visible(mask) if masked else None,
                bias=full_bias,
                config=self.mechanism.config,
                parameters=parameters,
                **self.side,
            )
        result = np.asarray(output)
        return result.reshape((*shape.lead, *result.shape[1:]))

    def bias(self, *axes: str) -> Array:
        """A bias that depends on these of "lead", "heads", "queries", "keys"."""
        shape = self.shape
        lead = shape.lead if "lead" in axes else (1,) * len(shape.lead)
        sizes = {"heads": shape.heads, "queries": shape.queries, "keys": shape.keys}
        tail = tuple(size if axis in axes else 1 for axis, size in sizes.items())
        rng = np.random.default_rng(23)
        return rng.standard_normal((*lead, *tail)).astype(self.query.dtype)

    def direction(self, seed: int = 0) -> Array:
        """An incoming gradient for the output."""
        rng = np.random.default_rng(1_000 + seed)
        sizes = self.sizes
        shape = (*sizes.lead, sizes.heads, sizes.queries, sizes.value_size)
        return rng.standard_normal(shape).astype(self.query.dtype)
