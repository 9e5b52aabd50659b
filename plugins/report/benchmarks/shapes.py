"""Data sets of known shape, each with something to predict: what the advice is tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import networkx as nx
import numpy as np
from sklearn.datasets import make_moons

from polyattn.compare import load
from polyattn_core.arrays import Array


class Part(StrEnum):
    """What a data set is there for."""

    TUNING = "tuning"
    """The rule was tuned on it."""
    TEST = "test"
    """The rule was not, though its figures had been seen before the rule was settled."""
    FRESH = "fresh"
    """Added when the rule was settled, and looked at once."""


Content = tuple[Array, Array]
"""Vectors and what is to be predicted of them: classes, or numbers."""
COUNT = 320


@dataclass(frozen=True, slots=True)
class Shape:
    """A data set."""

    name: str
    shape: str
    load: Callable[[], Content]
    part: Part
    """What it is there for."""


def _embedded(points: Array, size: int, noise: float, seed: int) -> Array:
    """Points turned into `size` dimensions, with noise added."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0][: points.shape[1]]
    return points @ turn + noise * rng.standard_normal((len(points), size))


def _tree(branches: int, depth: int, size: int, seed: int) -> Content:
    """Leaves of a tree whose branches are random steps; classes are branches of the root."""
    rng = np.random.default_rng(seed)
    nodes = np.zeros((1, size))
    for level in range(depth):
        steps = 0.7**level * rng.standard_normal((branches * len(nodes), size))
        nodes = np.repeat(nodes, branches, axis=0) + steps
    leaf = rng.integers(len(nodes), size=COUNT)
    points = nodes[leaf] + 0.4 * rng.standard_normal((COUNT, size))
    return points, leaf * branches**2 // len(nodes)


def _cycle() -> Content:
    angle = np.random.default_rng(1).uniform(0, 2 * np.pi, COUNT)
    points = np.stack((np.cos(angle), np.sin(angle)), axis=1)
    return _embedded(points, 8, 0.15, 1), (angle * 8 / (2 * np.pi)).astype(int)


def _knot() -> Content:
    """A closed curve that comes near itself: where along it?"""
    along = np.random.default_rng(2).uniform(0, 2 * np.pi, COUNT)
    radius = 2 + np.cos(3 * along)
    points = np.stack(
        (radius * np.cos(2 * along), radius * np.sin(2 * along), np.sin(3 * along)), axis=1
    )
    return _embedded(points, 6, 0.1, 2), (along * 6 / (2 * np.pi)).astype(int)


def _grid() -> Content:
    """A square grid with a chequerboard of sixteen fields."""
    side = np.arange(18)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype(float)
    field = (points // 4.5).astype(int).sum(axis=1) % 2
    return _embedded(points / 18, 2, 0.01, 3), field


def _surface() -> Content:
    """A number that varies over a three-dimensional grid."""
    points = np.random.default_rng(4).integers(0, 7, (COUNT, 3)) / 7.0
    target = np.sin(4 * points[:, 0]) + points[:, 1] * points[:, 2]
    return _embedded(points, 12, 0.02, 4), target


def _mixture(size: int, spread: float, classes: int, seed: int) -> Content:
    rng = np.random.default_rng(seed)
    label = np.arange(COUNT) % classes
    centres = rng.standard_normal((classes, size))
    return centres[label] + spread * rng.standard_normal((COUNT, size)), label


def _ring_of_trees() -> Content:
    """Eight small trees, whose roots lie on a ring."""
    angle = 2 * np.pi * np.arange(8) / 8
    roots = 3 * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    rng = np.random.default_rng(6)
    label = np.arange(COUNT) % 8
    points = np.zeros((COUNT, 12))
    points[:, :2] = roots[label]
    for level in range(4):
        count = 2 ** (level + 1)
        steps = 1.6 * 0.75**level * rng.standard_normal((8, count, 12))
        points += steps[label, rng.integers(count, size=COUNT)]
    return points, label


def _noise(size: int, seed: int) -> Content:
    """Vectors without any structure; which side of a plane is each on?"""
    points = np.random.default_rng(seed).standard_normal((COUNT, size))
    return points, (points[:, :4].sum(axis=1) > 0).astype(int)


def _low_rank(rank: int, seed: int) -> Content:
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((COUNT, rank))
    points = hidden @ rng.standard_normal((rank, 48)) + 0.5 * rng.standard_normal((COUNT, 48))
    return points, np.tanh(hidden[:, 0]) + hidden[:, 1] * hidden[:, 2] / 2


def _duplicates() -> Content:
    """Forty vectors, each eight times; in one of six copies the class is wrong."""
    rng = np.random.default_rng(8)
    points = np.tile(rng.standard_normal((40, 10)), (8, 1))
    label = np.tile(rng.integers(4, size=40), 8)
    wrong = rng.random(COUNT) < 1 / 6
    return points, np.where(wrong, rng.integers(4, size=COUNT), label)


def _needles() -> Content:
    """Two coordinates that matter among thirty that do not."""
    rng = np.random.default_rng(9)
    label = np.arange(COUNT) % 3
    points = rng.standard_normal((COUNT, 32))
    points[:, :2] += 3 * np.stack((np.cos(2.1 * label), np.sin(2.1 * label)), axis=1)
    return points, label


def _moons() -> Content:
    points, label = make_moons(COUNT, noise=0.15, random_state=20)
    return _embedded(points, 4, 0.05, 20), label


def _shells() -> Content:
    """Three spheres around one centre."""
    rng = np.random.default_rng(21)
    label = np.arange(COUNT) % 3
    points = rng.standard_normal((COUNT, 5))
    points *= ((1 + label) / np.linalg.norm(points, axis=1))[:, None]
    return points + 0.15 * rng.standard_normal((COUNT, 5)), label


def _corners(size: int, seed: int) -> Content:
    """Noise, and the product of two of its signs."""
    points = np.random.default_rng(seed).standard_normal((COUNT, size))
    return points, (points[:, 0] * points[:, 1] > 0).astype(int)


def _linear(size: int, seed: int) -> Content:
    """Noise, and a number that is linear in all of it."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((COUNT, size))
    return points, points @ rng.standard_normal(size) / np.sqrt(size)


def _caveman() -> Content:
    """Ten groups of friends who know few others; coordinates are eigenvectors of the Laplacian."""
    graph = nx.relaxed_caveman_graph(10, 20, 0.25, seed=24)
    laplacian = nx.normalized_laplacian_matrix(graph).toarray()
    return np.linalg.eigh(laplacian)[1][:, 1:11], np.arange(200) // 20


def _karate() -> Content:
    """Zachary's club: which side did a member take? Rows of the adjacency matrix, normalised."""
    graph = nx.karate_club_graph()
    matrix = nx.to_numpy_array(graph, weight=None) + np.eye(len(graph))
    degree = np.sqrt(matrix.sum(axis=1))
    club = np.array([graph.nodes[node]["club"] == "Officer" for node in graph])
    return matrix / degree[:, None] / degree, club.astype(int)


def _bundled(name: str) -> Callable[[], Content]:
    def content() -> Content:
        found = load(name)
        vectors, labels = np.asarray(found.vectors, float), np.asarray(found.labels)
        chosen = np.random.default_rng(0).permutation(len(vectors))[:COUNT]
        return vectors[chosen], labels[chosen]

    return content


SHAPES = (
    Shape("binary-tree", "tree", lambda: _tree(2, 6, 12, 0), Part.TUNING),
    Shape("broad-tree", "tree", lambda: _tree(4, 3, 24, 10), Part.TEST),
    Shape("cycle", "cycle", _cycle, Part.TUNING),
    Shape("knot", "cycle", _knot, Part.TEST),
    Shape("grid", "grid", _grid, Part.TUNING),
    Shape("surface", "grid", _surface, Part.TEST),
    Shape("mixture-8", "mixture", lambda: _mixture(8, 0.6, 5, 5), Part.TUNING),
    Shape("mixture-64", "mixture", lambda: _mixture(64, 1.5, 8, 15), Part.TEST),
    Shape("ring-of-trees", "ring of trees", _ring_of_trees, Part.TEST),
    Shape("noise-16", "noise", lambda: _noise(16, 7), Part.TUNING),
    Shape("noise-64", "noise", lambda: _noise(64, 17), Part.TEST),
    Shape("rank-3", "low rank", lambda: _low_rank(3, 8), Part.TUNING),
    Shape("rank-6", "low rank", lambda: _low_rank(6, 18), Part.TEST),
    Shape("duplicates", "duplicates", _duplicates, Part.TUNING),
    Shape("needles", "few that matter", _needles, Part.TEST),
    Shape("digits", "images", _bundled("digits"), Part.TUNING),
    Shape("breast-cancer", "measurements", _bundled("breast-cancer"), Part.TEST),
    Shape("iris", "measurements", _bundled("iris"), Part.TEST),
    Shape("wine", "measurements", _bundled("wine"), Part.TUNING),
    Shape("directions", "directions", _bundled("directions"), Part.TUNING),
    Shape("swiss-roll", "rolled sheet", _bundled("swiss-roll"), Part.TEST),
    Shape("karate", "graph", _karate, Part.TEST),
    Shape("diabetes", "measurements", _bundled("diabetes"), Part.TUNING),
    Shape("moons", "two arcs", _moons, Part.FRESH),
    Shape("shells", "spheres", _shells, Part.FRESH),
    Shape("corners-8", "noise", lambda: _corners(8, 22), Part.FRESH),
    Shape("linear-24", "noise", lambda: _linear(24, 23), Part.FRESH),
    Shape("linear-96", "noise", lambda: _linear(96, 25), Part.FRESH),
    Shape("mixture-24", "mixture", lambda: _mixture(24, 1.2, 6, 26), Part.FRESH),
    Shape("caveman", "graph", _caveman, Part.FRESH),
    Shape("deep-tree", "tree", lambda: _tree(2, 8, 32, 27), Part.FRESH),
)
