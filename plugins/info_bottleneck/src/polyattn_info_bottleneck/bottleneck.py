"""The layer: samples, their price, and compressed attention weights."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError

from .config import IBConfig, checked_step
from .divergences import DiagonalGaussian, KLDivergence, _distribution


class InformationBottleneck:
    """A variational information bottleneck.

    An input is encoded as a Gaussian N(μ, σ²), of which a sample z is passed on. Each input costs
    β KL(N(μ, σ²)‖N(0, 1)), an upper bound of β I(input; z): codes forget what does not pay.

    Parameters
    ----------
    config
        `IBConfig`; its defaults where nothing is passed.

    References
    ----------
    Alemi et al., Deep variational information bottleneck, arXiv:1612.00410. Tishby, Pereira and
    Bialek, The information bottleneck method, arXiv:physics/0004057.

    Examples
    --------
    >>> import numpy as np
    >>> layer = InformationBottleneck(IBConfig(beta=0.1, z_dim=2, anneal_steps=100))
    >>> layer.beta_at(50), layer.beta_at(1000)
    (0.05, 0.1)
    >>> layer.sample([1.0, 2.0], [0.0, 0.0], epsilon=[0.5, -0.5])
    array([1.5, 1.5])
    >>> round(float(layer.compute_kl_loss([1.0, 2.0], [0.0, 0.0])), 6)
    0.25
    """

    def __init__(self, config: IBConfig | None = None) -> None:
        self.config = IBConfig() if config is None else config

    def beta_at(self, step: int | None = None) -> float:
        """β at a training step; its final value where none is given."""
        return annealed(self.config.beta, self.config.anneal_steps, step)

    def sample(self, mean: Any, log_var: Any, epsilon: Any) -> Array:
        """z = μ + σ ε, (…, z_dim); ε is standard normal noise, or a `numpy.random.Generator`."""
        gaussian = self._gaussian(mean, log_var)
        if isinstance(epsilon, np.random.Generator):
            return gaussian.draw(epsilon)
        return gaussian.sample(epsilon)

    def sample_pullback(
        self, mean: Any, log_var: Any, epsilon: Any, gradient: Any
    ) -> tuple[Array, Array]:
        """Gradients by mean and log_var, from one by the sample."""
        found = self._gaussian(mean, log_var).sample_pullback(epsilon, gradient)
        return found.mean, found.log_var

    def compute_kl_loss(self, mean: Any, log_var: Any, step: int | None = None) -> float:
        """β KL(N(μ, σ²)‖N(0, 1)), the mean over all leading axes."""
        kl = KLDivergence.gaussian_to_unit(self._gaussian(mean, log_var))
        return self.beta_at(step) * float(kl.mean())

    def kl_loss_gradient(
        self, mean: Any, log_var: Any, step: int | None = None
    ) -> tuple[Array, Array]:
        """Gradients of `compute_kl_loss` by mean and log_var."""
        gaussian = self._gaussian(mean, log_var)
        found = KLDivergence.gaussian_to_unit_gradient(gaussian)
        factor = self.beta_at(step) * gaussian.mean.shape[-1] / gaussian.mean.size
        return factor * found.mean, factor * found.log_var

    def compress_attention_weights(
        self, weights: Any, temperature: float = 1.0, *, step: int | None = None,
        prior: Literal["uniform", "marginal"] | Array = "uniform", iterations: int = 20,
    ) -> tuple[Array, float]:  # fmt: skip
        """Weights that give up information for which β is too high a price.

        For each row p of the weights, sharpened to p^{1/T}, the minimiser of

            KL(r‖p^{1/T}) + β KL(r‖u)   is   r ∝ p^{1/(T(1 + β))} u^{β/(1 + β)}

        Parameters
        ----------
        weights
            (…, keys), or (…, queries, keys) where the prior is the marginal.
        temperature
            T: above 1 rows are flatter, below 1 sharper. See `TemperatureAnnealing`.
        step
            Training step, for an annealed β.
        prior
            u: uniform; the mean of the rows r themselves, so that the second term is the mutual
            information of query and key (iterated as by Blahut and Arimoto, each iteration lowers
            the objective); or an array that broadcasts to the weights.
        iterations
            Of the marginal.

        Returns
        -------
        The compressed weights, and the price β·KL(r‖u), the mean over rows. Weights of 0 stay 0.
        """
        p = _distribution(weights, "weights")
        if not 0 < temperature < np.inf:
            raise ArgumentError("temperature", temperature, "a finite number greater than 0")
        if iterations < 1:
            raise ArgumentError("iterations", iterations, "at least 1")
        beta = self.beta_at(step)
        with np.errstate(divide="ignore"):
            logs = np.log(p) / temperature
        if isinstance(prior, np.ndarray):
            u = np.broadcast_to(_distribution(prior, "prior"), p.shape)
        elif prior == "uniform":
            u = np.full_like(p, 1 / p.shape[-1])
        elif prior == "marginal":
            if p.ndim < 2:
                raise ArgumentError("weights", p.shape, "(…, queries, keys) for the marginal prior")
            u = np.full_like(p, 1 / p.shape[-1])
            for _ in range(iterations):
                rows = _tilted(logs, u, beta)
                u = np.broadcast_to(rows.mean(axis=-2, keepdims=True), p.shape)
        else:
            raise ArgumentError("prior", prior, '"uniform", "marginal" or an array')
        compressed = _tilted(logs, u, beta)
        return compressed, beta * float(KLDivergence.categorical(compressed, u).mean())

    def _gaussian(self, mean: Any, log_var: Any) -> DiagonalGaussian:
        gaussian = DiagonalGaussian(mean, log_var)
        if gaussian.mean.shape[-1] != self.config.z_dim:
            wanted = f"a last axis of z_dim={self.config.z_dim}"
            raise ArgumentError("mean", gaussian.mean.shape, wanted)
        return gaussian


def _tilted(logs: Array, prior: Array, beta: float) -> Array:
    """exp(logs)^{1/(1+β)} prior^{β/(1+β)}, normalised."""
    with np.errstate(divide="ignore", invalid="ignore"):
        pull = np.log(prior) * (beta / (1 + beta)) if beta else np.zeros_like(prior)
        scores = np.where(np.isneginf(logs), -np.inf, logs / (1 + beta) + pull)
    grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=-1, keepdims=True))


def annealed(beta: float, anneal_steps: int, step: int | None) -> float:
    """β, or its share at a step while it grows."""
    if step is None:
        return beta
    number = checked_step(step)
    return beta if number >= anneal_steps else beta * number / anneal_steps
