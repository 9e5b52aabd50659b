"""Checkpoints: all that training needs to go on, bit for bit, in one safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyattn_core.arrays import Array
from polyattn_core.errors import ArgumentError, FileFormatError, ParameterError

from ._checks import whole
from .optimiser import Optimiser, is_managed

FORMAT, VERSION = "polyattn-checkpoint", 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What :func:`load_checkpoint` found beside arrays."""

    step: int
    extra: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    parameters: Mapping[str, Any],
    step: int,
    optimiser: Optimiser | None = None,
    rng: np.random.Generator | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write parameters, the optimiser's state, the step and the generator's state.

    A file that is there already is replaced in one go: an interruption leaves the old one.

    Parameters
    ----------
    path
        Where to.
    parameters
        Arrays by name: a dictionary, or the `parameters` of a mechanism or pipeline.
    step
        Steps taken; schedules and curricula go on from there.
    optimiser, rng
        What else goes on where it was.
    extra
        Anything else, ready for JSON.
    """
    from safetensors.numpy import save_file

    arrays = {f"parameter/{k}": np.array(v, order="C") for k, v in parameters.items()}
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "step": whole("step", step)}
    if optimiser is not None:
        arrays |= {f"optimiser/{k}": v for k, v in optimiser.state().items()}
        header["optimiser"] = _described(optimiser)
    if rng is not None:
        header["rng"] = _plain(rng.bit_generator.state)
    try:
        text = json.dumps({**header, "extra": dict(extra or {})})
    except (TypeError, ValueError) as error:
        raise ArgumentError("extra", str(error), "what JSON can hold") from None
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file(arrays, str(unfinished), metadata={"polyattn": text})
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    parameters: Any,
    optimiser: Optimiser | None = None,
    rng: np.random.Generator | None = None,
) -> Checkpoint:
    """Set what is passed to what a file holds: all of it, or nothing where something does not fit.

    Parameters
    ----------
    path
        What :func:`save_checkpoint` wrote.
    parameters
        Arrays to write into, of the same names, shapes and dtypes; or something with `update`.
    optimiser
        One of the same kind and options (its learning rate may be another).
    rng
        A generator of the same kind.

    Raises
    ------
    FileFormatError
        Where the file is none of these, of another version, or lacks what is asked for.
    ParameterError
        Where names, shapes or dtypes differ, naming both sides.
    """
    arrays, header = _read(path)
    found, slots = _under("parameter/", arrays), _under("optimiser/", arrays)
    _check_names(found, parameters)
    if optimiser is not None:
        _check_optimiser(header, optimiser)
        for full, array in slots.items():
            if full.partition("/")[2] not in found:
                raise FileFormatError("path", f"state of {full}", "state of parameters it holds")
            if array.dtype.kind != "f":
                raise FileFormatError("path", f"{full} of {array.dtype}", "real numbers")
    fresh = None
    if rng is not None:
        fresh = _generator_state(header, rng)
    previous = None if optimiser is None else (optimiser.state(), optimiser.steps)
    if optimiser is not None:
        optimiser.load_state(slots, header["optimiser"]["steps"])  # refuses before it changes
    try:
        if is_managed(parameters):
            parameters.update(found)
        else:
            for name, array in found.items():
                parameters[name][...] = array
    except Exception:
        if optimiser is not None and previous is not None:
            optimiser.load_state(*previous)
        raise
    if rng is not None and fresh is not None:
        rng.bit_generator.state = fresh
    return Checkpoint(header["step"], header["extra"])


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _described(optimiser: Optimiser) -> dict[str, Any]:
    return {"name": optimiser.name, "options": optimiser.options(), "steps": optimiser.steps}


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "np") as file:
            text = (file.metadata() or {}).get("polyattn", "null")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FileFormatError("path", f"{path} ({error})", "a safetensors file") from None
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise FileFormatError("path", str(path), f"a file of format {FORMAT!r}")
    if header.get("version") != VERSION:
        raise FileFormatError("version", header.get("version"), f"version {VERSION}")
    return arrays, header


def _check_names(found: Mapping[str, Array], parameters: Mapping[str, Any]) -> None:
    missing = [name for name in parameters if name not in found]
    surplus = [name for name in found if name not in parameters]
    parts = (("missing", missing), ("surplus", surplus))
    if text := "; ".join(f"{word} {', '.join(names)}" for word, names in parts if names):
        raise ParameterError("path", text, f"exactly {', '.join(parameters) or 'none'}")
    for name, array in found.items():
        own = parameters[name]
        if array.shape != own.shape or array.dtype != own.dtype:
            theirs, ours = f"{array.dtype} {array.shape}", f"{own.dtype} {own.shape}"
            raise ParameterError(name, theirs, f"{ours} like the parameter")
        if not is_managed(parameters) and not own.flags.writeable:
            raise ParameterError(name, "a read-only array", "one that may be written")


def _check_optimiser(header: Mapping[str, Any], optimiser: Optimiser) -> None:
    theirs, ours = header.get("optimiser"), json.loads(json.dumps(_described(optimiser)))
    if theirs is None:
        raise FileFormatError("optimiser", "none in the file", f"the state of {optimiser.name}")
    for key in ("name", "options"):
        if theirs[key] != ours[key]:
            raise ParameterError("optimiser", f"{theirs[key]} in the file", f"{ours[key]}")


def _generator_state(header: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    state: dict[str, Any] | None = header.get("rng")
    own = rng.bit_generator.state["bit_generator"]
    if state is None:
        raise FileFormatError("rng", "none in the file", f"the state of {own}")
    if state["bit_generator"] != own:
        raise FileFormatError("rng", f"{state['bit_generator']} in the file", own)
    return state


def _plain(state: Any) -> Any:
    """Arrays as lists: the states of some generators hold them."""
    if isinstance(state, Mapping):
        return {key: _plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray | np.generic) else state


__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]
