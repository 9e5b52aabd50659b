"""Base classes of configuration schemas.

A schema is a frozen pydantic model that refuses unknown options. Its attribute docstrings are the
descriptions that `polyattn info` shows, its bounds are those that errors name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import ConfigError


class Schema(BaseModel):
    """A frozen model: no unknown fields, descriptions from attribute docstrings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_inf_nan="strings",
        allow_inf_nan=False,
    )


class AttentionConfig(Schema):
    """What every mechanism is configured with: the layout of its heads."""

    dim: int = Field(ge=1, le=1 << 20)
    """Width of the queries, and of the output where values have the width of queries."""
    heads: int = Field(default=1, ge=1, le=1 << 16)
    """Number of query heads; must divide `dim`."""
    kv_heads: int | None = Field(default=None, ge=1, le=1 << 16)
    """Number of key and value heads; must divide `heads`. As many as query heads by default."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads a call may use. All that Numba is allowed by default."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide dim {self.dim}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.kv_heads} does not divide heads {self.heads}")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one query head."""
        return self.dim // self.heads

    @property
    def key_heads(self) -> int:
        """Number of key and value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads


C = TypeVar("C", bound=BaseModel)


def build_config(schema: type[C], options: Mapping[str, Any], *, mechanism: str) -> C:
    """Validate options against a schema.

    Raises
    ------
    ConfigError
        Naming the first offending option, its value and what is accepted; for an unknown option,
        the options that exist and the one probably meant.
    """
    try:
        return schema(**options)
    except ValidationError as error:
        raise _explain(error, schema, options, mechanism) from None


def _explain(
    error: ValidationError, schema: type[BaseModel], options: Mapping[str, Any], mechanism: str
) -> ConfigError:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    names = list(schema.model_fields)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        accepted = f"one of the options of {mechanism}: {', '.join(names)}{hint}"
        return ConfigError(name, first["input"], accepted)
    if first["type"] == "missing":
        return ConfigError(name, "nothing", f"a value: {mechanism} requires it")
    message = first["msg"].removeprefix("Value error, ")
    if not name and ": " in message:
        # A cross-field rule names its field at the start of the message.
        name, message = message.split(": ", 1)
        return ConfigError(name, options.get(name, "its default"), f"another value: {message}")
    message = message.removeprefix("Input should be ")
    return ConfigError(name or mechanism, first["input"], message)
