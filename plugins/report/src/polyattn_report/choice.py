"""From a report to one mechanism with options: the advice made concrete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from polyattn_core import resolver
from polyattn_core.errors import RegistryError

from .config import ReportConfig
from .recommendation import AttentionRecommendation
from .report import GeometryReport, ReportBuilder

CANDIDATES: Mapping[AttentionRecommendation, tuple[str, ...]] = MappingProxyType(
    {
        AttentionRecommendation.STANDARD: ("flash", "scaled-dot-product"),
        AttentionRecommendation.SPARSE: ("top-k", "entmax15", "flash"),
        AttentionRecommendation.GEOMETRIC: ("gaussian", "l2", "hyperbolic"),
        AttentionRecommendation.DIFFUSION: ("diffusion",),
    }
)
"""What each advice means, the first that is installed."""

_INSTALL = {
    AttentionRecommendation.STANDARD: "polyattn-sparse",
    AttentionRecommendation.SPARSE: "polyattn-sparse",
    AttentionRecommendation.GEOMETRIC: "polyattn-standard",
    AttentionRecommendation.DIFFUSION: "polyattn-diffusion",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A mechanism, and why."""

    mechanism: str
    """A name that `create` takes."""
    report: GeometryReport

    @property
    def reasons(self) -> tuple[str, ...]:
        """In plain words."""
        advice = f"{self.mechanism}: {self.report.recommendation.value} attention is advised"
        return (advice, *self.report.reasons)

    def create(self, **options: Any) -> Any:
        """The mechanism, built with options such as `dim` and `heads`."""
        return resolver.current().create(self.mechanism, **options)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {"mechanism": self.mechanism, **self.report.to_dict()}

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def recommend(
    query: Any, key: Any = None, value: Any = None, *, config: ReportConfig | None = None
) -> Choice:
    """Pick a mechanism for some data, and say why.

    Parameters
    ----------
    query, key, value
        (…, tokens, size); keys default to the queries, values to the keys.
    config
        How much is looked at, and the seed of what is drawn.

    Raises
    ------
    RegistryError
        Where no mechanism that the advice could mean is installed.

    Examples
    --------
    >>> import numpy as np
    >>> recommend(np.random.default_rng(0).standard_normal((100, 8))).report.metrics[-1].value > 2
    True
    """
    return choose(ReportBuilder(config).analyze(query, key, value).build())


def choose(report: GeometryReport, candidates: Sequence[str] = ()) -> Choice:
    """The mechanism that a report calls for, of those that are installed, or of `candidates`.

    Where none of the candidates is what the report calls for, the first of them.
    """
    advice = report.recommendation
    among = candidates or resolver.current().available()
    for name in CANDIDATES[advice]:
        if name in among:
            return Choice(name, report)
    if candidates:
        return Choice(candidates[0], report)
    raise RegistryError(
        f"{advice.value} attention is advised, and none of {', '.join(CANDIDATES[advice])} is "
        f"installed: pip install {_INSTALL[advice]}"
    )


__all__ = ["CANDIDATES", "Choice", "choose", "recommend"]
