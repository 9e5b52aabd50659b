"""Base classes of configuration schemas.

A schema is a frozen pydantic model that refuses unknown options. Its attribute docstrings are the
descriptions that `polyattn info` shows, its bounds are those that errors name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

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

    @model_validator(mode="before")
    @classmethod
    def _check_truth(cls, options: Any) -> Any:
        """A truth value is no number, though Python and pydantic take it for 0 or 1."""
        if isinstance(options, Mapping):
            for name, value in options.items():
                if isinstance(value, bool) and _only_numbers(cls.model_fields.get(name)):
                    raise ValueError(f"{name}: true and false are no numbers")
        return options


def _only_numbers(field: FieldInfo | None) -> bool:
    kinds = set() if field is None else {field.annotation, *get_args(field.annotation)}
    return bool(kinds & {int, float}) and bool not in kinds


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
    place, value, context = first["loc"], first["input"], first.get("ctx", {})
    name = ".".join(map(str, place))
    match first["type"]:
        case "extra_forbidden":
            names = list(_schema_at(schema, place[:-1]).model_fields)
            close = difflib.get_close_matches(str(place[-1]), names, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            whose = ".".join(map(str, place[:-1])) or mechanism
            known = f"one of the options of {whose}: {', '.join(names)}"
            return ConfigError(name, value, known + hint)
        case "missing":
            return ConfigError(name, "nothing", f"a value: {mechanism} requires it")
        case "union_tag_invalid":
            return ConfigError(name, context["tag"], f"one of {context['expected_tags']}")
        case "union_tag_not_found":
            return ConfigError(name, value, f"a mapping that says {context['discriminator']}")
    message = first["msg"].removeprefix("Value error, ")
    field, colon, rule = message.partition(": ")
    if colon and (not place or field in _schema_at(schema, place).model_fields):
        # A cross-field rule names its field at the start of the message.
        given = value if isinstance(value, Mapping) else options
        path = ".".join(map(str, (*place, field)))
        return ConfigError(path, given.get(field, "its default"), f"another value: {rule}")
    accepted = message.removeprefix("Input should be ")
    if first["type"] in _BOUNDS:
        accepted = _range(schema, place) or accepted
    return ConfigError(name or mechanism, value, accepted)


_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
"""Type of a pydantic error → the attribute of its bound, and words for it."""


def _range(schema: type[BaseModel], place: tuple[int | str, ...]) -> str:
    """All bounds of the option at this place: pydantic names only the one that is broken."""
    owner, name = _schema_at(schema, place[:-1]), str(place[-1])
    if name not in owner.model_fields:
        return ""
    field = owner.model_fields[name]
    bounds = {
        words: getattr(constraint, attribute)
        for attribute, words in _BOUNDS.values()
        for constraint in (*field.metadata, *_constraints_in(field.annotation))
        if getattr(constraint, attribute, None) is not None
    }
    return " and ".join(f"{words} {bound}" for words, bound in bounds.items())


def _constraints_in(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in get_args(annotation):
        yield from _constraints_in(argument)


def _schema_at(schema: type[BaseModel], place: tuple[int | str, ...]) -> type[BaseModel]:
    """The schema that an error at this place is about; alternatives are told apart by their tag."""
    found = [schema]
    for part in place:
        owner = next((model for model in found if part in model.model_fields), None)
        if owner is not None:
            found = list(_schemas_in(owner.model_fields[str(part)].annotation))
        else:
            found = [m for m in found if part in (f.default for f in m.model_fields.values())]
    return found[0] if found else schema


def _schemas_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _schemas_in(argument)
