"""The protocol of an attention mechanism, and the base class that does its house-keeping.

A mechanism is called at one of two levels:

* model level, ``mechanism(query, key, value)`` with arrays (…, tokens, dim): heads are split,
  attended and merged;
* head level, ``mechanism.attend(query, key, value)`` with arrays (…, heads, tokens, head size).

Both have a differentiated form, `vjp` and `attend_vjp`, that returns the output and a pullback.
A subclass implements :meth:`Mechanism._forward` on arrays of one canonical layout, and what else
its capabilities declare.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from . import diagnostics, kernel_events
from .arrays import (
    Array,
    as_array,
    canonical,
    merge_heads,
    split_heads,
    unbroadcast,
)
from .call import Call, Gradients, Observation, Pullback
from .config import AttentionConfig
from .errors import (
    ArgumentError,
    ConfigError,
    ShapeError,
)
from .inputs import Inputs
from .parameters import Parameters
from .partial import PartialState
from .spec import STATISTICS, MechanismSpec

if TYPE_CHECKING:
    from .cached import CachedCall
    from .caches import Cache


__all__ = ["Attention", "Call", "Gradients", "Mechanism", "Observation", "Pullback"]


@runtime_checkable
class Attention(Protocol):
    """What users may rely on. :class:`Mechanism` provides it; plugins may provide it otherwise."""

    @property
    def name(self) -> str: ...
    def __call__(self, query: Any, key: Any = None, value: Any = None, **options: Any) -> Array: ...
    def attend(self, query: Any, key: Any, value: Any, **options: Any) -> Array: ...


kernel_events.connect()


class Mechanism(Inputs, ABC):
    """Base class of attention mechanisms.

    Parameters
    ----------
    config
        A validated instance of the mechanism's schema.
    spec
        The spec it was created from; sets its name and capabilities.
    """

    def __init__(self, config: AttentionConfig, *, spec: MechanismSpec) -> None:
        super().__init__(config, spec)
        if getattr(config, "reproducible", False) and not self._by_row():
            raise ConfigError(
                "reproducible", True, f"False: {spec.name} does not compute row by row"
            )
        self._parameters: Parameters | None = None

    # ---- what subclasses implement ----------------------------------------------------------

    @abstractmethod
    def _forward(self, call: Call) -> Array:
        """The output (batch, heads, queries, value size)."""

    def _by_row(self) -> bool:
        """Can `reproducible` be promised: does each row go the same way in every call?"""
        return False

    @property
    def _narrow(self) -> bool:
        """Does `_forward` take bfloat16 as it is, where there is no bias?"""
        return False

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        """The output and a pullback of canonical gradients. Where `gradient` is declared."""
        raise self._lacks("gradients")

    def _observe(self, call: Call, wanted: frozenset[str]) -> tuple[Array, dict[str, Array]]:
        """The output and canonical statistics. Where `statistics` are declared."""
        raise self._lacks("statistics")

    def _partial(self, call: Call) -> PartialState:
        """A mergeable state over some of the keys. Where `partial` is declared."""
        raise self._lacks("partial results")

    def _cached(self, call: CachedCall) -> PartialState:
        """A mergeable state over part of a cache. Where `partial` is declared."""
        from .cached import widened

        return widened(self, call, whole=False)

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        """Freshly initialised learned arrays."""
        return {}

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """No more threads than `threads=` says, and no warnings.

        What is hidden may hold anything, and what is not finite shows in the output.
        """
        with np.errstate(all="ignore"):
            if self.config.threads is None:
                yield
                return
            from .simd import threads

            with threads.limited(self.config.threads):
                yield

    # ---- head level -------------------------------------------------------------------------

    def attend(
        self,
        query: Any,
        key: Any,
        value: Any,
        *,
        mask: Any = None,
        bias: Any = None,
        training: bool = False,
        rng: Any = None,
        **side: Any,
    ) -> Array:
        """Attend, head by head.

        Parameters
        ----------
        query, key, value
            (…, heads, queries, size), (…, key heads, keys, size), (…, key heads, keys, value
            size). Leading axes broadcast; key heads divide heads.
        mask
            A mask of :mod:`polyattn_core.masks`, or a boolean array, True where visible.
        bias
            Added to the scores; broadcasts to (…, heads, queries, keys).
        training
            Dropout acts only then.
        rng
            Seed or generator of dropout.
        **side
            Side inputs that the mechanism declares.

        Returns
        -------
        (…, heads, queries, value size) in the dtype of the query; 0 where nothing is visible.
        """
        if diagnostics.bus.wanted(diagnostics.AttentionComputed):
            return self._attend_measured(query, key, value, mask, bias, training, rng, side)
        if mask is None and bias is None and training is False and not side:
            output = self._attend_again(query, key, value)
            if output is not None:
                return output
        narrow = self._narrow and bias is None
        call, lead, dtype = self._prepare(
            query, key, value, mask, bias, training, rng, side, narrow=narrow
        )
        with self._computing():
            return _restore(self._forward(call), lead, dtype)

    def attend_vjp(
        self,
        query: Any,
        key: Any,
        value: Any,
        *,
        mask: Any = None,
        bias: Any = None,
        training: bool = False,
        rng: Any = None,
        **side: Any,
    ) -> tuple[Array, Pullback]:
        """`attend`, and a function from the gradient by the output to gradients by the inputs."""
        if not self.capabilities.gradient:
            raise self._lacks("gradients", "gradient")
        if isinstance(bias, np.ndarray) and 0 in bias.strides:
            # What repeats itself in memory still has a gradient for each of its elements.
            bias = bias.copy()
        call, lead, dtype = self._prepare(query, key, value, mask, bias, training, rng, side)
        inputs = [np.asarray(x) for x in (query, key, value)]
        bias_array = None if bias is None else np.asarray(bias)
        with self._computing():
            canonical_output, pull = self._vjp(call)
        output = _restore(canonical_output, lead, dtype)

        def pullback(gradient: Any) -> Gradients:
            incoming = as_array(gradient, "gradient")
            if incoming.shape != output.shape:
                raise ShapeError("gradient", incoming.shape, f"the output's shape {output.shape}")
            with self._computing():
                found = pull(canonical(incoming, lead, call.dtype))
            d_query, d_key, d_value = (
                _like(_restore(g, lead, g.dtype), x)
                for g, x in zip((found.query, found.key, found.value), inputs, strict=True)
            )
            if bias_array is not None and found.bias is not None:
                found.bias = found.bias.astype(bias_array.dtype).reshape(bias_array.shape)
            return Gradients(d_query, d_key, d_value, found.bias, found.parameters, found.side)

        return output, pullback

    def observe(
        self,
        query: Any,
        key: Any,
        value: Any,
        *statistics: str,
        mask: Any = None,
        bias: Any = None,
        top: int = 8,
        **side: Any,
    ) -> Observation:
        """`attend`, with statistics of the weights.

        Of `weights` (…, heads, queries, keys), which is the only one of that size; `log_sum_exp`
        and `entropy` in nats (…, heads, queries); `column_mass` (…, heads, keys), the sum of the
        weights that each key received; `top_weights` (…, heads, queries, top), the largest weights
        of each row in descending order, with their keys as `top_keys`: of equal weights the first
        key comes first, and where fewer than `top` keys have a weight above 0, the rest is weight 0
        of key −1.
        """
        for name in statistics:
            if name not in self.capabilities.statistics:
                if name in STATISTICS:
                    raise self._lacks(f"the statistic {name!r}", "statistics", name)
                known = ", ".join(self.capabilities.statistics) or "none for this mechanism"
                raise ArgumentError("statistics", name, known)
        whole = isinstance(top, int | np.integer) and not isinstance(top, bool)
        if not whole or not 1 <= top <= _MOST_TOP:
            raise ArgumentError("top", top, f"a whole number from 1 to {_MOST_TOP}")
        call, lead, dtype = self._prepare(query, key, value, mask, bias, False, None, side)
        call.top = int(top)
        with self._computing():
            output, found = self._observe(call, frozenset(statistics))
        restored = {name: _restore(array, lead, array.dtype) for name, array in found.items()}
        return Observation(_restore(output, lead, dtype), **restored)

    def attend_partial(
        self,
        query: Any,
        key: Any,
        value: Any,
        *,
        start: int = 0,
        total: int | None = None,
        mask: Any = None,
        **side: Any,
    ) -> PartialState:
        """Attend to some of the keys: those at positions `start` … of `total` in all.

        The states of disjoint parts merge in any order: ``a.merge(b).finish()``.
        """
        if not self.capabilities.partial:
            raise self._lacks("partial results", "partial")
        call, lead, dtype = self._prepare(
            query, key, value, mask, None, False, None, side, start, total
        )
        with self._computing():
            state = self._partial(call)
        return PartialState(
            _restore(state.output, lead, state.output.dtype),
            _restore(state.log_sum_exp, lead, state.log_sum_exp.dtype),
            state.sink,
            dtype,
        )

    def attend_cached(
        self,
        query: Any,
        *caches: Cache,
        sequences: Any = None,
        mask: Any = None,
        bias: Any = None,
    ) -> Array:
        """Attend to what is in a cache: the queries are those of the last tokens appended to it.

        Parameters
        ----------
        query
            (sequences, heads, queries, size); the first axis may be missing for one sequence, or be
            several with as many elements.
        *caches
            A :class:`~polyattn_core.caches.Cache`; or several whose tokens follow each other, each
            with the `start=` at which the one before ends. One with a single sequence that is not
            the last is the common beginning of all.
        sequences
            Sequences of the last cache that the queries belong to, in their order; all by default.
        mask, bias
            As in :meth:`attend`, with as many keys as the longest sequence has had tokens.

        Returns
        -------
        (sequences, heads, queries, value size): the last rows of `attend` with all keys and values.
        Packed numbers are read as they are by mechanisms with a soft-max over unchanged keys, for
        few queries; otherwise they are widened, a few thousand keys at a time.

        Raises
        ------
        CapabilityError
            Where the mechanism has no partial results.
        ArgumentError
            Where caches do not fit the mechanism or each other, or hold fewer tokens than queries.
        """
        return self.attend_cached_partial(
            query, *caches, sequences=sequences, mask=mask, bias=bias
        ).finish()

    def attend_cached_partial(
        self,
        query: Any,
        *caches: Cache,
        sequences: Any = None,
        mask: Any = None,
        bias: Any = None,
    ) -> PartialState:
        """`attend_cached`, unfinished: the state merges with others over other keys."""
        from .cached import attend_cached

        with self._computing():
            return attend_cached(self, query, caches, sequences, mask, bias)

    # ---- model level ------------------------------------------------------------------------

    def __call__(self, query: Any, key: Any = None, value: Any = None, **options: Any) -> Array:
        """Attend with arrays (…, tokens, dim); keys default to the query, values to the keys.

        A query (dim,) with keys (keys, dim) and values (keys, width) is the single-query form of
        vector search and returns (width,). Options are those of :meth:`attend`.
        """
        q, k, v, single = self._split(query, key, value)
        merged = merge_heads(self.attend(q, k, v, **options))
        return merged[..., 0, :] if single else merged

    def vjp(
        self, query: Any, key: Any = None, value: Any = None, **options: Any
    ) -> tuple[Array, Pullback]:
        """`__call__`, and a pullback.

        Where keys or values default to another input, its gradient holds theirs too, and theirs
        are the parts.
        """
        q, k, v, single = self._split(query, key, value)
        output, pull = self.attend_vjp(q, k, v, **options)
        merged = merge_heads(output)
        heads = self.config.heads

        def pullback(gradient: Any) -> Gradients:
            incoming = as_array(gradient, "gradient")
            expected = merged[..., 0, :].shape if single else merged.shape
            if incoming.shape != expected:
                raise ShapeError("gradient", incoming.shape, f"the output's shape {expected}")
            found = pull(
                split_heads(incoming[..., None, :] if single else incoming, heads, "gradient")
            )
            d_query, d_key, d_value = (
                merge_heads(x) for x in (found.query, found.key, found.value)
            )
            if single:
                d_query = d_query[0]
            if value is None:
                d_key = d_key + d_value
            if key is None:
                d_query = d_query + d_key
            return Gradients(d_query, d_key, d_value, found.bias, found.parameters, found.side)

        return merged[..., 0, :] if single else merged, pullback

    # ---- state ------------------------------------------------------------------------------

    @property
    def parameters(self) -> Parameters:
        """Learned arrays by name; initialised from seed 0 when first looked at."""
        if self._parameters is None:
            self._parameters = Parameters(self._initial_parameters(np.random.default_rng(0)))
        return self._parameters

    def initialise(self, rng: Any) -> None:
        """Set all parameters to fresh values from a seed or generator."""
        if rng is None:  # which NumPy takes for a seed of its own choice
            raise ArgumentError("rng", rng, "a seed or a numpy.random.Generator")
        self.parameters.update(self._initial_parameters(np.random.default_rng(rng)))

    def __repr__(self) -> str:
        fields = type(self.config).model_fields.items()
        defaults = {n: f.get_default(call_default_factory=True) for n, f in fields}
        chosen = {n: v for n, v in self.config if v != defaults[n]}
        options = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
        return f"{self.name}({options})"

    # ---- house-keeping ----------------------------------------------------------------------

    def _attend_again(self, query: Any, key: Any, value: Any) -> Array | None:
        """Attend as in an earlier call of these shapes, without mask and bias; None where not."""
        return None

    def _attend_measured(
        self, query: Any, key: Any, value: Any, mask: Any, bias: Any, training: bool, rng: Any,
        side: Mapping[str, Any],
    ) -> Array:  # fmt: skip
        start = time.perf_counter()
        call, lead, dtype = self._prepare(query, key, value, mask, bias, training, rng, side)
        with self._computing():
            output = _restore(self._forward(call), lead, dtype)
        seconds = time.perf_counter() - start
        statistics: dict[str, float] = {}
        if "entropy" in self.capabilities.statistics:
            _, found = self._observe(call, frozenset(("entropy",)))
            statistics["entropy"] = float(found["entropy"].mean())
        diagnostics.publish(
            diagnostics.AttentionComputed(
                name=self.name,
                query_shape=np.shape(query),
                key_shape=np.shape(key),
                value_shape=np.shape(value),
                dtype=str(dtype),
                seconds=seconds,
                statistics=statistics,
            )
        )
        return output


_MOST_TOP = 1 << 16  # longer lists than that are no summary


def _restore(array: Array, lead: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Canonical (batch, …) back to (*lead, …) in the caller's dtype."""
    if len(lead) != 1:
        array = array.reshape((*lead, *array.shape[1:]))
    return array if array.dtype == dtype else array.astype(dtype)


def _like(gradient: Array, array: Array) -> Array:
    """A gradient in the shape of its input, and in its dtype where that is a floating one."""
    summed = unbroadcast(gradient, array.shape)
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return summed.astype(array.dtype, copy=False) if floating else summed
