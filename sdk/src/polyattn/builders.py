"""Fluent builders: the options of a mechanism, one call each.

>>> from polyattn import flash, multi_head
>>> multi_head(768, 12).dropout(0.1).causal().build()
standard/multi-head(dim=768, heads=12, causal=True, dropout=0.1)
>>> flash(1024, 128).heads(16)
flash(1024, 128).heads(16)

Every mechanism has one, that of a plugin of your own too: builders are made from the schemas in the
registry. Those of polyattn's own mechanisms are also in `polyattn` itself; ``builder("acme/mine")``
and ``polyattn.builders.mine`` find any. A method sets an option and returns another builder, so a
half-made one can be kept and used twice; :meth:`Builder.build` checks the options and creates the
mechanism.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import polyattn_registry as registry
from polyattn_core.errors import ArgumentError, RegistryError, UnknownOptionError
from polyattn_core.spec import MechanismSpec, resolve

if TYPE_CHECKING:
    from polyattn_core.mechanism import Attention

_OWN = frozenset(("build", "config", "options", "preset", "replace", "spec"))


class Builder:
    """Options of one mechanism, set one at a time. Never changes: each method returns another.

    Examples
    --------
    >>> import polyattn as pa
    >>> base = pa.builder("sliding-window", 64).heads(4)
    >>> [base.window(n).build().config.window for n in (16, 32)]
    [16, 32]
    """

    spec: ClassVar[MechanismSpec]
    """The specification of the mechanism."""
    _fields: ClassVar[Mapping[str, Any]] = {}

    __slots__ = ("_options", "_preset")

    def __init__(self, options: Mapping[str, Any], preset: str | None = None) -> None:
        self._options = MappingProxyType(dict(options))
        self._preset = preset

    @property
    def options(self) -> Mapping[str, Any]:
        """What was set so far."""
        return self._options

    def replace(self, **options: Any) -> Self:
        """Set several options at once.

        Raises
        ------
        UnknownOptionError
            Where the mechanism does not have one of them: with those that it has, and with
            mechanisms that have it.
        """
        for option in options:
            if option not in self._fields:
                raise self._unknown(option)
        return type(self)({**self._options, **options}, self._preset)

    def preset(self, name: str) -> Self:
        """Start from a preset of the mechanism; options that are set override it."""
        return type(self)(self._options, name)

    def build(self) -> Attention:
        """Create the mechanism.

        Raises
        ------
        ConfigError
            Where an option is missing or out of bounds.
        """
        name = self.spec.full_name
        made: Attention = registry.create(name, preset=self._preset, **self._options)
        return made

    def _unknown(self, option: str) -> UnknownOptionError:
        near = difflib.get_close_matches(option, self._fields, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        others = () if near else _mechanisms_with(option)
        if others:
            hint = f"; mechanisms which have {option!r}: {', '.join(others)}"
        known = f"one of the options of {self.spec.name}: {', '.join(self._fields)}{hint}"
        return UnknownOptionError(option, "an option", known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # which protocols such as copying look for
            raise AttributeError(name)
        raise self._unknown(name)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Builder)
            and other.spec is self.spec
            and (other._options, other._preset) == (self._options, self._preset)
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.spec.full_name, dict(self._options), self._preset)

    def __repr__(self) -> str:
        left = dict(self._options)
        given = []
        for option in ("dim", *self.spec.leading):
            if option not in left:
                break
            given.append(repr(left.pop(option)))
        calls = [f".preset({self._preset!r})"] if self._preset else []
        calls += [
            f".{option}()" if value is True else f".{option}({value!r})"
            for option, value in left.items()
        ]
        return f"{_function_name(self.spec)}({', '.join(given)}){''.join(calls)}"


def builder(name: str, /, *leading: Any, **options: Any) -> Builder:
    """A builder of the mechanism called `name`.

    Parameters
    ----------
    name
        ``[family/]name[@preset]``, as `create` takes it.
    *leading
        `dim`, and then the options that the mechanism takes by position (its specification's
        `leading`; the number of heads for most).
    **options
        Further options by name.

    Raises
    ------
    UnknownNameError, NotInstalledError, PluginError
        Where the name leads nowhere.
    UnknownOptionError
        Where the mechanism does not have an option.

    Examples
    --------
    >>> import polyattn as pa
    >>> pa.builder("sparse/flash", 512, heads=8).causal().build()
    sparse/flash(dim=512, heads=8, causal=True)
    """
    short, _, preset = name.partition("@")
    made = _function(_found(short))(*leading, **options)
    return made.preset(preset) if preset else made


def linear(dim: int, num_features: int | None = None, **options: Any) -> Builder:
    """A builder of attention in linear time.

    With `num_features` random features that approximate the soft-max (`favor`), else with
    φ(x) = elu(x) + 1 (`linear`).
    """
    if num_features is None:
        return builder("sparse/linear", dim, **options)
    return builder("sparse/favor", dim, features=num_features, **options)


_made: dict[str, Callable[..., Builder]] = {}


def _found(name: str) -> MechanismSpec:
    spec = registry.spec(name)
    if not isinstance(spec, MechanismSpec):
        raise ArgumentError("name", name, "the name of a mechanism")
    return spec


def _function(spec: MechanismSpec) -> Callable[..., Builder]:
    """The function that starts a builder of this mechanism."""
    before = _made.get(spec.full_name)
    if before is not None and before.builder.spec is spec:  # type: ignore[attr-defined]
        return before
    cls = _class(spec)
    names = ("dim", *spec.leading)

    def start(*leading: Any, **options: Any) -> Builder:
        if len(leading) > len(names):
            raise ArgumentError(_function_name(spec), leading, f"at most {', '.join(names)}")
        given = dict(zip(names, leading, strict=False))
        for twice in given.keys() & options.keys():
            raise ArgumentError(twice, options[twice], "one value, by position or by name")
        return cls({}).replace(**given, **options)

    start.__name__ = start.__qualname__ = _function_name(spec)
    start.__doc__ = f"A builder of `{spec.name}`: {spec.summary}.\n\n{spec.formula}"
    start.__module__ = __name__
    start.builder = cls  # type: ignore[attr-defined]
    start.__signature__ = _signature(cls, names)  # type: ignore[attr-defined]
    _made[spec.full_name] = start
    return start


def _class(spec: MechanismSpec) -> type[Builder]:
    schema = resolve(spec.config)
    fields = schema.model_fields
    methods = {name: _setter(name, field) for name, field in fields.items() if name not in _OWN}
    title = "".join(part.capitalize() for part in spec.name.split("-"))
    namespace = {
        "__slots__": (), "__doc__": f"Options of `{spec.name}`.", "__module__": __name__,
        "spec": spec, "_fields": fields, **methods,
    }  # fmt: skip
    return type(f"{title}Builder", (Builder,), namespace)


def _setter(name: str, field: Any) -> Callable[..., Any]:
    if field.annotation is bool:

        def switch(self: Builder, value: bool = True) -> Builder:
            return self.replace(**{name: value})

        method: Callable[..., Any] = switch
    else:

        def choose(self: Builder, value: Any) -> Builder:
            return self.replace(**{name: value})

        method = choose
    method.__name__ = method.__qualname__ = name
    method.__doc__ = field.description
    return method


def _signature(cls: type[Builder], names: tuple[str, ...]) -> inspect.Signature:
    kinds = inspect.Parameter
    parameters = [
        kinds(
            name,
            kinds.POSITIONAL_OR_KEYWORD,
            default=kinds.empty if field.is_required() else field.default,
            annotation=field.annotation,
        )
        for name in names
        if (field := cls._fields.get(name)) is not None
    ]
    parameters.append(kinds("options", kinds.VAR_KEYWORD))
    return inspect.Signature(parameters, return_annotation=cls)


def _function_name(spec: MechanismSpec) -> str:
    return spec.name.replace("-", "_")


def _mechanisms_with(option: str, limit: int = 6) -> list[str]:
    """Names of mechanisms that have an option; of those that load."""
    found = []
    for name in registry.available():
        try:
            fields = resolve(_found(name).config).model_fields
        except (RegistryError, ImportError):
            continue
        if option in fields:
            found.append(name)
    return found[:limit]


def _restored(name: str, options: Mapping[str, Any], preset: str | None) -> Builder:
    made = builder(name, **options)
    return made if preset is None else made.preset(preset)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _function(_found(name))


def __dir__() -> list[str]:
    return sorted({*globals(), *(name.replace("-", "_") for name in registry.available())})
