"""The options `score` and `score_params`: a rule of the user's own over a mechanism's scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from .arrays import Array
from .errors import ConfigError, KernelError
from .mechanism import Call

if TYPE_CHECKING:
    from .simd.rules import ScoreRule, Statistic

_SAMPLES = 12  # queries and keys at whose pairs a derivative is checked


class ScoreParameters(dict[str, Any]):
    """Numbers and read-only arrays by name; equal where all of them are."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping) or self.keys() != other.keys():
            return NotImplemented if not isinstance(other, Mapping) else False
        return all(np.array_equal(self[name], other[name]) for name in self)

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self))

    def __repr__(self) -> str:
        shown = (f"{name!r}: {_brief(value)}" for name, value in self.items())
        return f"{{{', '.join(shown)}}}"


def _brief(value: Any) -> str:
    shape = np.shape(value)
    return f"<array {'×'.join(map(str, shape))}>" if np.size(value) > 8 else repr(value)


def _rule(value: Any) -> Any:
    """A rule from itself, a function, or "module:name"."""
    if value is None:
        return None
    from .simd.rules import ScoreRule, find_rule, score_rule

    if isinstance(value, str):
        found = find_rule(value)
        if found is None:
            raise ValueError("the module:name of a score rule that can be imported")
        value = found
    if isinstance(value, ScoreRule):
        return value
    if not callable(value) or isinstance(value, type):
        raise ValueError("a score rule (@score_rule), or its module:name")
    try:
        return score_rule(value)
    except KernelError as error:
        raise ValueError(f"a score rule: {error}") from None


def _parameters(value: Any) -> ScoreParameters:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError("a mapping of the names of the rule's parameters to their values")
    return ScoreParameters({name: _number(name, given) for name, given in value.items()})


def _number(name: str, value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"finite numbers; {name} is {value}")
        return value
    try:
        array = np.array(value)
    except ValueError:
        raise ValueError(f"numbers and arrays of one shape; {name} is ragged") from None
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise ValueError(f"numbers and arrays of numbers; {name} is {type(value).__name__}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"finite numbers; {name} holds some that are not")
    array.flags.writeable = False
    return array.item() if array.ndim == 0 else array


def _written(rule: Any) -> Any:
    return None if rule is None else rule.reference()


def _listed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in parameters.items()}


Score = Annotated[
    Any,
    PlainValidator(_rule),
    PlainSerializer(_written, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]}),
]
"""A score rule; in JSON "module:name"."""

ScoreValues = Annotated[
    Any,
    PlainValidator(_parameters),
    PlainSerializer(_listed, when_used="json"),
    WithJsonSchema({"type": "object"}),
]
"""Parameters of a score rule by name; arrays in JSON are lists."""


class UserRule:
    """The rule of a configuration, and its values in a mechanism.

    Floating parameters are learned arrays of the mechanism, called `score.` and their name; whole
    numbers and arrays of whole numbers or booleans stay as they are.
    """

    def __init__(self, rule: ScoreRule, values: Mapping[str, Any], heads: int) -> None:
        self.rule, self.values = rule, values
        wanted, known = set(rule.parameters), set(values)
        if wanted != known:
            problem = [
                f"{word} {', '.join(sorted(names))}"
                for word, names in (("lacks", wanted - known), ("has in excess", known - wanted))
                if names
            ]
            raise ConfigError(
                "score_params", " and ".join(problem),
                f"exactly the parameters of {rule!r}: {', '.join(rule.parameters) or 'none'}",
            )  # fmt: skip
        for name, value in values.items():
            if name not in rule.arrays and np.shape(value) not in ((), (1,), (heads,)):
                raise ConfigError(
                    f"score_params.{name}", f"an array of shape {np.shape(value)}",
                    f"a number, or one for each of the {heads} heads: the rule does not index it",
                )  # fmt: skip
        kinds = rule.kinds([values[name] for name in rule.parameters])
        self.kinds = kinds
        # Read now, so that what no rule may do is said before anything is computed.
        rule.obstacle(kinds)
        self.learned = tuple(name for name in rule.parameters if kinds[name].kind == "float")
        self._converted: dict[Any, Any] = {}

    def initial(self) -> dict[str, Array]:
        """The learned arrays."""
        return {
            f"score.{name}": np.asarray(self.values[name], _floating(self.values[name]))
            for name in self.learned
        }

    def link(self, parameters: Mapping[str, Array], dtype: np.dtype[Any]) -> tuple[Any, list[Any]]:
        """The rule with its values, as the engine takes them."""
        values: list[Any] = []
        for name in self.rule.parameters:
            if name in self.learned:
                value = parameters[f"score.{name}"]
                if name in self.rule.arrays:
                    value = self._kept(name, value, dtype)
            else:
                value = self.values[name]
            values.append(value)
        return self.rule, values

    def _kept(self, name: str, value: Array, dtype: np.dtype[Any]) -> Array:
        """An array in the compute dtype; converted anew only where it was replaced."""
        base = value.base if value.base is not None else value
        before = self._converted.get((name, dtype.name))
        if before is None or before[0] is not base:
            before = (base, np.ascontiguousarray(value, dtype))
            self._converted[name, dtype.name] = before
        return before[1]

    def gradients(
        self, by_slot: Array, arrays: Mapping[int, Array], slots: Mapping[str, int]
    ) -> dict[str, Array]:
        """Gradients by the learned arrays, from those by slots (heads, slots) and by arrays."""
        found = {}
        for name in self.learned:
            slot = slots[name]
            if name in self.rule.arrays:
                found[f"score.{name}"] = arrays[slot]
                continue
            shape = np.shape(self.values[name])
            by_head = by_slot[:, slot]
            single = math.prod(shape) == 1 and len(by_head) != math.prod(shape)
            total = by_head.sum() if single or shape == () else by_head
            found[f"score.{name}"] = np.asarray(total).reshape(shape)
        return found

    def check(self, values: Sequence[Any], call: Call, scale: float) -> None:
        """Check the rule's derivative at pairs of this call, once."""
        key = tuple(self.kinds.values())
        if key in self.rule._checked:
            return
        samples = _samples(call, scale, self.rule.row, self.rule.column)
        if samples is not None:
            self.rule.check_derivative(values, samples)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_converted": {}}


def _floating(value: Any) -> Any:
    array = np.asarray(value)
    return array.dtype if array.dtype.kind == "f" else np.float64


def _samples(
    call: Call, scale: float, row: Statistic | None, column: Statistic | None
) -> dict[str, Array] | None:
    """Scores, statistics and positions of some pairs whose vectors are finite."""
    rng = np.random.default_rng(0)
    batch, heads, queries, _ = call.query.shape
    group = heads // call.key.shape[1]
    keys = call.key.shape[2]
    b, h = int(rng.integers(batch)), int(rng.integers(heads))
    i = np.unique(rng.integers(0, queries, _SAMPLES))
    j = np.unique(rng.integers(0, keys, _SAMPLES))
    query = call.query[b, h, i].astype(np.float64)
    key = call.key[b, h // group, j].astype(np.float64)
    i, query = i[np.isfinite(query).all(axis=-1)], query[np.isfinite(query).all(axis=-1)]
    j, key = j[np.isfinite(key).all(axis=-1)], key[np.isfinite(key).all(axis=-1)]
    if not len(i) or not len(j):
        return None
    functions: tuple[tuple[str, Statistic | None, Array, Callable[[Array], Array]], ...] = (
        ("row", row, query, lambda x: x[:, None]),
        ("column", column, key, lambda x: x[None, :]),
    )
    found = {
        "score": query @ key.T * scale, "batch": np.array(b), "head": np.array(h),
        "query": i[:, None], "key": j[None, :] + call.key_start,
    }  # fmt: skip
    for name, statistic, vectors, along in functions:
        if statistic is not None:
            found[name] = along(np.asarray(statistic.forward(vectors), np.float64))
    return found
