"""Options of the mechanisms on the streaming tile engine."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from .config import AttentionConfig
from .positions import Position
from .score_option import Score, ScoreParameters, ScoreValues


class StreamingConfig(AttentionConfig):
    """Options that every mechanism on the streaming engine has."""

    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability to drop a weight while training."""
    softcap: float | None = Field(default=None, gt=0)
    """Cap scores softly: softcap · tanh(score / softcap)."""
    reproducible: bool = False
    """The same bits whatever the batch, the threads, and how queries are divided into calls."""
    position: Position | None = None
    """Position axis: "rope", "alibi", "t5", or one of these with options as a mapping."""
    score: Score = None
    """A score rule of your own, applied to the mechanism's scores; in JSON "module:name"."""
    score_params: ScoreValues = Field(default_factory=ScoreParameters)
    """The rule's parameters by name: numbers, one number a head, or arrays that it indexes."""

    @field_validator("position", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_score(self) -> Self:
        if self.score is None and self.score_params:
            raise ValueError("score_params: there is no score= whose parameters they could be")
        return self


class ScaledConfig(StreamingConfig):
    """Adds the scale of a dot-product score."""

    scale: float | None = Field(default=None, gt=0)
    """Factor of the scores; 1/√(head size) by default."""
