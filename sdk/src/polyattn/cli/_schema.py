"""A JSON Schema of options, as rows that people read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_WORDS = {
    "array": "list",
    "boolean": "true or false",
    "integer": "whole number",
    "null": "null",
    "number": "number",
    "object": "mapping",
    "string": "text",
}
_BOUNDS = {
    "exclusiveMinimum": "> {}",
    "minimum": "≥ {}",
    "exclusiveMaximum": "< {}",
    "maximum": "≤ {}",
    "multipleOf": "multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "like {}",
}


@dataclass(frozen=True)
class Option:
    """One option; `nested` holds what a choice has for options of its own, by the choice.

    The choice is made by setting the option `choice` of it.
    """

    name: str
    accepts: str
    default: str
    description: str
    choice: str = ""
    nested: Mapping[str, tuple[Option, ...]] = field(default_factory=dict)


def options(schema: Mapping[str, Any]) -> tuple[Option, ...]:
    """The options that a schema describes, in its order."""
    return tuple(_options(schema, schema.get("$defs", {})))


def _options(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], besides: str = ""
) -> Iterator[Option]:
    required = schema.get("required", ())
    for name, node in schema.get("properties", {}).items():
        if name == besides:
            continue
        if name in required:
            default = "required"
        else:
            default = written(node["default"]) if "default" in node else "computed"
        nested: dict[str, tuple[Option, ...]] = {}
        accepts = _accepts(node, definitions, nested)
        description = " ".join(node.get("description", "").split())
        yield Option(name, accepts, default, description, _choice(node), nested)


def _choice(node: Mapping[str, Any]) -> str:
    """The property that says which of several models a value is."""
    parts = (node, *node.get("anyOf", ()))
    return next((p["discriminator"]["propertyName"] for p in parts if "discriminator" in p), "")


def _accepts(
    node: Mapping[str, Any], definitions: Mapping[str, Any], nested: dict[str, tuple[Option, ...]]
) -> str:
    """What a value may be; fills `nested`."""
    if "$ref" in node:
        return _model(node, definitions, nested, "")
    alternatives = node.get("anyOf") or node.get("oneOf")
    if alternatives:
        return " | ".join(_alternatives(alternatives, _choice(node), definitions, nested))
    if "enum" in node or "const" in node:
        values = node.get("enum", [node.get("const")])
        return " | ".join(written(value) for value in values)
    kind = node.get("type", "")
    words = _WORDS.get(kind, "any value")
    if kind == "array" and "items" in node:
        words = f"list of {_accepts(node['items'], definitions, nested)}"
    elif kind == "array" and "prefixItems" in node:
        parts = [_accepts(item, definitions, nested) for item in node["prefixItems"]]
        words = f"list of {', '.join(parts)}"
    bounds = {key: text.format(written(node[key])) for key, text in _BOUNDS.items() if key in node}
    if "minimum" in bounds and "maximum" in bounds:
        del bounds["maximum"]
        bounds["minimum"] = f"from {written(node['minimum'])} to {written(node['maximum'])}"
    return " ".join((words, ", ".join(bounds.values()))).strip()


def _alternatives(
    nodes: list[Mapping[str, Any]],
    choice: str,
    definitions: Mapping[str, Any],
    nested: dict[str, tuple[Option, ...]],
) -> Iterator[str]:
    # That there may be no value is said last.
    for node in sorted(nodes, key=lambda node: node.get("type") == "null"):
        if choice and "$ref" in node:
            yield _model(node, definitions, nested, choice)
        else:
            yield _accepts(node, definitions, nested)


def _model(
    node: Mapping[str, Any],
    definitions: Mapping[str, Any],
    nested: dict[str, tuple[Option, ...]],
    choice: str,
) -> str:
    """The word for a value that is a model; its options go to `nested`."""
    name = node["$ref"].rpartition("/")[2]
    if name not in definitions:  # inside itself
        return str(name)
    model = definitions[name]
    if "properties" not in model:
        return _accepts(model, definitions, nested)
    label = str(model["properties"].get(choice, {}).get("const", name))
    # A model that holds others of its own kind would never end.
    inner = {key: value for key, value in definitions.items() if key != name}
    own = tuple(_options(model, inner, choice))
    if own:
        nested[label] = own
    return label


def written(value: object) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
