"""Typed errors: what they say, what they are, and that they survive a trip between processes."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest

from polyattn_core import errors
from polyattn_core.errors import PolyattnError

EXAMPLES: list[tuple[PolyattnError, str, tuple[type[Exception], ...]]] = [
    (
        errors.ArgumentError("heads", 3, "a divisor of 8"),
        "heads: got 3; expected a divisor of 8",
        (ValueError,),
    ),
    (
        errors.UnknownOptionError("jitter", "an option", "one of dim, heads"),
        "jitter: got an option; expected one of dim, heads",
        (ValueError, AttributeError, errors.ConfigError),
    ),
    (
        errors.ShapeError("key", (2, 3), "head size 4"),
        "key: got (2, 3); expected head size 4",
        (ValueError, errors.ArgumentError),
    ),
    (
        errors.DTypeError("value", "int64", "float32"),
        "value: got int64; expected float32",
        (ValueError, TypeError, errors.ArgumentError),
    ),
    (
        errors.MaskError("left", -1, "0 or more"),
        "left: got -1; expected 0 or more",
        (ValueError, errors.ArgumentError),
    ),
    (
        errors.ConfigError("dim", "x", "a whole number"),
        "dim: got x; expected a whole number",
        (ValueError, errors.ArgumentError),
    ),
    (errors.DataError("rows", [], "some"), "rows: got []; expected some", (ValueError,)),
    (
        errors.FileFormatError("path", "a.npy", "a safetensors file"),
        "path: got a.npy; expected a safetensors file",
        (ValueError,),
    ),
    (
        errors.ParameterError("gain", (3,), "shape (4,)"),
        "gain: got (3,); expected shape (4,)",
        (ValueError,),
    ),
    (
        errors.MissingInputError("graph/gat", "edges", "pairs of nodes, (2, edges)"),
        "graph/gat needs edges=: pairs of nodes, (2, edges)",
        (TypeError,),
    ),
    (
        errors.CapabilityError("sparse/lsh", "gradients"),
        "sparse/lsh does not support gradients",
        (),
    ),
    (
        errors.CapabilityError("sparse/lsh", "gradients", ["flash", "linear"]),
        "sparse/lsh does not support gradients; mechanisms that do: flash, linear",
        (),
    ),
    (errors.KernelError("the rule is wrong"), "the rule is wrong", ()),
    (errors.RegistryError("no registry"), "no registry", ()),
    (
        errors.UnknownNameError("loss", "mae"),
        "no loss is called 'mae'",
        (LookupError, errors.RegistryError),
    ),
    (
        errors.UnknownNameError("mechanism", "flsh", iter(("flash", "lsh"))),
        "no mechanism is called 'flsh'; did you mean 'flash' or 'lsh'?",
        (LookupError,),
    ),
    (
        errors.UnknownFamilyError("family", "acne", ("acme",)),
        "no family is called 'acne'; did you mean 'acme'?",
        (LookupError, errors.UnknownNameError),
    ),
    (
        errors.NotInstalledError("mechanism", "sinkhorn", "polyattn-transport"),
        "the mechanism 'sinkhorn' is not installed: pip install polyattn-transport",
        (LookupError, errors.UnknownNameError),
    ),
    (
        errors.NotInstalledError("mechanism", "sinkhorn", "polyattn-transport", ("acme/sinkhorn",)),
        (
            "the mechanism 'sinkhorn' is not installed: pip install "
            "polyattn-transport; other packages offer 'acme/sinkhorn'"
        ),
        (LookupError,),
    ),
    (
        errors.NotInstalledError("mechanism", "new", "polyattn-sparse", installed="0.1.0"),
        (
            "the mechanism 'new' is not in polyattn-sparse 0.1.0: pip install "
            "--upgrade polyattn-sparse"
        ),
        (LookupError,),
    ),
    (
        errors.AmbiguousNameError("mechanism", "one", ["acme/one", "beta/one"]),
        (
            "several plugins provide a mechanism called 'one'; write one of "
            "'acme/one', 'beta/one', or choose with polyattn.prefer('one', "
            "'acme/one')"
        ),
        (LookupError, errors.RegistryError),
    ),
    (
        errors.DuplicateNameError("mechanism", "acme/one", "acme-attention"),
        "the mechanism 'acme/one' is already registered by acme-attention",
        (ValueError, errors.RegistryError),
    ),
    (
        errors.ReservedNameError("family", "sparse", "polyattn-sparse"),
        "the family 'sparse' is reserved for polyattn-sparse",
        (ValueError, errors.RegistryError),
    ),
    (
        errors.PluginError("acme-attention", "SystemExit: 3"),
        "acme-attention is installed, but failed to load: SystemExit: 3; run polyattn doctor",
        (ImportError, errors.RegistryError),
    ),
    (
        errors.PluginDisabledError("acme-attention", "disabled by X=acme"),
        "acme-attention is installed, but disabled by X=acme",
        (ImportError, errors.PluginError),
    ),
]
each = pytest.mark.parametrize(
    ("error", "text", "bases"), EXAMPLES, ids=[type(e).__name__ for e, _, _ in EXAMPLES]
)


@each
def test_what_it_says(error: PolyattnError, text: str, bases: tuple[type[Exception], ...]) -> None:
    assert str(error) == text
    assert isinstance(error, (PolyattnError, *bases))
    for base in bases:
        assert isinstance(error, base)


@each
def test_it_survives_pickling_and_copying(
    error: PolyattnError, text: str, bases: tuple[type[Exception], ...]
) -> None:
    error.add_note("a note")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert str(again) == text
        assert again.args == error.args
        assert vars(again) == vars(error)


def test_every_error_has_an_example() -> None:
    defined = {
        value
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if value.__module__ == errors.__name__
    }
    assert defined - {type(error) for error, _, _ in EXAMPLES} == {PolyattnError}


def test_unrelated_categories_are_not_caught() -> None:
    """An unknown name is no KeyError, whose text is the repr of its argument."""
    assert not issubclass(errors.UnknownNameError, KeyError)
    assert not issubclass(errors.ShapeError, TypeError)
    assert not issubclass(errors.CapabilityError, ValueError)


def test_long_values_are_cut() -> None:
    text = str(errors.ArgumentError("ids", list(range(1000)), "fewer"))
    assert text.startswith("ids: got [0, 1, 2, 3")
    assert text.endswith("…; expected fewer")
    assert len(text) < 160
    assert str(errors.ArgumentError("name", "x" * 120, "y")) == f"name: got {'x' * 120}; expected y"


def test_what_they_carry() -> None:
    error = errors.NotInstalledError("mechanism", "a", "polyattn-b", ["c/a"], "0.1")
    assert (error.kind, error.name, error.distribution) == ("mechanism", "a", "polyattn-b")
    assert (error.suggestions, error.installed) == (("c/a",), "0.1")
    capability = errors.CapabilityError("a/b", "gradients", ["c"])
    assert (capability.mechanism, capability.capability) == ("a/b", "gradients")
    assert capability.alternatives == ("c",)


def test_values_are_shown_on_one_line() -> None:
    assert str(errors.ArgumentError("name", "", "a name")) == "name: got ''; expected a name"
    text = str(errors.ArgumentError("edges", np.zeros((2, 2)), "edges"))
    assert text == "edges: got array([[0., 0.], [0., 0.]]); expected edges"
