"""What all mixtures share: experts work for their own tokens only, and results are added up."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core import resolver
from polyattn_core.arrays import Array, merge_heads, split_heads
from polyattn_core.config import AttentionConfig
from polyattn_core.errors import ArgumentError, ConfigError, ShapeError
from polyattn_core.mechanism import Call, Gradients, Mechanism, Pullback
from polyattn_core.parameters import as_seed
from polyattn_core.spec import MechanismSpec

from .projected import Projected
from .routing import Routing
from .rows import VisibleRows

_MASKED = 1 << 22  # booleans of a mask for one call of an expert

RoutePullback = Callable[[Array], tuple[Array, dict[str, Array]]]
"""From the gradient by gates to those by the router's input and by the router's parameters."""


@dataclass(slots=True)
class Group:
    """Some tokens of one sequence that go to one expert."""

    expert: int
    batch: int
    heads: slice
    rows: Array
    options: dict[str, Any]
    bias: tuple[slice, Array | slice] | None = None
    """Where in the bias of the sequence its part lies."""


class Mixture(Mechanism):
    """Base of the mixtures. Subclasses say what the experts are and route tokens to them."""

    config: Any
    last_routing: Routing | None = None
    """Of the latest call; for one thread, as calls from several overwrite it."""

    def __init__(self, config: Any, *, spec: MechanismSpec) -> None:
        super().__init__(config, spec=spec)
        self.experts: tuple[Mechanism, ...] = tuple(self._created())
        """The mechanisms; their learned arrays are set from `parameters`."""
        # A part of the queries has no positions of its own.
        self._whole = tuple(
            expert.capabilities.positional
            or getattr(expert.config, "position", None) is not None
            or bool(getattr(expert.config, "causal", False))
            for expert in self.experts
        )

    # ---- what subclasses say --------------------------------------------------------------------

    @abstractmethod
    def _created(self) -> Iterator[Mechanism]:
        """The experts."""

    @abstractmethod
    def _route(self, tokens: Array, rng: Any) -> tuple[Array, Array, Any, RoutePullback]:
        """Gates and assignments (batch, tokens, experts) of tokens (batch, tokens, dim) in float64.

        The third is what :class:`Routing` is told besides; `rng` is a generator while training.
        """

    @abstractmethod
    def _router_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        """Freshly initialised learned arrays of the router."""

    def _heads(self, expert: int) -> slice:
        """The heads that an expert reads and writes."""
        return slice(None)

    # ---- parameters -----------------------------------------------------------------------------

    def _create(self, options: dict[str, Any], *, dim: int, heads: int) -> Mechanism:
        options = {**options, "dim": dim, "heads": heads, "threads": self.config.threads}
        if "name" not in options:
            return Projected(AttentionConfig(**options))
        found: Mechanism = resolver.current().create(options.pop("name"), **options)
        if found.capabilities.side_inputs:
            raise ConfigError("experts", found.name, "mechanisms without inputs of their own")
        return found

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        arrays = self._router_parameters(rng)
        for i, expert in enumerate(self.experts):
            own = expert._initial_parameters(rng)
            arrays.update({f"experts.{i}.{name}": array for name, array in own.items()})
        return arrays

    def _hand_out(self) -> None:
        """Give experts the learned arrays that have changed since."""
        ours = self.parameters
        for i, expert in enumerate(self.experts):
            theirs = expert.parameters
            own = {name: ours[f"experts.{i}.{name}"].base for name in theirs}
            changed = {n: x for n, x in own.items() if x is not None and theirs[n].base is not x}
            if changed:
                theirs.replace(changed)

    # ---- calls ----------------------------------------------------------------------------------

    def _prepare(self, *arguments: Any, **others: Any) -> Any:
        call, lead, dtype = super()._prepare(*arguments, **others)
        if not self.capabilities.value_size and call.value.shape[3] != self.config.head_dim:
            raise ShapeError("value", call.value.shape, f"head size {self.config.head_dim}")
        training, rng = arguments[5], arguments[6]
        if training and self._random():
            if rng is None:
                raise ArgumentError("rng", rng, "a seed or generator: noise is on in training")
            call.seed = as_seed(rng)
        return call, lead, dtype

    def _random(self) -> bool:
        names = ("jitter_noise", "noisy", "dropout")
        configs = [self.config, *(expert.config for expert in self.experts)]
        return any(getattr(config, name, 0) for config in configs for name in names)

    def _forward(self, call: Call) -> Array:
        gates, assigned, _ = self._routed(call)
        batch, heads, queries = call.query.shape[:3]
        # Written as (…, queries, heads, size), so that merging heads afterwards is a view.
        shape = (batch, queries, heads, call.value.shape[3])
        output = np.zeros(shape, call.dtype).transpose(0, 2, 1, 3)
        for expert in (i for i, whole in enumerate(self._whole) if whole):
            all_rows = self.experts[expert].attend(
                *self._all(call), **self._all_options(call, expert)
            )
            _add_whole(output, all_rows.reshape(output.shape), gates[..., expert])
        for group in self._groups(call, assigned):
            found = self.experts[group.expert].attend(*self._part(call, group), **group.options)
            share = gates[group.batch, group.rows, group.expert].astype(call.dtype)
            output[group.batch, group.heads][:, group.rows] += share[:, None] * found[0]
        return output

    def _vjp(self, call: Call) -> tuple[Array, Pullback]:
        gates, assigned, route_pullback = self._routed(call)
        batch, heads, queries = call.query.shape[:3]
        shape = (batch, queries, heads, call.value.shape[3])
        output = np.zeros(shape, call.dtype).transpose(0, 2, 1, 3)
        wholes: list[tuple[int, Array, Pullback]] = []
        parts: list[tuple[Group, Array, Pullback]] = []
        for expert in (i for i, whole in enumerate(self._whole) if whole):
            found, pull = self.experts[expert].attend_vjp(
                *self._all(call), **self._all_options(call, expert)
            )
            found = found.reshape(output.shape)
            _add_whole(output, found, gates[..., expert])
            wholes.append((expert, found, pull))
        for group in self._groups(call, assigned):
            found, pull = self.experts[group.expert].attend_vjp(
                *self._part(call, group), **group.options
            )
            share = gates[group.batch, group.rows, group.expert].astype(call.dtype)
            output[group.batch, group.heads][:, group.rows] += share[:, None] * found[0]
            parts.append((group, found, pull))

        def pullback(gradient: Array) -> Gradients:
            d_gates = np.zeros(gates.shape)
            total = {n: np.zeros(getattr(call, n).shape, call.dtype) for n in _INPUTS}
            bias = None if call.bias is None else np.zeros(call.bias.shape, call.dtype)
            learned = {
                n: np.zeros(a.shape) for n, a in self.parameters.items() if n.startswith("experts.")
            }
            for expert, found, pull in wholes:
                d_gates[..., expert] = np.einsum("bhqd,bhqd->bq", gradient, found)
                share = gates[:, None, :, expert, None].astype(call.dtype)
                incoming = (gradient * share).reshape((*call.shape.lead, *gradient.shape[1:]))
                got = pull(incoming)
                for name in _INPUTS:
                    total[name] += getattr(got, name).reshape(total[name].shape)
                if bias is not None and got.bias is not None:
                    bias += got.bias
                _add_learned(learned, expert, got)
            for group, found, pull in parts:
                place = (group.batch, group.heads)
                incoming = gradient[place][:, group.rows]
                d_gates[group.batch, group.rows, group.expert] += np.einsum(
                    "hqd,hqd->q", incoming, found[0]
                )
                share = gates[group.batch, group.rows, group.expert].astype(call.dtype)
                got = pull((share[:, None] * incoming)[None])
                total["query"][place][:, group.rows] += got.query[0]
                total["key"][place] += got.key[0]
                total["value"][place] += got.value[0]
                if bias is not None and group.bias is not None and got.bias is not None:
                    view = _of_sequence(bias, call, group.batch)[group.bias[0]]
                    view[:, group.bias[1]] += got.bias[0]
                _add_learned(learned, group.expert, got)
            d_tokens, router = route_pullback(d_gates)
            d_tokens = split_heads(d_tokens, call.query.shape[1], "query")
            total["query"] += d_tokens.astype(call.dtype)
            return Gradients(
                total["query"], total["key"], total["value"], bias, {**learned, **router}
            )

        return output, pullback

    def _routed(self, call: Call) -> tuple[Array, Array, RoutePullback]:
        self._hand_out()
        # In float64, so that rounding decides as rarely as can be where a token goes.
        tokens = merge_heads(call.query).astype(np.float64)
        rng = None if call.seed is None else np.random.default_rng(call.seed)
        gates, assigned, others, pullback = self._route(tokens, rng)
        lead = call.shape.lead

        def restored(array: Array) -> Array:
            return array.reshape((*lead, *array.shape[1:]))

        arrays: dict[str, Any] = {
            n: restored(x) if isinstance(x, np.ndarray) else x for n, x in others.items()
        }
        self.last_routing = Routing(restored(gates), restored(assigned), **arrays)
        return gates, assigned, pullback

    # ---- what experts are called with -----------------------------------------------------------

    def _all(self, call: Call) -> list[Array]:
        return [
            x.reshape((*call.shape.lead, *x.shape[1:])) for x in (call.query, call.key, call.value)
        ]

    def _all_options(self, call: Call, expert: int) -> dict[str, Any]:
        return {"mask": call.mask, "bias": call.bias, **self._training(call, expert)}

    def _training(self, call: Call, index: int) -> dict[str, Any]:
        if call.seed is None:
            return {}
        return {"training": True, "rng": (call.seed + 7919 * (index + 1)) % (1 << 31)}

    def _part(self, call: Call, group: Group) -> list[Array]:
        place = slice(group.batch, group.batch + 1)
        query = np.take(call.query[group.batch, group.heads], group.rows, axis=1)[None]
        return [query, call.key[place, group.heads], call.value[place, group.heads]]

    def _groups(self, call: Call, assigned: Array) -> Iterator[Group]:
        """Tokens by sequence and expert; under a mask, in parts whose rows of it are few."""
        batch, heads, queries = call.query.shape[:3]
        keys = call.key.shape[2]
        see = None if call.mask is None else VisibleRows(call.mask, call.shape)
        most = queries if see is None else max(1, _MASKED // (heads * keys))
        count = 0
        for b in range(batch):
            for expert in np.flatnonzero(~np.array(self._whole)):
                rows = np.flatnonzero(assigned[b, :, expert])
                own = self._heads(int(expert))
                for first in range(0, len(rows), most):
                    count += 1
                    part = rows[first : first + most]
                    group = Group(int(expert), b, own, part, self._training(call, count))
                    if see is not None:
                        group.options["mask"] = see(b, range(heads)[own], part)[None]
                    if call.bias is not None:
                        bias = _of_sequence(call.bias, call, b)
                        group.bias = (
                            own if bias.shape[0] > 1 else slice(None),
                            part if bias.shape[1] > 1 else slice(None),
                        )
                        group.options["bias"] = bias[group.bias[0]][:, group.bias[1]][None]
                    yield group


_INPUTS = ("query", "key", "value")


def _add_whole(output: Array, found: Array, gates: Array) -> None:
    share = gates[:, None, :, None].astype(output.dtype)
    # A gate of 0 keeps out what is not finite.
    output += np.where(share == 0, 0, share * found)


def _add_learned(learned: dict[str, Array], expert: int, found: Gradients) -> None:
    for name, array in found.parameters.items():
        learned[f"experts.{expert}.{name}"] += array


def _of_sequence(bias: Array, call: Call, batch: int) -> Array:
    """The (heads, queries, keys) of a bias, as a view, with 1 where it is broadcast."""
    lead = call.shape.lead
    full = bias.reshape((1,) * max(0, len(lead) + 3 - bias.ndim) + bias.shape)
    place = np.unravel_index(batch, lead) if lead else ()
    index = tuple(int(i) if n > 1 else 0 for i, n in zip(place, full.shape, strict=False))
    return np.asarray(full[index])
