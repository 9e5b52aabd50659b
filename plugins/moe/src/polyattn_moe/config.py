"""Options of the mixtures."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from polyattn_core.config import AttentionConfig

Expert = str | dict[str, Any]
"""Name of a mechanism, or a mapping of `name` and its options."""

_OURS = {"dim", "heads", "kv_heads", "threads"}


def _check_expert(option: str, expert: Expert) -> None:
    if isinstance(expert, dict):
        if not isinstance(expert.get("name"), str):
            raise ValueError(f"{option}: an expert with options is a mapping with a name")
        given = sorted(_OURS & set(expert))
        if given:
            raise ValueError(f"{option}: {', '.join(given)} of experts are those of the mixture")


class ExpertsConfig(AttentionConfig):
    """Options of mixtures of whole mechanisms."""

    experts: Annotated[int, Field(ge=2, le=4096)] | tuple[Expert, ...] = 8
    """Mechanisms: names, or mappings of a name and options. A number stands for so many
    dot-product attentions with projections of queries and outputs of their own."""

    @field_validator("experts", mode="wrap")
    @classmethod
    def _explain(cls, value: Any, validate: Any) -> Any:
        try:
            return validate(value)
        except ValidationError:
            # Its own text is about each form of the option by itself.
            raise ValueError(
                "a number from 2 to 4096, or names (or mappings with a name and options)"
            ) from None

    @model_validator(mode="after")
    def _check_experts(self) -> Self:
        if not isinstance(self.experts, int):
            if len(self.experts) < 2:
                raise ValueError("experts: at least 2 of them")
            for expert in self.experts:
                _check_expert("experts", expert)
        return self

    @property
    def expert_count(self) -> int:
        """Number of experts."""
        return self.experts if isinstance(self.experts, int) else len(self.experts)

    @property
    def expert_options(self) -> list[dict[str, Any]]:
        """Name and options of each expert; no name for those that a number stands for."""
        if isinstance(self.experts, int):
            return [{} for _ in range(self.experts)]
        return [dict(e) if isinstance(e, dict) else {"name": e} for e in self.experts]


class MoEConfig(ExpertsConfig):
    """Options of `moe`."""

    top_k: int = Field(default=2, ge=1, le=4096)
    """Experts of a token."""
    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    expert_capacity: float | None = Field(default=None, gt=0)
    """Tokens that an expert takes at most, relative to an even share of tokens · top_k / experts.
    No limit by default."""
    overflow: Literal["drop", "reroute"] = "drop"
    """What becomes of a choice of a full expert: nothing, or the token's next best expert."""
    jitter_noise: float = Field(default=0.0, ge=0, lt=1)
    """While training, the router's input is multiplied by numbers from 1 − this to 1 + this."""
    normalise: bool = True
    """Gates of a token's experts sum to 1; otherwise they are shares among all experts."""
    balance_weight: float = Field(default=0.0, ge=0)
    """Pullbacks include the gradient of so many times the load-balancing loss."""

    @model_validator(mode="after")
    def _check_top(self) -> Self:
        if self.top_k > self.expert_count:
            raise ValueError(f"top_k: there are {self.expert_count} experts")
        return self


class ExpertChoiceConfig(ExpertsConfig):
    """Options of `expert-choice`."""

    expert_capacity: float = Field(default=2.0, gt=0)
    """Experts of a token on average: each expert takes tokens · this / experts."""


class MixtureOfHeadsConfig(AttentionConfig):
    """Options of `mixture-of-heads`."""

    top_k: int | None = Field(default=None, ge=1, le=1 << 16)
    """Routed heads that a token uses; half of them by default."""
    shared_heads: int = Field(default=1, ge=0, le=1 << 16)
    """Heads, the first ones, that every token uses."""
    causal: bool = False
    """Hide later keys; with more keys than queries, the last query is at the last key."""
    attention: Expert = "standard/scaled-dot-product"
    """Mechanism of each head: a name, or a mapping of a name and options."""

    @model_validator(mode="after")
    def _check_routed(self) -> Self:
        _check_expert("attention", self.attention)
        if self.shared_heads > self.heads:
            raise ValueError(f"shared_heads: there are {self.heads} heads")
        routed = self.heads - self.shared_heads
        if self.top_k is not None and self.top_k > routed:
            raise ValueError(f"top_k: there are {routed} routed heads")
        return self

    @property
    def routed_heads(self) -> int:
        """Heads that are chosen from."""
        return self.heads - self.shared_heads

    @property
    def chosen_heads(self) -> int:
        """Routed heads that a token uses."""
        return (self.routed_heads + 1) // 2 if self.top_k is None else self.top_k
