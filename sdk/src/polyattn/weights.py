"""Weights from elsewhere: safetensors files, state dicts, the names that other libraries use.

>>> import numpy as np
>>> import polyattn as pa
>>> from polyattn import weights
>>> layer = pa.AttentionPreset.Gpt.builder(64).build()
>>> state = weights.state(layer, layout="gpt2", prefix="h.0.attn.")
>>> {name: array.shape for name, array in state.items()}  # doctest: +NORMALIZE_WHITESPACE
{'h.0.attn.c_attn.weight': (64, 192), 'h.0.attn.c_attn.bias': (192,),
 'h.0.attn.c_proj.weight': (64, 64), 'h.0.attn.c_proj.bias': (64,)}
>>> other = pa.AttentionPreset.Gpt.builder(64).build()
>>> weights.load(other, state, layout="gpt2", prefix="h.0.attn.")

Without a layout, names are those of the parameters here. A layout is the name of a preset, whose
`weights` say what its models call them, or such a mapping.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import polyattn_registry as registry
from polyattn_core.errors import ArgumentError, FileFormatError, ParameterError

Array = npt.NDArray[Any]
Layout = str | Mapping[str, str | Sequence[str]] | None

_EXPRESSION = re.compile(
    r"(?P<name>.+?)(?P<transposed>\.T)?(?P<heads> by heads)?(?: \+ (?P<plus>[0-9.]+))?"
)


class _Rule(NamedTuple):
    """One array there, and what it is here."""

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    plus: float = 0.0
    heads: int = 1
    """Parts of each of ours that alternate there."""


def load(
    target: Any, source: Any, *, layout: Layout = None, prefix: str = "",
    ignore: Iterable[str] = (),
) -> None:  # fmt: skip
    """Set the parameters of a mechanism or pipeline.

    Parameters
    ----------
    target
        Anything with `parameters`.
    source
        Names and arrays, or tensors of torch, such as a `state_dict()`; or the path of a
        safetensors file, or of a folder with one, or with several and their index. Of files, only
        what is needed is read.
    layout
        The name of a preset, or a mapping like its `weights`. None for the names used here.
    prefix
        Beginning of the names that are meant, such as ``"model.layers.0.self_attn."``.
    ignore
        Names behind the prefix, with wildcards, that may be there besides.

    Raises
    ------
    ParameterError
        Where names are missing or surplus, or shapes differ, naming both sides; or where the layout
        does not fit the parameters. Nothing has been set then.
    FileFormatError
        Where a file is not of that format.
    """
    rules, passed_over = _rules(target, layout)
    names, read = _opened(source)
    found = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    expected = {rule.theirs: rule for rule in rules}
    missing = [name for name in expected if name not in found]
    patterns = [*ignore, *passed_over, *(f"{name}.*" for name in passed_over)]
    surplus = sorted(
        name for name in found.difference(expected)
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )  # fmt: skip
    if missing or surplus:
        words = {
            "missing": [f"{name} ({', '.join(expected[name].ours)} here)" for name in missing],
            "surplus": surplus,
        }
        text = "; ".join(f"{word} {', '.join(some)}" for word, some in words.items() if some)
        where = f" behind {prefix!r}" if prefix else ""
        raise ParameterError(
            "source", text, f"exactly {', '.join(expected)}{where}{_near(prefix, names, found)}"
        )
    arrays: dict[str, Array] = {}
    for rule in rules:
        arrays |= _ours(rule, _array(read(prefix + rule.theirs)), target.parameters)
    target.parameters.update(arrays)


def state(target: Any, *, layout: Layout = None, prefix: str = "") -> dict[str, Array]:
    """The parameters under the names of a layout: what :func:`load` takes."""
    rules, _ = _rules(target, layout)
    found = {}
    for rule in rules:
        parts = [np.split(target.parameters[name], rule.heads) for name in rule.ours]
        array = np.concatenate([part for head in zip(*parts, strict=True) for part in head])
        array -= rule.plus
        found[prefix + rule.theirs] = np.array(array.T if rule.transposed else array, order="C")
    return found


def save(
    target: Any, path: str | PathLike[str], *, layout: Layout = None, prefix: str = ""
) -> None:
    """Write :func:`state` to a safetensors file."""
    from safetensors.numpy import save_file

    save_file(state(target, layout=layout, prefix=prefix), str(path))


def _rules(target: Any, layout: Layout) -> tuple[list[_Rule], list[str]]:
    """What every parameter is there, and names there to pass over."""
    own = tuple(target.parameters)
    if layout is None:
        return [_Rule(name, (name,)) for name in own], []
    if isinstance(layout, str):
        whose, mapping = layout, registry.preset(layout).weights
        if not mapping:
            known = ", ".join(p.name for p in registry.presets() if p.weights)
            raise ArgumentError("layout", layout, f"a preset with weights: {known}")
    else:
        whose = "it"
        mapping = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in layout.items()}
    rules: list[_Rule] = []
    passed_over: list[str] = []
    for expression, names in mapping.items():
        match = _EXPRESSION.fullmatch(expression)
        assert match is not None  # it matches whatever is not empty
        theirs, transposed = match["name"], match["transposed"] is not None
        if not names:
            passed_over.append(theirs)
            continue
        plus = float(match["plus"] or 0)
        heads = _heads(target, expression) if match["heads"] else 1
        if set(names) <= set(own):
            rules.append(_Rule(theirs, names, transposed, plus, heads))
            continue
        inner = {p.removeprefix(f"{n}."): None for n in names for p in own if p.startswith(f"{n}.")}
        rules += [
            _Rule(f"{theirs}.{last}", tuple(f"{n}.{last}" for n in names), transposed, plus, heads)
            for last in inner or ("weight",)
        ]
    for rule in rules:
        uneven = [name for name in rule.ours if name in own and rule.heads > 1
                  and (target.parameters[name].shape or (1,))[0] % rule.heads]  # fmt: skip
        if uneven:
            shape = target.parameters[uneven[0]].shape
            wanted = f"{uneven[0]} {shape} with as many rows for each of {rule.heads} heads"
            raise ArgumentError("layout", f"{rule.theirs} by heads", wanted)
    covered = [name for rule in rules for name in rule.ours]
    words = {
        "with": [name for name in covered if name not in own],
        "without": [name for name in own if name not in covered],
    }
    if any(words.values()):
        text = ", ".join(f"{word} {', '.join(some)}" for word, some in words.items() if some)
        raise ParameterError("layout", f"{whose} {text}", f"exactly {', '.join(own)}")
    return rules, passed_over


def _heads(target: Any, expression: str) -> int:
    heads = getattr(getattr(target, "config", None), "heads", None)
    if heads is None:
        raise ArgumentError("layout", expression, f"no heads: {type(target).__name__} has none")
    return int(heads)


def _ours(rule: _Rule, array: Array, own: Mapping[str, Array]) -> dict[str, Array]:
    """An array from there taken apart."""
    shapes = [own[name].shape for name in rule.ours]
    rows = [shape[0] if shape else 0 for shape in shapes]
    whole = shapes[0] if len(shapes) == 1 else (sum(rows), *shapes[0][1:])
    turned = array.T if rule.transposed else array
    if turned.shape != whole:
        expected = whole[::-1] if rule.transposed else whole
        parts = ", ".join(f"{name} {own[name].shape}" for name in rule.ours)
        raise ParameterError(rule.theirs, array.shape, f"shape {expected}, for {parts} here")
    if rule.plus:
        turned = turned + rule.plus
    if len(rule.ours) == 1:
        return {rule.ours[0]: turned}
    by_head = turned.reshape((rule.heads, -1, *turned.shape[1:]))
    own_parts = np.split(by_head, np.cumsum([n // rule.heads for n in rows])[:-1], axis=1)
    return {
        name: part.reshape(shape)
        for name, part, shape in zip(rule.ours, own_parts, shapes, strict=True)
    }


def _array(value: Any) -> Array:
    if hasattr(value, "detach"):  # a tensor of torch, which need not be imported
        value = value.detach().cpu()
        # NumPy has no dtype for it, and float32 holds all its numbers.
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


def _near(prefix: str, names: Iterable[str], found: set[str]) -> str:
    """What was meant by a prefix that no name has."""
    if found or not prefix:
        return ""
    parts = {name[: i + 1] for name in names for i, letter in enumerate(name) if letter == "."}
    close = difflib.get_close_matches(prefix, sorted(parts), n=1)
    return f" (did you mean prefix={close[0]!r}?)" if close else ""


def _opened(source: Any) -> tuple[list[str], Callable[[str], Any]]:
    """All names of a source, and a function that reads one."""
    if isinstance(source, Mapping):
        return list(source), source.__getitem__
    if not isinstance(source, str | PathLike):
        raise ArgumentError("source", source, "a mapping of names to arrays, or a path")
    files = _files(Path(source))

    def read(name: str) -> Any:
        with _safetensors(files[name]) as file:
            return file.get_tensor(name)

    return list(files), read


def _files(path: Path) -> dict[str, Path]:
    """Name of each array → the file that holds it."""
    if path.is_dir():
        index, single = path / "model.safetensors.index.json", path / "model.safetensors"
        path = index if index.exists() else single
    if not path.exists():
        raise FileFormatError("source", str(path), "a safetensors file, or a folder with one")
    if path.suffix == ".json":
        try:
            parts = json.loads(path.read_text("utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(
                "source", f"{path} ({error})", "an index of safetensors files"
            ) from None
        return {name: path.parent / file for name, file in parts.items()}
    with _safetensors(path) as file:
        return dict.fromkeys(file.keys(), path)


def _safetensors(path: Path) -> Any:
    import ml_dtypes  # noqa: F401 - gives NumPy the name bfloat16
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise FileFormatError("source", f"{path} ({error})", "a safetensors file") from None
