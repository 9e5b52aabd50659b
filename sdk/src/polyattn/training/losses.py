"""Losses on embeddings, each with its gradients.

A loss is called with arrays and returns ``(value, gradients)``: the mean over all that it compares,
and an array for each input, by the name of the input.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, ShapeError
from polyattn_core.products import matmul
from polyattn_core.simd import contrastive

from ._checks import alike, flag, real, same_shape, vectors

Result = tuple[float, dict[str, Array]]

_TILE = 512  # queries whose products are in memory at once


class InfoNCE:
    """The cross-entropy of finding the positive of each query among negatives.

    L = −mean over i of log( exp(s(q_i, p_i)/τ) / Σ_j exp(s(q_i, c_j)/τ) )

    where s is the cosine (the inner product without `normalise`), τ the `temperature`, and the
    candidates c are the positives of all queries, or p_i and the negatives where these are given.
    Time O(n m d) for m candidates; memory O(n d + 512 m).

    Parameters
    ----------
    temperature
        τ > 0. A call may give another one: ``loss(query, positive, temperature=0.1)``.
    normalise
        Compare directions: all vectors are divided by their lengths first.

    References
    ----------
    van den Oord et al., Representation learning with contrastive predictive coding,
    arXiv:1807.03748; Chen et al., SimCLR, arXiv:2002.05709.

    Examples
    --------
    >>> import numpy as np
    >>> loss = InfoNCE(temperature=0.1)
    >>> value, gradients = loss(np.eye(4), np.eye(4))
    >>> round(value, 6), gradients["query"].shape
    (0.000136, (4, 4))
    """

    def __init__(self, *, temperature: float = 0.07, normalise: bool = True) -> None:
        self.temperature = real("temperature", temperature, above=0)
        self.normalise = flag("normalise", normalise)

    def __call__(
        self, query: Any, positive: Any, negatives: Any = None, *, temperature: float | None = None
    ) -> Result:
        """Value and gradients.

        Parameters
        ----------
        query, positive
            (…, n, d): row i of one belongs to row i of the other. Without `negatives`, the other
            rows of `positive` in the same batch are the negatives.
        negatives
            (…, n, m, d) for those of each query, (…, m, d) for those of all queries of a batch.
        temperature
            Instead of that of the loss.
        """
        tau = self.temperature if temperature is None else real(
            "temperature", temperature, above=0
        )  # fmt: skip
        arrays = {"query": vectors("query", query, 2), "positive": vectors("positive", positive, 2)}
        shape = arrays["query"].shape
        same_shape("query", shape, positive=arrays["positive"])
        if negatives is not None:
            arrays["negatives"] = found = vectors("negatives", negatives, 2)
            shared, own = (*shape[:-2], -1, shape[-1]), (*shape[:-1], -1, shape[-1])
            sizes = (*found.shape[:-2], -1, found.shape[-1])
            if sizes not in (shared, own):
                accepted = f"{shared} for all queries or {own} for each, like query {shape}"
                raise ShapeError("negatives", found.shape, accepted)
        alike(**arrays)
        backs = {}
        if self.normalise:
            for name, array in arrays.items():
                arrays[name], backs[name] = _directions(name, array)
        gradients = {name: np.zeros_like(array) for name, array in arrays.items()}
        queries = shape[-2]
        losses = np.empty(arrays["query"].shape[:-1], arrays["query"].dtype)
        weight = 1 / losses.size
        for lead in np.ndindex(shape[:-2]):
            parts = {name: array[lead] for name, array in arrays.items()}
            into = {name: array[lead] for name, array in gradients.items()}
            for start in range(0, queries, _TILE):
                rows = slice(start, min(start + _TILE, queries))
                loss = losses[lead][rows]
                if negatives is None:
                    _among_positives(parts, into, rows, 1 / tau, weight, loss)
                else:
                    _among_negatives(parts, into, rows, 1 / tau, weight, loss)
        for name, (lengths, array) in backs.items():
            g = gradients[name]
            g -= np.einsum("...d,...d->...", g, array)[..., None] * array
            g /= lengths
        return float(losses.mean(dtype=np.float64)), gradients


def _directions(name: str, array: Array) -> tuple[Array, tuple[Array, Array]]:
    lengths = np.sqrt(np.einsum("...d,...d->...", array, array))[..., None]
    if not lengths.all():
        raise ArgumentError(name, "a vector of zeros", "vectors that have a direction")
    units = array / lengths
    return units, (lengths, units)


def _among_positives(
    parts: dict[str, Array], into: dict[str, Array], rows: slice, scale: float, weight: float,
    losses: Array,
) -> None:  # fmt: skip
    query, positive = parts["query"][rows], parts["positive"]
    products = matmul(query, positive.T)
    contrastive.cross_entropy(products, np.arange(rows.start, rows.stop), scale, weight, losses)
    into["query"][rows] = matmul(products, positive)
    into["positive"] += matmul(products.T, query)


def _among_negatives(
    parts: dict[str, Array], into: dict[str, Array], rows: slice, scale: float, weight: float,
    losses: Array,
) -> None:  # fmt: skip
    query, positive, negatives = parts["query"][rows], parts["positive"][rows], parts["negatives"]
    own = negatives.ndim == 3
    if own:
        negatives = negatives[rows]
    products = np.empty((len(query), 1 + negatives.shape[-2]), query.dtype)
    np.einsum("id,id->i", query, positive, out=products[:, 0])
    products[:, 1:] = (
        np.matmul(negatives, query[..., None])[..., 0] if own else matmul(query, negatives.T)
    )  # fmt: skip
    contrastive.cross_entropy(products, np.zeros(len(query), np.int64), scale, weight, losses)
    of_positive, others = products[:, :1], products[:, 1:]
    into["positive"][rows] = of_positive * query
    if own:
        into["query"][rows] = np.matmul(others[:, None], negatives)[:, 0]
        into["negatives"][rows] = others[..., None] * query[:, None]
    else:
        into["query"][rows] = matmul(others, negatives)
        into["negatives"] += matmul(others.T, query)
    into["query"][rows] += of_positive * positive


class Triplet:
    """Positives must be nearer to their anchors than negatives are, by a margin.

    L = mean of max(0, D(a, p) − D(a, n) + margin)

    Parameters
    ----------
    margin
        By how much nearer.
    squared
        D is the squared distance, as in FaceNet, instead of the distance.
    swap
        The negative is compared with whichever of anchor and positive is nearer to it.

    References
    ----------
    Schroff et al., FaceNet, arXiv:1503.03832; Balntas et al., Learning shallow convolutional
    feature descriptors with triplet losses, BMVC 2016 (the swap).
    """

    def __init__(self, *, margin: float = 1.0, squared: bool = False, swap: bool = False) -> None:
        self.margin = real("margin", margin, least=0)
        self.squared, self.swap = flag("squared", squared), flag("swap", swap)

    def __call__(self, anchor: Any, positive: Any, negative: Any) -> Result:
        """Value and gradients for arrays (…, d) of one shape; 0 where vectors coincide."""
        a, p = vectors("anchor", anchor), vectors("positive", positive)
        n = vectors("negative", negative)
        same_shape("anchor", a.shape, positive=p, negative=n)
        alike(anchor=a, positive=p, negative=n)
        to_positive, slope_positive = self._distance(a - p)
        to_negative, slope_negative = self._distance(a - n)
        swapped = np.zeros(to_negative.shape, np.bool_)
        if self.swap:
            between, slope_between = self._distance(p - n)
            swapped = between < to_negative
            to_negative = np.where(swapped, between, to_negative)
            slope_negative = np.where(swapped[..., None], slope_between, slope_negative)
        excess = to_positive - to_negative + self.margin
        weight = (excess > 0)[..., None] / a.dtype.type(excess.size)
        pulled = (slope_positive * weight).astype(a.dtype)
        pushed = (slope_negative * weight).astype(a.dtype)
        own = np.where(swapped[..., None], 0, pushed)
        gradients = {
            "anchor": pulled - own,
            "positive": (own - pushed) - pulled,
            "negative": pushed,
        }
        return float(np.maximum(excess, 0).mean(dtype=np.float64)), gradients

    def _distance(self, difference: Array) -> tuple[Array, Array]:
        """Distances and their derivatives by the difference."""
        square = np.einsum("...d,...d->...", difference, difference)
        if self.squared:
            return square, 2 * difference
        length = np.sqrt(square)
        return length, difference / np.where(length > 0, length, 1)[..., None]


class LocalContrastive:
    """Neighbours attract each other, all other pairs repel each other within a margin.

    L = mean over i ≠ j of ½ D² where j is a neighbour of i, ½ max(0, margin − D)² elsewhere

    where D = ‖x_i − x_j‖. Time O(n² d), memory O(n²).

    Parameters
    ----------
    margin
        Distance from which on pairs that are not neighbours leave each other alone.

    References
    ----------
    Hadsell, Chopra, LeCun, Dimensionality reduction by learning an invariant mapping, CVPR 2006.
    """

    def __init__(self, *, margin: float = 1.0) -> None:
        self.margin = real("margin", margin, above=0)

    def __call__(self, points: Any, neighbours: Any) -> Result:
        """Value and gradient.

        Parameters
        ----------
        points
            (…, n, d), at least two of them.
        neighbours
            (…, n, n) booleans, broadcast over leading axes; the diagonal is ignored.
        """
        x = vectors("points", points, 2)
        n = x.shape[-2]
        if n < 2:
            raise ShapeError("points", x.shape, "at least 2 points")
        near = np.asarray(neighbours)
        if near.dtype != np.bool_:
            raise ArgumentError("neighbours", str(near.dtype), "an array of booleans")
        try:
            near = np.broadcast_to(near, (*x.shape[:-1], n))
        except ValueError:
            accepted = f"shape {(*x.shape[:-1], n)} or one that broadcasts to it"
            raise ShapeError("neighbours", near.shape, accepted) from None
        # Differences of squares cancel where points are close: in float64, around their mean.
        wide = x.astype(np.float64)
        wide -= wide.mean(axis=-2, keepdims=True)
        squares = np.einsum("...d,...d->...", wide, wide)
        square = squares[..., None] + squares[..., None, :] - 2 * (wide @ wide.swapaxes(-1, -2))
        distance = np.sqrt(np.maximum(square, 0))
        missing = np.maximum(self.margin - distance, 0)
        different = ~np.eye(n, dtype=np.bool_)
        each = np.where(near, square, np.square(missing)) * different
        pairs = x.size // x.shape[-1] * (n - 1)
        apart = distance > 0
        push = np.where(apart, missing / np.where(apart, distance, 1), 0)
        pull = np.where(near, 1.0, -push) * different
        pull += pull.swapaxes(-1, -2)
        gradient = (pull.sum(axis=-1)[..., None] * wide - pull @ wide) / pairs
        return float(each.sum() / (2 * pairs)), {"points": gradient.astype(x.dtype)}


class Spectral:
    """Keeps embeddings from collapsing into few directions: a penalty on a covariance's spectrum.

    With the eigenvalues λ of the covariance C = XᶜᵀXᶜ/(n − 1) + ε I of centred embeddings,

    * ``"log-determinant"``: L = −mean log λ. Grows without bound as a direction dies out; also
      asks for large variances.
    * ``"spread"``: L = the variance of log λ. 0 for a round cloud of any size.

    Averaged over leading axes. Time O(n d² + d³).

    Parameters
    ----------
    form
        Which of the two.
    epsilon
        ε > 0, which bounds the first form from above.

    References
    ----------
    The first form is the log-determinant of Shwartz-Ziv et al., arXiv:2303.00633.
    """

    def __init__(self, *, form: str = "log-determinant", epsilon: float = 1e-4) -> None:
        if form not in ("log-determinant", "spread"):
            raise ArgumentError("form", form, "'log-determinant' or 'spread'")
        self.form, self.epsilon = form, real("epsilon", epsilon, above=0)

    def __call__(self, points: Any) -> Result:
        """Value and gradient for points (…, n, d), at least two of them."""
        x = vectors("points", points, 2)
        n, width = x.shape[-2:]
        if n < 2:
            raise ShapeError("points", x.shape, "at least 2 points")
        centred = x.astype(np.float64)
        centred -= centred.mean(axis=-2, keepdims=True)
        covariance = centred.swapaxes(-1, -2) @ centred / (n - 1)
        eigenvalues, axes = np.linalg.eigh(covariance + self.epsilon * np.eye(width))
        # Rounding may leave less than what was added to a covariance without a negative direction.
        eigenvalues = np.maximum(eigenvalues, self.epsilon)
        logs = np.log(eigenvalues)
        if self.form == "spread":
            deviations = logs - logs.mean(axis=-1, keepdims=True)
            values, slopes = np.square(deviations).mean(axis=-1), 2 * deviations
        else:
            values, slopes = -logs.mean(axis=-1), -np.ones_like(logs)
        slopes = slopes / (width * eigenvalues)
        by_covariance = (axes * slopes[..., None, :]) @ axes.swapaxes(-1, -2)
        gradient = centred @ by_covariance * (2 / (n - 1) / values.size)
        return float(values.mean()), {"points": gradient.astype(x.dtype)}


__all__ = ["InfoNCE", "LocalContrastive", "Result", "Spectral", "Triplet"]
