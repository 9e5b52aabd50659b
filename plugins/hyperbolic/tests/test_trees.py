"""Sarkar's embedding of a tree into the disc, and what attention finds in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np

Create = Callable[..., Any]


def sarkar(tree: Any, root: int, length: float) -> np.ndarray:
    """Each edge `length` long, children spread around their parent (Sarkar 2011).

    Points of the disc as complex numbers: a Möbius map takes the parent to 0, where the directions
    of its neighbours are equally spaced.
    """
    place = {root: 0j}
    step = np.tanh(length / 2)
    for node in nx.dfs_preorder_nodes(tree, root):
        p = place[node]
        known = [n for n in tree[node] if n in place]
        new = [n for n in tree[node] if n not in place]
        turn = 0.0
        if known:
            z = place[known[0]]
            turn = float(np.angle((z - p) / (1 - np.conj(p) * z)))
        for i, child in enumerate(new):
            angle = turn + 2 * np.pi * (i + len(known)) / (len(new) + len(known))
            w = step * np.exp(1j * angle)
            place[child] = (w + p) / (1 + np.conj(p) * w)
    return np.array([[place[n].real, place[n].imag] for n in sorted(tree)])


TREE = nx.balanced_tree(2, 5)
HOPS = np.array(
    [[d[j] for j in sorted(TREE)] for _, d in sorted(nx.all_pairs_shortest_path_length(TREE))]
)


def scores(mechanism: Any, x: np.ndarray) -> np.ndarray:
    seen = mechanism.observe(x[None], x[None], np.ones((1, len(x), 1)), "weights", "log_sum_exp")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(seen.weights[0]) + seen.log_sum_exp[0, :, None])


def test_distortion(create: Create) -> None:
    """Distances as the mechanism sees them are those of the tree, nearly: its branches are long."""
    length = 1.5
    points = sarkar(TREE, 0, length)
    mechanism = create("hyperbolic", dim=2, coordinates="ball", aggregation="average")
    apart = ~np.eye(len(points), dtype=bool)
    ratio = -scores(mechanism, points)[apart] / (length * HOPS[apart])
    assert ratio.max() < 1 + 1e-6
    assert ratio.max() / ratio.min() < 1.45
    # The same tree in the plane, by its best two coordinates: classical scaling.
    centred = -0.5 * HOPS.astype(float) ** 2
    centred -= centred.mean(0)
    centred -= centred.mean(1, keepdims=True)
    value, vector = np.linalg.eigh(centred)
    plane = vector[:, -2:] * np.sqrt(value[-2:])
    flat = np.linalg.norm(plane[:, None] - plane[None], axis=-1)[apart] / HOPS[apart]
    assert flat.max() / max(flat.min(), 1e-9) > 10


def test_neighbours_are_retrieved_better_than_by_products(create: Create) -> None:
    """Of each leaf: is its parent what it attends to most, of all other nodes?"""
    points = sarkar(TREE, 0, 1.5)
    leaves = [n for n in TREE if TREE.degree[n] == 1]
    parents = [next(iter(TREE[n])) for n in leaves]
    mechanism = create("hyperbolic", dim=2, coordinates="ball", aggregation="average")

    def found(score: np.ndarray) -> float:
        score = score.copy()
        np.fill_diagonal(score, -np.inf)
        return float(np.mean(score[leaves].argmax(axis=1) == parents))

    hyperbolic, products = found(scores(mechanism, points)), found(points @ points.T)
    assert hyperbolic == 1.0
    assert products < 0.1
