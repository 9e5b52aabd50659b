"""What there is to know about an installation, and what is wrong with it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

_OWN = ("polyattn", "polyattn_core", "polyattn_registry")
_NEEDED = (
    "numpy", "numba", "llvmlite", "pydantic", "pluggy", "importlib_metadata", "safetensors",
    "ml_dtypes", "typer", "rich",
)  # fmt: skip
_OPTIONAL = {"sklearn": "scikit-learn", "pyarrow": "pyarrow", "altair": "altair"}
_TELLING_FEATURES = (
    "avx512f", "avx512bf16", "avx512vnni", "avx2", "fma", "avx", "sse4.2", "neon", "sve",
)  # fmt: skip
_VARIABLES = ("POLYATTN_", "NUMBA_")


class Finding(NamedTuple):
    """One thing that was looked at."""

    name: str
    value: str
    state: Literal["ok", "warning", "problem"] = "ok"
    advice: str = ""


def examine() -> dict[str, list[Finding]]:
    """Look at everything but the plugins, by section. What cannot be looked at is a problem."""
    sections: dict[str, Callable[[], Iterator[Finding]]] = {
        "Versions": _versions,
        "Processor": _processor,
        "Kernels": _kernels,
        "Environment": _environment,
    }
    return {title: list(_guarded(title, look)) for title, look in sections.items()}


def _guarded(title: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except Exception as error:  # whatever is broken is what this is here to report
        yield Finding(title.lower(), f"{type(error).__name__}: {error}", "problem")


def _versions() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} ({platform.python_implementation()})")
    series = set()
    for name in _OWN:
        version = str(importlib.import_module(name).__version__)
        series.add(version.rpartition(".")[0])
        yield Finding(name.replace("_", "-"), version)
    if len(series) > 1:
        yield Finding(
            "polyattn packages", f"of several series: {', '.join(sorted(series))}", "problem",
            "upgrade them together",
        )  # fmt: skip
    for name in _NEEDED:
        yield _package(name)
    for name, distribution in _OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            advice = 'for polyattn compare: pip install "polyattn[compare]"'
            yield Finding(distribution, "not installed", advice=advice)
        else:
            yield Finding(distribution, _version(distribution))


def _package(name: str) -> Finding:
    try:
        module = importlib.import_module(name)
    except Exception as error:  # an import may fail with anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(name.replace("_", "-"), reason, "problem", "reinstall it")
    return Finding(name.replace("_", "-"), _version(name, getattr(module, "__version__", "")))


def _version(distribution: str, otherwise: str = "") -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return otherwise or "unknown"


def _processor() -> Iterator[Finding]:
    from polyattn_core.simd import target, threads

    features = target.cpu_features()
    telling = ", ".join(name for name in _TELLING_FEATURES if name in features)
    width = target.vector_bytes()
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding("processor", target.cpu_name())
    yield Finding("features", telling or "unknown")
    yield _vectors(width, target.machine_vector_bytes())
    own = "from a pool of polyattn's own; Numba's threading layers are not used"
    yield Finding("threads", f"{threads.limit()} of {os.cpu_count()} cores ({own})")


def _vectors(width: int, machine: int) -> Finding:
    """The vectors that kernels are made of, beside those that the machine has."""
    found = f"{8 * width} bits: {width // 4} float32 or {width // 8} float64"
    if width == machine:
        return Finding("vectors", f"{found}, the widest of this machine")
    state: Literal["warning", "problem"] = "warning" if width < machine else "problem"
    effect = "kernels are slower than they could be" if width < machine else "kernels may crash"
    set_by = "POLYATTN_VECTOR_BYTES, NUMBA_CPU_NAME or NUMBA_CPU_FEATURES"
    return Finding(
        "vectors", found, state, f"this machine has {8 * machine} bits: {effect}; unset {set_by}"
    )


def _kernels() -> Iterator[Finding]:
    from polyattn_core.simd import cache

    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        yield Finding(
            "compilation", "off", "warning", "NUMBA_DISABLE_JIT is set: kernels are very slow"
        )
    folder = cache.folder()
    yield Finding("cache", str(folder))
    problem = cache.KernelCache.problem or _refusal(folder)
    if problem:
        advice = "every process compiles anew; set POLYATTN_CACHE_DIR to a folder that can be"
        yield Finding("cache state", problem, "problem", f"{advice} written")
        return
    yield Finding("cache state", "can be written")
    number, size = _size(folder.glob("*.kernel"))
    advice = "" if number else "polyattn warmup compiles them ahead of their use"
    yield Finding("kernels", f"{number} compiled, {size:.1f} MB", advice=advice)
    everything, total = _size(cache.base_folder().glob("*/*.kernel"))
    if everything > number:
        old = f"{everything - number} of other versions, {total - size:.1f} MB"
        yield Finding("old kernels", old, advice="polyattn cache clear deletes all")


def _refusal(folder: Path) -> str:
    """Why nothing can be written to a folder that need not exist yet; empty where it can."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        # Only the attempt tells: of a read-only volume, a quota and the super-user, access() knows
        # nothing.
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"cannot be written: {error.strerror or error}"


def _size(files: Iterator[Path]) -> tuple[int, float]:
    sizes = [file.stat().st_size for file in files]
    return len(sizes), sum(sizes) / 1e6


def _environment() -> Iterator[Finding]:
    yield Finding("interpreter", sys.executable)
    for name in sorted(os.environ):
        if name.startswith(_VARIABLES):
            yield Finding(name, os.environ[name])
