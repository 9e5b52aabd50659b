"""Data sets that come along: of scikit-learn, and generated ones whose geometry is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyattn_core.arrays import Array

from ._optional import need

Content = tuple[Array, Array | None, tuple[str, ...]]
"""Vectors, labels and names of columns."""


@dataclass(frozen=True, slots=True)
class Bundled:
    """A data set that is loaded by name."""

    name: str
    samples: int
    coordinates: int
    target: str
    description: str
    load: Callable[[], Content]


def _from_sklearn(function: str) -> Callable[[], Content]:
    def load() -> Content:
        datasets: Any = need("sklearn.datasets", "scikit-learn", "a bundled data set")
        found = getattr(datasets, function)()
        target = np.asarray(found.target)
        if hasattr(found, "target_names") and function != "load_digits":
            target = np.asarray(found.target_names)[target]
        return np.asarray(found.data), target, tuple(str(name) for name in found.feature_names)

    return load


def _swiss_roll() -> Content:
    datasets: Any = need("sklearn.datasets", "scikit-learn", "a bundled data set")
    points, along = datasets.make_swiss_roll(n_samples=1200, noise=0.4, random_state=0)
    edges = np.quantile(along, np.arange(1, 6) / 6)
    return points, np.digitize(along, edges), ("x", "y", "z")


def _tree() -> Content:
    """Leaves of a binary tree whose branches are random steps, each shorter than the last."""
    rng = np.random.default_rng(0)
    depth, size, samples = 7, 16, 1280
    nodes = np.zeros((1, size))
    for level in range(depth):
        steps = rng.standard_normal((2 * len(nodes), size)) * 0.75**level
        nodes = np.repeat(nodes, 2, axis=0) + steps
    leaf = np.arange(samples) % len(nodes)
    points = nodes[leaf] + 0.5 * rng.standard_normal((samples, size))
    return points, leaf // (len(nodes) // 8), _numbered(size)


def _directions() -> Content:
    """Classes that differ in direction alone: lengths vary by a factor of ten within each."""
    rng = np.random.default_rng(0)
    classes, size, samples = 6, 12, 1200
    centres = rng.standard_normal((classes, size))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    labels = np.arange(samples) % classes
    points = centres[labels] + 0.28 * rng.standard_normal((samples, size))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points * np.exp(rng.normal(0, 0.8, (samples, 1))), labels, _numbered(size)


def _numbered(size: int) -> tuple[str, ...]:
    return tuple(f"x{index}" for index in range(size))


BUNDLED = {
    entry.name: entry
    for entry in (
        Bundled(
            "digits", 1797, 64, "10 classes", "handwritten digits, 8×8 pixels (UCI, scikit-learn)",
            _from_sklearn("load_digits"),
        ),
        Bundled(
            "iris", 150, 4, "3 classes", "three species of iris, measured by Anderson (UCI)",
            _from_sklearn("load_iris"),
        ),
        Bundled(
            "wine", 178, 13, "3 classes", "chemical analysis of wines of three growers (UCI)",
            _from_sklearn("load_wine"),
        ),
        Bundled(
            "breast-cancer", 569, 30, "2 classes", "cell nuclei of biopsies, Wisconsin (UCI)",
            _from_sklearn("load_breast_cancer"),
        ),
        Bundled(
            "diabetes", 442, 10, "a number", "progression of diabetes after one year (Efron)",
            _from_sklearn("load_diabetes"),
        ),
        Bundled(
            "swiss-roll", 1200, 3, "6 classes", "generated: pieces of a rolled-up sheet",
            _swiss_roll,
        ),
        Bundled(
            "tree", 1280, 16, "8 classes", "generated: leaves of a binary tree, labelled by branch",
            _tree,
        ),
        Bundled(
            "directions", 1200, 12, "6 classes", "generated: classes differ in direction alone",
            _directions,
        ),
    )
}  # fmt: skip
