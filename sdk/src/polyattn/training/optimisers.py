"""Gradient descent with momentum, and Adam with two kinds of weight decay."""

from __future__ import annotations

from typing import Any

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError
from polyattn_core.simd import optimisers as kernels

from ._checks import flag, real
from .optimiser import Groups, Optimiser, Rate


class SGD(Optimiser):
    """θ ← θ − η v with v ← μ v + g + λ θ.

    Parameters
    ----------
    learning_rate
        η, a number or a schedule.
    momentum
        μ, from 0 to below 1.
    nesterov
        Steps by g + λ θ + μ v instead: the gradient where momentum leads. Needs momentum.
    weight_decay
        λ.
    groups
        Learning rates and weight decay of some parameters; see :class:`Optimiser`.

    References
    ----------
    Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> parameters = {"weight": np.ones(3)}
    >>> SGD(learning_rate=0.1).step(parameters, {"weight": np.ones(3)})
    >>> parameters["weight"]
    array([0.9, 0.9, 0.9])
    """

    name = "sgd"
    grouped: tuple[str, ...] = ("learning_rate", "weight_decay")

    def __init__(
        self,
        *,
        learning_rate: Rate = 1e-2,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(learning_rate=learning_rate, groups=groups)
        self.momentum = real("momentum", momentum, least=0, below=1)
        self.nesterov = flag("nesterov", nesterov)
        self.weight_decay = real("weight_decay", weight_decay, least=0)
        if self.nesterov and not self.momentum:
            raise ArgumentError("nesterov", True, "False, or a momentum above 0")
        if self.momentum:
            self.slots = ("velocity",)

    def _change(
        self,
        name: str,
        array: Array,
        gradient: Array,
        state: dict[str, Array],
        rate: float,
        step: int,
    ) -> None:
        velocity = state["velocity"].reshape(-1) if state else None
        kernels.sgd(
            array.reshape(-1), gradient.reshape(-1), velocity, rate=rate, momentum=self.momentum,
            coupled=self._option(name, "weight_decay"), nesterov=self.nesterov,
        )  # fmt: skip

    def options(self) -> dict[str, Any]:
        return {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
            **self._group_options(),
        }


class Adam(Optimiser):
    """θ ← θ − η m̂ / (√v̂ + ε): steps scaled by running means of gradients and their squares.

    m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ); weight
    decay λ adds λ θ to g.

    Parameters
    ----------
    learning_rate
        η, a number or a schedule.
    betas
        (β₁, β₂), both from 0 to below 1.
    epsilon
        ε > 0.
    weight_decay
        λ.
    groups
        Learning rates and weight decay of some parameters; see :class:`Optimiser`.

    References
    ----------
    Kingma and Ba, Adam: a method for stochastic optimization, arXiv:1412.6980.
    """

    name = "adam"
    slots = ("first", "second")
    grouped: tuple[str, ...] = ("learning_rate", "weight_decay")

    def __init__(
        self,
        *,
        learning_rate: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(learning_rate=learning_rate, groups=groups)
        try:
            first, second = betas
        except (TypeError, ValueError):
            raise ArgumentError("betas", betas, "two numbers from 0 to below 1") from None
        self.betas = tuple(real("betas", beta, least=0, below=1) for beta in (first, second))
        self.epsilon = real("epsilon", epsilon, above=0)
        self.weight_decay = real("weight_decay", weight_decay, least=0)

    def _change(
        self,
        name: str,
        array: Array,
        gradient: Array,
        state: dict[str, Array],
        rate: float,
        step: int,
    ) -> None:
        kernels.adam(
            array.reshape(-1), gradient.reshape(-1), state["first"].reshape(-1),
            state["second"].reshape(-1), rate=rate, betas=(self.betas[0], self.betas[1]),
            epsilon=self.epsilon, step=step, **self._decay(name),
        )  # fmt: skip

    def _decay(self, name: str) -> dict[str, float]:
        return {"coupled": self._option(name, "weight_decay")}

    def options(self) -> dict[str, Any]:
        return {
            "betas": list(self.betas),
            "epsilon": self.epsilon,
            "weight_decay": self.weight_decay,
            **self._group_options(),
        }


class AdamW(Adam):
    """Adam whose weight decay is apart from the gradient: θ ← (1 − η λ) θ before the step.

    References
    ----------
    Loshchilov and Hutter, Decoupled weight decay regularization, arXiv:1711.05101.

    Examples
    --------
    No decay for vectors, and smaller steps for what lies below:

    >>> optimiser = AdamW(
    ...     learning_rate=1e-3,
    ...     groups={"*.bias": {"weight_decay": 0.0}, "0.*": {"learning_rate": 1e-4}},
    ... )
    >>> [optimiser.rate_of(name) for name in ("0.weight", "0.bias", "1.weight")]
    [0.0001, 0.001, 0.001]
    """

    name = "adamw"

    def __init__(
        self,
        *,
        learning_rate: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        groups: Groups | None = None,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate, betas=betas, epsilon=epsilon, weight_decay=weight_decay,
            groups=groups,
        )  # fmt: skip

    def _decay(self, name: str) -> dict[str, float]:
        return {"decoupled": self._option(name, "weight_decay")}
