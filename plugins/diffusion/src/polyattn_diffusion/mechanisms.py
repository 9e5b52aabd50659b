"""The mechanisms: each a function of the Laplacian."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyattn_core.arrays import Array, as_array
from polyattn_core.errors import ArgumentError, ShapeError

from .base import KeyGraphMechanism, ParameterPullback
from .filters import Filter, Polynomial, euler, expand, uniformised
from .graph import KeyGraph, NeighbourGraph
from .operators import Drift, Operator
from .resolvent import Resolvent


def _fixed(d_coefficients: Array) -> dict[str, Array]:
    return {}


class Diffusion(KeyGraphMechanism):
    """Attention as heat: weights diffuse over the similarity graph of the keys.

        softmax(scale · q·kᵀ) e^{−tL} v

    where L is a Laplacian of wᵢⱼ = exp(−‖kᵢ − kⱼ‖²/2σ²) over all pairs i ≠ j, or over the k nearest
    neighbours, and scale is 1/√(head size) unless given. The weights of a query are the initial
    heat, so t = 0 is plain attention; as t grows keys share their weight with those like them. With
    the Laplacians `unnormalized` and `random-walk` weights stay positive and sum to 1; with
    `symmetric-normalized` it is their sum weighted by √dᵢ that is kept.

    e^{−tL} is expanded in Chebyshev polynomials to `tolerance`: O(√(t λ) + t λ ε) products L v,
    each O(n² d) time over all pairs in tiles that are never stored, or O(n k d) over neighbours
    after an exact search in O(n² d); O(n d) memory, times the number of terms for gradients. With
    `num_steps` explicit Euler steps take its place, refused where they are unstable. Products are
    shared by all queries, and the graph by all calls with the same keys.

    Gradients are by everything, also by the keys through the graph and its bandwidth; which keys
    are neighbours is taken as given. Shapes and errors are those of
    :meth:`polyattn_core.mechanism.Mechanism.attend`; masks are padding masks, which hide a key from
    the graph too.

    References
    ----------
    Kondor and Lafferty, Diffusion kernels on graphs, ICML 2002. Gasteiger et al., Diffusion
    improves graph learning, arXiv:1911.05485.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> keys = np.array([[0.0], [0.1], [5.0]])
    >>> for t in (0.0, 1.0, 100.0):
    ...     diffusion = pa.create("diffusion", dim=1, t=t, sigma=1.0, laplacian_type="random-walk")
    ...     print(diffusion([3.0], keys, np.eye(3)).round(3))
    [0. 0. 1.]
    [0.288 0.344 0.368]
    [0.5 0.5 0. ]
    """

    def _filter(self, operator: Operator, dtype: str) -> tuple[Filter, ParameterPullback]:
        return self._heat(operator, dtype, self.config.t), _fixed

    def _heat(self, operator: Operator, dtype: str, t: float) -> Polynomial:
        steps = self.config.num_steps
        if steps is not None:
            return euler(t, steps, operator.bound)
        return expand(lambda x: np.exp(-t * x), operator.reach, self._tolerance(dtype), "t")

    def compute_diffusion(self, query: Any, keys: Any, values: Any) -> Array:
        """The output: the same as calling the mechanism."""
        return self(query, keys, values)

    def compute_multiscale(self, query: Any, keys: Any, scales: int = 4) -> Array:
        """The weights of a query at several times, from local to global.

        Scale s of S has the time t·2^{s−S+1}: the last reaches t.

        Parameters
        ----------
        query, keys
            (dim,) or (…, queries, dim), and (…, keys, dim); all heads.
        scales
            Number of scales.

        Returns
        -------
        (scales, keys) or (scales, …, heads, queries, keys).
        """
        if not isinstance(scales, int | np.integer) or scales < 1:
            raise ArgumentError("scales", scales, "a number of scales of at least 1")
        given = as_array(keys, "keys")
        if given.ndim < 2:
            raise ShapeError("keys", given.shape, "(…, keys, dim)")
        q, k, _, single = self._split(query, given, given)
        call, lead, dtype = self._prepare(q, k, k, None, None, False, None, {})
        operator = self._operator(self._graph(call), call.key)
        from .kernels import engine

        request, _ = self._request(call)
        weights = engine.gather(request, engine.forward(request), frozenset(("weights",)))
        found = [
            self._spread(operator, self._heat(operator, call.dtype.name, t), weights["weights"])
            for t in self.config.t * 2.0 ** np.arange(1 - scales, 1)
        ]
        stacked = np.stack(found).astype(dtype)
        if single and self.config.heads == 1:
            return stacked.reshape(scales, -1)
        return stacked.reshape(scales, *lead, *stacked.shape[2:])


class MultiscaleDiffusion(KeyGraphMechanism):
    """A learned mixture of diffusion times for each head.

        Σₛ mₛ softmax(scale · q·kᵀ) e^{−tₛL} v
        tₛ = t · ratio^{s−S+1},   m = softmax(scale_logits)

    for the scales s = 0 … S − 1: the last reaches t, the first are local. The parameter
    `scale_logits` (key heads, scales) starts at 0, an even mixture. As the mixture is a filter
    itself, all scales cost as many products as the last one alone: O(n² d) each, or O(n k d) over
    neighbours, see :class:`Diffusion`, as for shapes, errors, masks and gradients.

    References
    ----------
    Several diffusion times on one graph: Coifman and Maggioni, Diffusion wavelets, ACHA 2006;
    Gasteiger et al., Diffusion improves graph learning, arXiv:1911.05485.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((2, 100, 64), np.float32)
    >>> attention = pa.create("multiscale-diffusion", dim=64, heads=4, t=2.0, use_knn=True, k=8)
    >>> attention(x).shape, attention.times
    ((2, 100, 64), array([0.25, 0.5 , 1.  , 2.  ]))
    """

    @property
    def times(self) -> Array:
        """The times of the scales."""
        config = self.config
        found: Array = config.t * config.ratio ** np.arange(1.0 - config.scales, 1.0)
        return found

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        return {"scale_logits": np.zeros((self.config.key_heads, self.config.scales), np.float32)}

    def _filter(self, operator: Operator, dtype: str) -> tuple[Filter, ParameterPullback]:
        times = self.times
        logits = self.parameters["scale_logits"].astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        each = expand(
            lambda x: np.exp(-times * x[:, None]), operator.reach, self._tolerance(dtype), "t"
        )
        series = each.coefficients[:, :, 0, 0]
        mixed = Polynomial((series @ shares.T)[:, :, None, None], each.step)

        def pull(d_coefficients: Array) -> dict[str, Array]:
            d_shares = d_coefficients.T.astype(np.float64) @ series
            mean = (shares * d_shares).sum(axis=1, keepdims=True)
            return {"scale_logits": shares * (d_shares - mean)}

        return mixed, pull


class PersonalisedPageRank(KeyGraphMechanism):
    """Random walks over the keys that return to where attention put them.

        softmax(scale · q·kᵀ) · α (α + (1 − α) L)^{−1} v

    which for the random-walk Laplacian is Σₘ α(1 − α)ᵐ p (D^{−1}W)ᵐ v, a walk that at each step
    teleports back to the attention weights p with probability α; α = 1 is plain attention. The
    inverse is applied by conjugate gradients to `tolerance`: one product a step, of O(n² d), or of
    O(n k d) over neighbours, and O(log(1/tolerance)/√α) steps, fewer where the graph has few
    distinct eigenvalues; with gradients twice that. See :class:`Diffusion` for the graph, and for
    shapes, errors, masks and gradients.

    References
    ----------
    Gasteiger et al., Predict then propagate: graph neural networks meet personalized PageRank,
    arXiv:1810.05997.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> ppr = pa.create("ppr", dim=1, alpha=0.5, sigma=1.0)
    >>> ppr([3.0], np.array([[0.0], [0.1], [5.0]]), np.eye(3)).round(3)
    array([0.23, 0.27, 0.5 ])
    """

    def _filter(self, operator: Operator, dtype: str) -> tuple[Filter, ParameterPullback]:
        return Resolvent(self.config.alpha, self._tolerance(dtype)), _fixed


class ChebyshevFilter(KeyGraphMechanism):
    """A learned polynomial of the Laplacian for each head.

        softmax(scale · q·kᵀ) Σₘ cₘ Tₘ(2L/λ − 1) v,   m = 0 … order

    with Chebyshev polynomials Tₘ and λ at least the largest eigenvalue (2 where L is normalised).
    The parameter `coefficients` (key heads, order + 1) starts as the series of e^{−x} on [0, 2].
    `order` products of O(n² d), or O(n k d) over neighbours; see :class:`Diffusion` for the graph,
    and for shapes, errors and masks. With the unnormalised Laplacian λ depends on the keys, and its
    share in their gradient is left out.

    References
    ----------
    Defferrard et al., Convolutional neural networks on graphs with fast localized spectral
    filtering, arXiv:1606.09375.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> x = np.random.default_rng(0).standard_normal((2, 100, 64), np.float32)
    >>> attention = pa.create("chebyshev", dim=64, heads=4, order=3, use_knn=True, k=8)
    >>> attention(x).shape, attention.parameters["coefficients"].shape
    ((2, 100, 64), (4, 4))
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        order = self.config.order
        found = expand(lambda x: np.exp(-x), 2.0, 1e-15, "order").coefficients[:, 0, 0, 0]
        series = np.zeros(order + 1, np.float32)
        series[: len(found)] = found[: order + 1]
        return {"coefficients": np.tile(series, (self.config.key_heads, 1))}

    def _filter(self, operator: Operator, dtype: str) -> tuple[Filter, ParameterPullback]:
        c = self.parameters["coefficients"].T[:, :, None, None]
        bound = max(operator.bound, float(np.finfo(np.float32).tiny))
        return Polynomial(c, 2 / bound), lambda found: {"coefficients": found.T}


class Wave(KeyGraphMechanism):
    """Attention that oscillates over the graph of the keys instead of levelling out.

        softmax(scale · q·kᵀ) cos(t √L) v

    the solution at time t of the wave equation u″ = −L u that starts from the values at rest. Its
    energy ‖u′‖² + u·L u is kept, so nothing is smoothed away; weights may become negative. It is
    expanded in Chebyshev polynomials to `tolerance`: O(t √λ) products of O(n² d), or O(n k d) over
    neighbours; see :class:`Diffusion` for the graph, and for shapes, errors, masks and gradients.

    References
    ----------
    Eliasof et al., PDE-GCN: novel architectures for graph neural networks motivated by partial
    differential equations, arXiv:2108.01938.

    Examples
    --------
    Two keys exchange their values and take them back, with period 2π/√2 at eigenvalue 2:

    >>> import numpy as np, polyattn as pa
    >>> half = pa.create("wave", dim=1, t=np.pi / np.sqrt(2), sigma=1.0)
    >>> half([30.0], [[-1.0], [1.0]], np.eye(2)).round(6) + 0.0
    array([1., 0.])
    """

    def _filter(self, operator: Operator, dtype: str) -> tuple[Filter, ParameterPullback]:
        t = self.config.t

        def cosine(x: Array) -> Array:
            found: Array = np.cos(t * np.sqrt(np.maximum(x, 0)))
            return found

        return expand(cosine, operator.reach, self._tolerance(dtype), "t"), _fixed


class AdvectionDiffusion(KeyGraphMechanism):
    """Weights that diffuse and drift: uphill in a learned direction of key space.

        softmax(scale · q·kᵀ) e^{tQ} v,   qᵢⱼ = (1 + max(drift·(kⱼ − kᵢ), 0)) wᵢⱼ/dᵢ

    for neighbours i ≠ j, where rows of Q sum to 0: the generator of a random walk whose steps up
    the potential drift·k are faster (upwind, so that no weight becomes negative, and their sum
    stays 1). The parameter `drift` (key heads, head size) is drawn with variance 1/size; 0 gives
    `diffusion` with the random-walk Laplacian. e^{tQ} is summed by uniformisation, a series of
    positive terms with a known rest: O(t · largest rate) products of O(n k d), after an exact
    search for neighbours in O(n² d). Shapes, errors, masks and gradients as for
    :class:`Diffusion`.

    References
    ----------
    Eliasof et al., Feature transportation improves graph neural networks, arXiv:2307.16092.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> attention = pa.create("advection-diffusion", dim=1, t=2.0, k=1, sigma=1.0)
    >>> line = np.arange(5.0)[:, None]
    >>> for drift in (0.0, 3.0):
    ...     attention.parameters.update({"drift": np.array([[drift]])})
    ...     print(attention([0.0], line, np.eye(5)).round(2))
    [0.13 0.25 0.24 0.25 0.13]
    [0.01 0.05 0.12 0.3  0.52]
    """

    def _initial_parameters(self, rng: np.random.Generator) -> dict[str, Array]:
        config = self.config
        drift = rng.normal(0, config.head_dim**-0.5, (config.key_heads, config.head_dim))
        return {"drift": drift.astype(np.float32)}

    def _operator(self, graph: KeyGraph, key: Array) -> Operator:
        assert isinstance(graph, NeighbourGraph)
        return Drift(graph, key, self.parameters["drift"])

    def _filter(self, operator: Operator, dtype: str) -> tuple[Filter, ParameterPullback]:
        return uniformised(self.config.t, operator.bound, self._tolerance(dtype)), _fixed
