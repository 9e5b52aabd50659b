"""Compiled code on disk: one file for each kernel and signature, written atomically.

Numba's own cache does not notice edits of helpers in other files, and its index can be corrupted
by processes that compile different signatures at once. Here the folder is named after the content
of all kernel sources and the versions that matter, and the file after the kernel, the signature
and the processor: nothing can go stale, and there is no index to corrupt.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import CompileResultCacheImpl, _Cache
from numba.core.serialize import dumps

logger = logging.getLogger("polyattn.cache")

_DIGEST = hashlib.sha256().digest_size


def base_folder() -> Path:
    """Where compiled kernels are kept: POLYATTN_CACHE_DIR, or the user's cache folder."""
    chosen = os.environ.get("POLYATTN_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "polyattn" / "kernels"


@functools.cache
def sources_digest(folder: Path) -> str:
    """Digest of all Python files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("**/*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def generation() -> str:
    """Names one generation of kernels: the tool kit's sources and the versions that matter."""
    versions = (numba.__version__, llvmlite.__version__, *sys.version_info[:3])
    text = f"{sources_digest(Path(__file__).parent)} {versions}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder() -> Path:
    """The folder of this generation."""
    return base_folder() / generation()


class KernelCache(_Cache):
    """The cache of one kernel, in the interface that Numba's dispatchers expect.

    A folder that cannot be written costs the time to compile in every process, nothing else;
    `problem` then says why.
    """

    problem: str = ""

    def __init__(self, key: str) -> None:
        self._key = key
        self._enabled = not os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"
        self.hits = 0

    @property
    def cache_path(self) -> str:
        return str(folder())

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        """Nothing to do: a file is never out of date."""

    def _file(self, signature: Any, magic: Any) -> Path:
        text = f"{self._key} {signature} {magic}"
        return folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.kernel"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        if not self._enabled:
            return None
        try:
            file = self._file(sig, target_context.codegen().magic_tuple())
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home folder
            self._report(f"cannot read them: {error}")
            return None
        # Machine code that is not what was written would bring the process down.
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            logger.warning("%s is damaged: the kernel is compiled anew", file)
            return None
        try:
            payload = pickle.loads(content[_DIGEST:])
        except (pickle.UnpicklingError, AttributeError, ImportError) as error:
            self._report(f"cannot load {file}: {error}")
            return None
        self.hits += 1
        return CompileResultCacheImpl.rebuild(None, target_context, payload)

    def save_overload(self, sig: Any, data: Any) -> None:
        if not self._enabled:
            return
        try:
            file = self._file(sig, data.codegen.magic_tuple())
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
            try:
                content = dumps(data._reduce())
                with os.fdopen(handle, "wb") as stream:
                    stream.write(hashlib.sha256(content).digest() + content)
                os.replace(name, file)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
        except (OSError, RuntimeError) as error:
            self._report(f"cannot write them: {error}")

    def _report(self, problem: str) -> None:
        if not KernelCache.problem:
            logger.warning("compiled kernels are not cached: %s", problem)
        KernelCache.problem = problem


def clear() -> int:
    """Delete all generations of compiled kernels; returns the number of files deleted."""
    count = 0
    for file in base_folder().glob("*/*.kernel"):
        with contextlib.suppress(OSError):
            file.unlink()
            count += 1
    return count
