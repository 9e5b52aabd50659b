"""Type stubs of builders, from the schemas in the registry: what editors complete from.

A class of the stub stands for each schema class, with a method for each option that it adds; so
options that many mechanisms share are there once.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel

import polyattn_registry as registry
from polyattn_core.spec import MechanismSpec, resolve

_HEAD = '''"""Builders of the installed mechanisms. Made by ``polyattn stubs``: do not edit."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel

from polyattn_core.mechanism import Attention
from polyattn_core.spec import MechanismSpec

class Builder:
    spec: ClassVar[MechanismSpec]
    def __init__(self, options: Mapping[str, Any], preset: str | None = ...) -> None: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    def replace(self, **options: Any) -> Self: ...
    def preset(self, name: str) -> Self: ...
    def build(self) -> Attention: ...

def builder(name: str, /, *leading: Any, **options: Any) -> Builder: ...
'''


def stub(families: Sequence[str] = ()) -> str:
    """The text of a stub file for all mechanisms that are installed, or those of some families."""
    names = [n for family in families or (None,) for n in registry.available(family=family)]
    found = [registry.spec(name) for name in names]
    specs = sorted(
        (spec for spec in found if isinstance(spec, MechanismSpec)),
        key=lambda spec: spec.full_name,
    )
    written: set[type[BaseModel]] = {BaseModel}
    parts = [_HEAD]
    for spec in specs:
        schema = resolve(spec.config)
        for model in reversed(schema.__mro__):
            if isinstance(model, type) and issubclass(model, BaseModel) and model not in written:
                written.add(model)
                parts.append(_class(model))
        parts.append(_mechanism(spec, schema))
    return "\n".join(parts)


def _title(model: type[BaseModel]) -> str:
    return f"{model.__module__.split('.')[0].removeprefix('polyattn_').title()}{model.__name__}"


def _class(model: type[BaseModel]) -> str:
    bases = [
        "Builder" if base is BaseModel else _title(base)
        for base in model.__bases__
        if issubclass(base, BaseModel)
    ]
    own = [n for n in inspect.get_annotations(model) if n in model.model_fields]
    hints = typing.get_type_hints(model, include_extras=True)
    lines = [f"class {_title(model)}({', '.join(bases)}):"]
    lines += [f"    {_method(name, hints[name])}" for name in own]
    return "\n".join(lines if own else [f"{lines[0]} ..."]) + "\n"


def _method(name: str, hint: Any) -> str:
    default = " = True" if hint is bool else ""
    return f"def {name}(self, value: {_text(hint)}{default}) -> Self: ..."


def _mechanism(spec: MechanismSpec, schema: type[BaseModel]) -> str:
    name = spec.name.replace("-", "_")
    if name == "linear" and spec.family == "sparse":
        return (
            "def linear(dim: int, num_features: int | None = ..., **options: Any) -> Builder: ...\n"
        )
    hints = typing.get_type_hints(schema, include_extras=True)
    parameters = [f"dim: {_text(hints['dim'])}"] if "dim" in hints else []
    parameters += [
        f"{option}: {_text(hints[option])} = ..." for option in spec.leading if option in hints
    ]
    return f"def {name}({', '.join([*parameters, '**options: Any'])}) -> {_title(schema)}: ...\n"


def _text(hint: Any) -> str:
    return " | ".join(dict.fromkeys(_alternatives(hint)))


def _alternatives(hint: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        yield from _alternatives(arguments[0])
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _alternatives(argument)
    elif origin is Literal:
        yield f"Literal[{', '.join(map(repr, arguments))}]"
    elif hint is type(None):
        yield "None"
    elif hint in (bool, int, float, str):
        yield hint.__name__
    elif origin in (tuple, list):
        inner = dict.fromkeys(x for a in arguments if a is not Ellipsis for x in _alternatives(a))
        yield f"Sequence[{' | '.join(inner)}]"
    elif isinstance(hint, type) and issubclass(hint, BaseModel):
        # Schemas within options are given by name or as a mapping as well.
        yield from ("Mapping[str, Any]", "str", "BaseModel")
    else:
        yield "Any"
