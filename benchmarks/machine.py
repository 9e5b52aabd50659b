"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version


def describe() -> dict[str, object]:
    """Processor, vector width, threads and versions."""
    from polyattn_core.simd import target, threads

    versions = {}
    for name in ("polyattn", "polyattn-core", "numpy", "numba", "llvmlite", "torch", "onnxruntime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": target.cpu_name(),
        "vector_bytes": target.vector_bytes(),
        "cores": os.cpu_count(),
        "threads": threads.limit(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "versions": versions,
    }
