"""The geometry report: health of attention on some data, and which mechanism to take.

>>> import polyattn_report
>>> report = (
...     polyattn_report.ReportBuilder()
...     .with_ot_distance(0.15)
...     .with_topology_coherence(0.82)
...     .with_ib_kl(0.05)
...     .with_diffusion_energy(0.3)
...     .with_attention_entropy(2.1)
...     .build()
... )
>>> f"{report.health_score:.2f}", report.recommendation.name
('1.00', 'STANDARD')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis import analyze
    from .choice import Choice, recommend
    from .config import ReportConfig
    from .metrics import Metric, MetricType, Status, Thresholds
    from .monitor import Monitor
    from .recommendation import Action, AttentionRecommendation
    from .report import GeometryReport, ReportBuilder

__version__ = "0.1.0"

_PLACES = {
    "Action": "recommendation",
    "AttentionRecommendation": "recommendation",
    "Choice": "choice",
    "GeometryReport": "report",
    "Metric": "metrics",
    "MetricType": "metrics",
    "Monitor": "monitor",
    "ReportBuilder": "report",
    "ReportConfig": "config",
    "Status": "metrics",
    "Thresholds": "metrics",
    "analyze": "analysis",
    "recommend": "choice",
}

__all__ = [
    "Action",
    "AttentionRecommendation",
    "Choice",
    "GeometryReport",
    "Metric",
    "MetricType",
    "Monitor",
    "ReportBuilder",
    "ReportConfig",
    "Status",
    "Thresholds",
    "analyze",
    "recommend",
]


def __getattr__(name: str) -> Any:
    # On first use: the manifest in this package is read by every listing.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value
