"""Frozen literals with which a plugin says what it offers.

A manifest returns these from its hooks. They hold only strings, numbers and tuples: importing a
manifest, and listing everything that is installed, imports neither NumPy nor pydantic nor Numba.
A string reference ``"package.module:Name"`` is resolved on first use.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

MASK_KINDS = (
    "causal",
    "window",
    "padding",
    "documents",
    "prefix",
    "global",
    "dilated",
    "strided",
    "blocks",
    "dense",
    "predicate",
)
"""Every kind of mask; a mechanism declares those that it honours."""

DTYPES = ("float16", "bfloat16", "float32", "float64")

Statistic = Literal["weights", "log_sum_exp", "entropy", "column_mass", "top_weights"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
"""Every statistic of the weights that there is; a mechanism declares those that it has."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """Who a plugin is, and which version of the plugin interface it was written for."""

    family: str
    summary: str
    distribution: str
    version: str
    api_version: int
    theory: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideInput:
    """An input beyond query, key and value that a rule takes by keyword."""

    name: str
    shape: str
    description: str
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a mechanism can do. The conformance kit exercises each; users see them in `info`."""

    causal: bool = True
    """Accepts `causal=True`: later keys are hidden."""
    masks: tuple[str, ...] = MASK_KINDS
    """Kinds of mask that are honoured."""
    bias: bool = True
    """Accepts an additive bias on the scores."""
    gradient: bool = True
    """Has `vjp`."""
    partial: bool = False
    """Has `attend_partial` with mergeable states."""
    statistics: tuple[str, ...] = ()
    """Statistics that `observe` can return."""
    grouped: bool = True
    """Accepts fewer key heads than query heads."""
    cross: bool = True
    """Accepts another number of keys than of queries."""
    value_size: bool = True
    """Accepts values of another head size than that of the keys."""
    dropout: bool = False
    """Accepts dropout on the weights while training."""
    positional: bool = False
    """The rule itself looks at positions; permuting keys with their values changes the output."""
    parametric: bool = False
    """Has learned parameters."""
    exact: bool = True
    """Computes its formula exactly, not an approximation of it."""
    dtypes: tuple[str, ...] = DTYPES
    side_inputs: tuple[SideInput, ...] = ()
    time: str = "O(n² d)"
    memory: str = "O(n d)"

    def __post_init__(self) -> None:
        for kind in self.masks:
            if kind not in MASK_KINDS:
                raise ValueError(f"masks: unknown kind {kind!r}; known are {MASK_KINDS}")
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise ValueError(f"dtypes: unknown {dtype!r}; known are {DTYPES}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySpec:
    """Anything that is found by kind and name: a loss, an optimiser, a metric, a sink …"""

    kind: str
    name: str
    family: str
    summary: str
    factory: str
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for label, value in (("name", self.name), ("family", self.family), ("kind", self.kind)):
            if not _NAME.fullmatch(value):
                raise ValueError(f"{label}: {value!r} is not lower-case kebab (a-z, 0-9, single -)")
        for alias in self.aliases:
            if not _NAME.fullmatch(alias):
                raise ValueError(f"aliases: {alias!r} is not lower-case kebab (a-z, 0-9, single -)")
        _check_reference("factory", self.factory)

    @property
    def full_name(self) -> str:
        """`family/name`, which always resolves to this entry."""
        return f"{self.family}/{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismSpec(EntrySpec):
    """An attention mechanism: one distinct score, normalising or aggregation rule."""

    config: str
    """Reference to its configuration schema."""
    reference: str
    """Reference to a plain NumPy float64 function that defines what it computes."""
    formula: str = ""
    """The rule in one line of Unicode mathematics."""
    capabilities: Capabilities = field(default_factory=Capabilities)
    leading: tuple[str, ...] = ("heads",)
    """Options that its builder takes by position, after `dim`."""
    sharpness: str = ""
    """The option that sharpens its weights (a scale, an inverse width); tuned by `compare`."""
    kind: str = "mechanism"

    def __post_init__(self) -> None:
        EntrySpec.__post_init__(self)
        _check_reference("config", self.config)
        _check_reference("reference", self.reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetSpec(EntrySpec):
    """A named set of options of a mechanism; `options` are passed to `create`."""

    mechanism: str
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    """Where the numbers come from."""
    models: tuple[str, ...] = ()
    """Beginnings of the names of models that have this attention, such as ``gpt2-``."""
    weights: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What its models call the parameters: name there → name here, or several that are one array
    there, joined along their first axis. Either is a parameter, or the beginning of several:
    ``{"q_proj": "query"}`` is about `q_proj.weight` and `q_proj.bias`. After the name there, ``.T``
    says that arrays are transposed to be ours, ``by heads`` that several are joined head by head:
    the rows of each for one head, then those for the next; and ``+ 1`` that so much is added. An
    empty list is for what models keep beside the parameters, such as buffers: it is passed over."""
    kind: str = "preset"
    factory: str = "polyattn_core.spec:PresetSpec"

    def __post_init__(self) -> None:
        EntrySpec.__post_init__(self)
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        given: Mapping[str, Any] = self.weights
        weights = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in given.items()}
        if not all(isinstance(name, str) for names in weights.values() for name in names):
            raise ValueError(f"weights: {weights!r} does not map names to names")
        object.__setattr__(self, "weights", MappingProxyType(weights))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), _fields_of(self))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "kind": self.kind,
            "name": self.name,
            "family": self.family,
            "summary": self.summary,
            "mechanism": self.mechanism,
            "options": dict(self.options),
            "source": self.source,
            "models": list(self.models),
            "weights": {theirs: list(ours) for theirs, ours in self.weights.items()},
            "tags": list(self.tags),
            "aliases": list(self.aliases),
            "papers": list(self.papers),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec(EntrySpec):
    """A number measured on an attention call; `factory` is a function of arrays."""

    kind: str = "metric"
    direction: Literal["lower", "higher", "neither"] = "neither"
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceCase:
    """How the conformance kit should set up a mechanism that needs more than `dim` and `heads`.

    `options` are passed to `create`; `inputs` refers to a function
    ``(rng, lead, heads, queries, keys, dim) -> dict`` returning side inputs.
    """

    mechanism: str
    name: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: str = ""
    tolerance: float | None = None
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    """Check name → reason. Strict: a listed check that passes is an error."""

    def __post_init__(self) -> None:
        if self.inputs:
            _check_reference("inputs", self.inputs)
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        object.__setattr__(
            self, "expected_failures", MappingProxyType(dict(self.expected_failures))
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), _fields_of(self))


def resolve(reference: str) -> Any:
    """Import what a string reference ``"package.module:Name"`` names."""
    _check_reference("reference", reference)
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def presets_from_toml(
    package: str, family: str, resource: str = "presets.toml"
) -> list[PresetSpec]:
    """Read a family's presets from a TOML file in its package: a table for each name.

    >>> # [longformer-base]
    >>> # mechanism = "local-global"
    >>> # summary = "Longformer, base size"
    >>> # source = "arXiv:2004.05150, section 5"
    >>> # options = { dim = 768, heads = 12, window = 512 }
    >>> # models = ["longformer"]

    `weights` is a table too: ``weights = { "c_attn.T" = ["query", "key", "value"] }``.
    """
    # Imported here because every listing imports this module and few read a file.
    import importlib.resources
    import tomllib

    text = importlib.resources.files(package).joinpath(resource).read_text("utf-8")
    return [
        PresetSpec(name=name, family=family, **_tuples(entry))
        for name, entry in tomllib.loads(text).items()
    ]


def _fields_of(literal: Any) -> dict[str, Any]:
    """The arguments that make an equal literal; read-only views cannot be pickled or copied."""
    values = {one.name: getattr(literal, one.name) for one in fields(literal)}
    return {k: dict(v) if isinstance(v, MappingProxyType) else v for k, v in values.items()}


def _rebuild(cls: Any, values: dict[str, Any]) -> Any:
    return cls(**values)


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}


def _check_reference(label: str, value: str) -> None:
    if not _REFERENCE.fullmatch(value):
        raise ValueError(f"{label}: {value!r} is not of the form 'package.module:Name'")
