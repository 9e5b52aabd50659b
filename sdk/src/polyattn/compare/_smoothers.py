"""Candidates behind one interface: mechanisms of the registry, and two anchors beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polyattn_core.arrays import Array

if TYPE_CHECKING:
    from polyattn_core.spec import MechanismSpec

QUERY_BLOCK = 1024
"""Queries whose weights are held at once."""
KEY_BLOCK = 256
"""Columns of the identity that probe for weights at once."""


class Smoothing(ABC):
    """A candidate with all its options settled."""

    @abstractmethod
    def smooth(self, query: Array, key: Array, value: Array) -> Array:
        """The output (queries, width) for values (keys, width)."""

    @abstractmethod
    def weights(self, query: Array, key: Array) -> Array:
        """What ranks the keys for each query (queries, keys): larger is nearer."""


class Candidate(ABC):
    """Something to compare; `at` builds it for a sharpness."""

    label: str
    name: str = ""
    family: str = ""
    summary: str = ""
    anchor: bool = False
    caveats: tuple[str, ...] = ()
    option: str = ""
    """The option that makes it sharper; empty where there is none."""
    fixed: bool = False
    """The user chose the sharpness."""
    whole: bool = False
    """Sharpness is an integer."""
    grid: Sequence[int] | None = None
    """The values to try; None lets the search find where the output reacts."""

    def prepare(self) -> None:  # noqa: B027 - most have nothing to prepare
        """Look at what may fail to import. Called once, before anything else."""

    @abstractmethod
    def at(self, sharpness: float | None) -> Smoothing:
        """Build it; None leaves the sharpness as it is by default."""

    def options(self, sharpness: float | None) -> dict[str, Any]:
        """All options with which it is built, but for the width."""
        return {} if sharpness is None else {self.option: self._exact(sharpness)}

    def _exact(self, sharpness: float) -> float | int:
        return round(sharpness) if self.whole else float(sharpness)


class FromRegistry(Candidate):
    """A mechanism, by name."""

    def __init__(
        self, label: str, name: str, spec: MechanismSpec, options: Mapping[str, Any],
        dim: int, threads: int | None, caveats: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.label, self._create_name, self.name = label, name, spec.full_name
        self.family, self.summary, self.caveats = spec.family, spec.summary, caveats
        self._dim, self._threads, self._given = dim, threads, dict(options)
        self.option = spec.sharpness
        self.fixed = spec.sharpness in options

    def prepare(self) -> None:
        if self.option and not self.fixed:
            from polyattn_registry import config_schema

            found = config_schema(self.name)["properties"].get(self.option, {})
            kinds = {found.get("type")} | {kind.get("type") for kind in found.get("anyOf", ())}
            self.whole = "integer" in kinds and "number" not in kinds

    def options(self, sharpness: float | None) -> dict[str, Any]:
        return {**self._given, **super().options(sharpness)}

    def at(self, sharpness: float | None) -> Smoothing:
        from polyattn_registry import create

        options = self.options(sharpness)
        if self._threads is not None:
            options.setdefault("threads", self._threads)
        config = {"dim": self._dim, "heads": 1, **options}
        return _Attending(create(self._create_name, config=config))


class _Attending(Smoothing):
    def __init__(self, mechanism: Any) -> None:
        self._mechanism = mechanism

    def smooth(self, query: Array, key: Array, value: Array) -> Array:
        output: Array = self._mechanism.attend(query[None], key[None], value[None])
        first: Array = output[0]
        return first

    def weights(self, query: Array, key: Array) -> Array:
        found = np.empty((len(query), len(key)), query.dtype)
        if "weights" in self._mechanism.capabilities.statistics:
            nothing = np.zeros((1, len(key), 1), query.dtype)
            for start in range(0, len(query), QUERY_BLOCK):
                block = query[None, start : start + QUERY_BLOCK]
                seen = self._mechanism.observe(block, key[None], nothing, "weights")
                found[start : start + QUERY_BLOCK] = seen.weights[0]
            return found
        # The output is linear in the values: those of an identity matrix return the weights.
        for start in range(0, len(key), KEY_BLOCK):
            width = min(KEY_BLOCK, len(key) - start)
            value = np.eye(len(key), width, -start, dtype=query.dtype)
            found[:, start : start + width] = self.smooth(query, key, value)
        return found


class NumpySoftmax(Candidate):
    """Soft-max attention in a few lines of NumPy: what one would write without a library."""

    label = "NumPy soft-max"
    summary = "softmax(scale · q·kᵀ) v, written out with NumPy"
    anchor = True
    option = "scale"

    def at(self, sharpness: float | None) -> Smoothing:
        return _NumpySoftmax(1.0 if sharpness is None else sharpness)


class _NumpySoftmax(Smoothing):
    def __init__(self, scale: float) -> None:
        self._scale = scale

    def smooth(self, query: Array, key: Array, value: Array) -> Array:
        return self.weights(query, key) @ value

    def weights(self, query: Array, key: Array) -> Array:
        scores = query @ key.T
        scores *= query.dtype.type(self._scale)
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        return scores


class NearestNeighbours(Candidate):
    """The mean value of the k nearest keys: no attention at all."""

    label = "k nearest neighbours"
    summary = "mean of the values of the k nearest training vectors (scikit-learn)"
    anchor = True
    option = "k"
    whole = True
    grid = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100)

    def at(self, sharpness: float | None) -> Smoothing:
        return _NearestNeighbours(5 if sharpness is None else round(sharpness))


class _NearestNeighbours(Smoothing):
    def __init__(self, k: int) -> None:
        self._k = k

    def smooth(self, query: Array, key: Array, value: Array) -> Array:
        from sklearn.neighbors import KNeighborsRegressor

        # On one-hot labels, the regressor's mean is the classifier's probability.
        model = KNeighborsRegressor(min(self._k, len(key)), algorithm="brute").fit(key, value)
        found: Array = model.predict(query)
        return found

    def weights(self, query: Array, key: Array) -> Array:
        from sklearn.metrics.pairwise import euclidean_distances

        found: Array = -euclidean_distances(query, key)
        return found
