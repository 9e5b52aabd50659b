"""What a comparison can be told, checked."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from polyattn_core.config import Schema

MetricName = Literal["accuracy", "log-loss", "ndcg", "r2", "mae"]
TaskName = Literal["classification", "regression", "reconstruction"]
ScaleName = Literal["standard", "unit", "none"]


class Settings(Schema):
    """Options of :func:`polyattn.compare.compare`, and of the command `polyattn compare`."""

    mechanisms: tuple[str, ...] = ()
    """Names, wildcards, or names with options as in "top-k[k=16]"; all that fit by default."""
    family: str | None = None
    """Restrict wildcards, and the default selection, to one family."""
    exclude: tuple[str, ...] = ()
    """Names and wildcards of mechanisms to leave out."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of mechanisms by name or wildcard; one for the sharpness fixes it."""
    task: Literal["auto"] | TaskName = "auto"
    """What is predicted: labels, a number, or hidden coordinates."""
    metric: MetricName | None = None
    """What sharpness is tuned for and rows are ranked by; the first of the task by default."""
    scale: ScaleName = "standard"
    """Preparation of vectors: z-scores fitted on training data, unit length, or none."""
    splits: int = Field(default=5, ge=2, le=200)
    """Random splits into training and test data."""
    test_size: float = Field(default=0.2, gt=0, lt=1)
    """Share of the samples held out for testing in each split."""
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Seed of the splits, of hidden coordinates and of the subsample."""
    limit: int = Field(default=5000, ge=0)
    """Samples used at most, drawn at random; 0 takes all."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads a mechanism, and the anchors, may use; all cores by default."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision that the mechanisms compute in."""
    time_limit: float = Field(default=60.0, gt=0)
    """Seconds after which a mechanism is given up; compiling does not count."""
    budget: float | None = Field(default=None, gt=0)
    """Seconds for everything. Common mechanisms come first, and each may use six times its share of
    what is left; those that need longer, or are not reached, are left out. No bound by default."""
