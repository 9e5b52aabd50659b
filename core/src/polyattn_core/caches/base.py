"""What all caches share: formats, checks, reading, files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import ValidationError

from ..arrays import Array, as_array
from ..errors import ArgumentError, FileFormatError, ShapeError
from ..masks import Mask
from ..positions import Rope, rotate
from .rows import STORAGES, Rows, group_size

if TYPE_CHECKING:
    from ..mechanism import Mechanism

Integers = np.ndarray[Any, np.dtype[np.int64]]
Sequences = int | Iterable[int] | None
Run = tuple[int, int, int, int]
"""Unit, row, position, number of keys."""


@dataclass(frozen=True, slots=True)
class Part:
    """Keys of some sequences, as they lie in a cache."""

    key: Rows
    value: Rows
    runs: Integers
    """(runs, 5): unit, row, position of the first key, number of keys, that of earlier runs."""
    starts: Integers
    """Where the runs of each sequence start, and where the last ones end."""
    rotations: Integers
    """Positions (sequences, queries) to which queries are rotated for these keys."""


class Cache(ABC):
    r"""Keys and values of some sequences.

    Parameters
    ----------
    heads, size
        Key heads and their size, as in the keys (…, heads, tokens, size) that are appended.
    value_size
        Size of value heads; that of keys by default.
    storage
        What numbers are stored as. Against a number x, what is read is off by at most

        ===================  ==================================================
        float32, float64     0
        float16              \\|x\\|·2⁻¹¹ + 2⁻²⁵; numbers beyond 65504 are refused
        bfloat16             \\|x\\|·2⁻⁸
        int8                 m/254 where m is the largest \\|number\\| of its group
        int4                 m/14
        ===================  ==================================================

        and a relative 2⁻²² for the last two. Where keys are off by at most ε, scores are by
        δ = scale·‖q‖₁·ε, and outputs by (e²ᵟ − 1)·max|v| beyond what values are off by.
        Packed numbers are read as they are: no widened copy of the cache is ever in memory.
    group
        Numbers of a head that share a scale, a multiple of 32: up to 64 by default.
    rope
        Rotate keys to their positions when they come in, as mechanisms with ``position="rope"``
        need it. :meth:`of` sets it as the mechanism has it.
    start
        Position of the first token, where others before it are in another cache.
    """

    def __init__(
        self,
        heads: int,
        size: int,
        *,
        value_size: int | None = None,
        storage: str = "float32",
        group: int | None = None,
        rope: Rope | None = None,
        start: int = 0,
    ) -> None:
        self.heads = whole("heads", heads, 1)
        self.size = whole("size", size, 1)
        self.value_size = self.size if value_size is None else whole("value_size", value_size, 1)
        if storage not in STORAGES:
            raise ArgumentError("storage", storage, "one of " + ", ".join(STORAGES))
        self.storage = storage
        self.group = group_size(group, (self.size, self.value_size), storage)
        if rope is not None and not isinstance(rope, Rope):
            raise ArgumentError("rope", rope, "a polyattn.positions.Rope, or None")
        self.rope = rope
        self.start = whole("start", start, 0)
        self._key: Rows
        self._value: Rows

    @classmethod
    def of(cls, mechanism: Mechanism, **options: Any) -> Self:
        """A cache with the heads and positions of a mechanism, and further options."""
        config = mechanism.config
        position = getattr(config, "position", None)
        if isinstance(position, Rope):
            options.setdefault("rope", position)
        return cls(config.key_heads, config.head_dim, **options)

    # ---- what kinds of caches differ in -----------------------------------------------------

    @property
    @abstractmethod
    def lengths(self) -> Integers:
        """Tokens that each sequence has in all, those no longer held included."""

    @abstractmethod
    def _reserve(self, sequences: Integers, tokens: int) -> None:
        """Make room for more tokens of each of these sequences, or raise, changing nothing."""

    @abstractmethod
    def _places(self, sequence: int, tokens: int) -> list[tuple[int, int, int]]:
        """(unit, row, count) for the next tokens of a sequence, in order."""

    @abstractmethod
    def _advance(self, sequences: Integers, tokens: int) -> None:
        """These sequences are longer by so many tokens."""

    @abstractmethod
    def _runs(self, sequence: int, queries: int | None) -> list[Run]:
        """Keys that the last `queries` tokens may see, or all that are held."""

    @abstractmethod
    def reset(self, sequences: Sequences = None) -> None:
        """Forget all tokens of these sequences, or of all."""

    @abstractmethod
    def truncate(self, lengths: Any, sequences: Sequences = None) -> None:
        """Forget the last tokens, so that sequences have these lengths: one, or one for each."""

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """What to build an equal, empty cache with, besides what all caches have."""

    @abstractmethod
    def _counts(self) -> dict[str, Array]:
        """Arrays of the state besides keys and values."""

    @abstractmethod
    def _restore(self, counts: Mapping[str, Array]) -> None:
        """Take over what `_counts` gave; raises ArgumentError where it cannot be."""

    def mask(self, queries: int) -> Mask | None:
        """Which of its keys the last queries may see, where that is not all."""
        return None

    def chosen(self, sequences: Sequences) -> Integers:
        """Numbers of sequences, checked; all by default."""
        count = len(self.lengths)
        if sequences is None:
            return np.arange(count)
        if isinstance(sequences, Iterable):
            given = list(sequences)
        else:
            given = [sequences]
        for sequence in given:
            whole("sequences", sequence, 0, count - 1)
        if len(set(given)) != len(given):
            raise ArgumentError("sequences", given, "each sequence once")
        return np.array(given, np.int64)

    # ---- tokens -----------------------------------------------------------------------------

    def append(self, key: Any, value: Any, sequences: Sequences = None) -> None:
        """Add tokens at the ends of sequences.

        Parameters
        ----------
        key, value
            (sequences, heads, tokens, size) and (sequences, heads, tokens, value size); the first
            axis may be missing for a single sequence, or be several with as many elements.
        sequences
            Which ones; all by default.

        Raises
        ------
        ShapeError, DTypeError
            Where arrays do not fit the cache.
        ArgumentError
            Where there is no room, or numbers cannot be stored. Nothing is appended then.
        """
        chosen = self.chosen(sequences)
        keys = self._checked("key", key, self.size, len(chosen))
        values = self._checked("value", value, self.value_size, len(chosen))
        tokens = keys.shape[2]
        if values.shape[2] != tokens:
            raise ShapeError("value", values.shape, f"{tokens} tokens like key")
        if self.rope is not None:
            positions = self.start + self.lengths[chosen][:, None] + np.arange(tokens)
            keys = rotate(keys, positions[:, None, :], self.rope)
        packed = (self._key.packed(keys, "key"), self._value.packed(values, "value"))
        self._reserve(chosen, tokens)
        for n, sequence in enumerate(chosen):
            done = 0
            for unit, row, count in self._places(int(sequence), tokens):
                for rows, (data, scales) in zip((self._key, self._value), packed, strict=True):
                    rows.write(
                        unit, row, data[n, :, done : done + count],
                        None if scales is None else scales[n, :, :, done : done + count],
                    )  # fmt: skip
                done += count
        self._advance(chosen, tokens)

    def _checked(self, argument: str, value: Any, size: int, count: int) -> Array:
        array = as_array(value, argument)
        wanted = f"({count}, {self.heads}, tokens, {size})"
        if array.ndim < 3 or array.shape[-3] != self.heads or array.shape[-1] != size:
            raise ShapeError(argument, array.shape, wanted)
        if array.size != count * self.heads * array.shape[-2] * size:
            raise ShapeError(argument, array.shape, wanted)
        array = array.reshape((count, *array.shape[-3:]))
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float32)
        return array if self.storage == "float64" else array.astype(np.float32, copy=False)

    def read(self, sequence: int = 0) -> tuple[Integers, Array, Array]:
        """What is held of a sequence: positions (tokens), keys and values (heads, tokens, size).

        Widened to float32 or float64 copies, in order of position; keys are rotated with `rope`.
        """
        (own,) = self.chosen(sequence)
        runs = self._runs(int(own), None)
        positions = [
            self.start + np.arange(position, position + count) for _, _, position, count in runs
        ]
        keys, values = (
            [rows.read(unit, row, count) for unit, row, _, count in runs]
            for rows in (self._key, self._value)
        )
        if not runs:
            nothing = self._key.read(0, 0, 0), self._value.read(0, 0, 0)
            return np.zeros(0, np.int64), *nothing
        return np.concatenate(positions), np.concatenate(keys, 1), np.concatenate(values, 1)

    def parts(self, sequences: Integers, queries: int) -> list[Part]:
        """Where the keys lie that the last `queries` tokens of these sequences see."""
        found = [self._runs(int(sequence), queries) for sequence in sequences]
        return [self._part(found, self.lengths[sequences][:, None] - queries, queries)]

    def _part(self, found: list[list[Run]], first: Integers, queries: int) -> Part:
        starts = np.cumsum([0, *map(len, found)], dtype=np.int64)
        runs = np.zeros((int(starts[-1]), 5), np.int64)
        for n, own in enumerate(found):
            if own:
                table = runs[starts[n] : starts[n + 1]]
                table[:, :4] = own
                table[:, 2] += self.start
                table[1:, 4] = np.cumsum(table[:-1, 3])
        rotations = self.start + first + np.arange(queries)
        return Part(self._key, self._value, runs, starts, rotations)

    # ---- state ------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of memory that keys, values and scales take, free room included."""
        return self._key.nbytes + self._value.nbytes

    @property
    def state(self) -> dict[str, Array]:
        """All arrays that the cache consists of, by name; read-only views."""
        arrays = {"key": self._key.data, "value": self._value.data, **self._counts()}
        if self._key.scales is not None and self._value.scales is not None:
            arrays |= {"key_scales": self._key.scales, "value_scales": self._value.scales}
        views = {name: array.view() for name, array in arrays.items()}
        for view in views.values():
            view.flags.writeable = False
        return views

    def save(self, path: str | PathLike[str]) -> None:
        """Write the cache to a safetensors file."""
        from safetensors.numpy import save_file

        options = {
            "heads": self.heads, "size": self.size, "value_size": self.value_size,
            "storage": self.storage, "group": self.group or None,
            "rope": None if self.rope is None else self.rope.model_dump(),
            "start": self.start, **self._options(),
        }  # fmt: skip
        described = {"polyattn": json.dumps({"cache": type(self).__name__, **options})}
        state = {name: np.array(array, order="C") for name, array in self.state.items()}
        save_file(state, str(path), described)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """A cache from a file that :meth:`save` wrote.

        Raises
        ------
        FileFormatError
            Where the file holds something else, or another kind of cache.
        """
        from safetensors import SafetensorError, safe_open

        wanted = f"a safetensors file that {cls.__name__}.save wrote"
        try:
            with safe_open(str(path), "numpy") as file:
                options = json.loads((file.metadata() or {})["polyattn"])
                if options.pop("cache") != cls.__name__:
                    raise FileFormatError("path", f"{path} (another kind of cache)", wanted)
                if options["rope"] is not None:
                    options["rope"] = Rope(**options["rope"])
                cache = cls(**options)
                counts = {}
                own = {"key": cache._key, "value": cache._value}
                for name in file.keys():  # noqa: SIM118 - no mapping
                    array = file.get_tensor(name)
                    rows = own.get(name.removesuffix("_scales"))
                    if rows is None:
                        counts[name] = array
                        continue
                    if not rows.data.shape[2] and array.ndim == 4:
                        rows.grow(array.shape[2])
                    current = rows.scales if name.endswith("_scales") else rows.data
                    if current is None or (array.shape, array.dtype) != (
                        current.shape,
                        current.dtype,
                    ):
                        raise ArgumentError(name, array.shape, "the shape that the options say")
                    current[...] = array
                cache._restore(counts)
        except (
            SafetensorError, KeyError, TypeError, AttributeError, ValueError, ValidationError,
        ) as error:  # fmt: skip
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError("path", f"{path} ({error})", wanted) from None
        return cache

    def __len__(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.lengths.max(initial=0))

    def __repr__(self) -> str:
        size = f"{self.size}" if self.size == self.value_size else f"{self.size}, {self.value_size}"
        options = ", ".join(f"{name}={value}" for name, value in self._options().items())
        return (
            f"{type(self).__name__}({self.heads}, {size}, storage={self.storage!r}, {options}): "
            f"{self.lengths.tolist()} tokens"
        )


def whole(argument: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number within bounds."""
    right = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not right or value < least or (most is not None and value > most):  # type: ignore[operator]
        upper = "" if most is None else f" to {most}"
        raise ArgumentError(argument, value, f"a whole number from {least}{upper or ' on'}")
    return int(value)  # type: ignore[call-overload,no-any-return]


def new_lengths(lengths: Any, count: int, current: Integers) -> Integers:
    """Lengths to truncate to, checked: none longer than now."""
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu" or array.shape not in ((), (count,)):
        raise ArgumentError("lengths", lengths, f"a whole number, or one for each of {count}")
    array = np.broadcast_to(array, (count,)).astype(np.int64)
    if ((array < 0) | (array > current)).any():
        raise ArgumentError("lengths", lengths, f"0 up to the present {current.tolist()}")
    return array
