"""Attention mechanisms for NumPy arrays, found by name among the installed plugins.

>>> import numpy as np
>>> import polyattn as pa
>>> tokens = np.random.default_rng(0).standard_normal((2, 5, 16))
>>> flash = pa.create("flash", dim=16, heads=4, causal=True)
>>> flash(tokens).shape
(2, 5, 16)

==================  ==========================================================================
``create``          a mechanism by name, with its options checked
``attend``          the same, called once
``flash(1024)`` …   a builder of each mechanism: ``flash(1024).heads(16).causal().build()``
``builder``         the same by name, for plugins too
``AttentionPipeline``  attention with norms, residuals, feed-forward layers around it
``encoder_block``   one of the transformer's; ``decoder_block``, ``load_torch_layer``
``AttentionPreset``  builders as known models have it; ``from_model_name("gpt2", 768)``
``for_sequences`` …  builders for data of some kind
``training``        losses, optimisers, schedules, miners, checkpoints
``weights``         weights from safetensors files and state dicts, under the names of models
``recommend``       a mechanism for some data, and why
``available``       names of what is installed; ``spec``, ``config_schema``, ``presets`` describe it
``plugins``         what is installed, what failed to load and why
``register``        adds a mechanism of your own; ``prefer`` settles clashes of names
``KVCache``         keys and values of past tokens; also ``RingCache``, ``PagedCache``
``masks``           which keys a query may see
``positions``       rotary embeddings and position biases
``score_rule``      makes a small function a score rule, compiled into the kernels
``diagnostics``     events: mechanism created, attention computed, kernel compiled …
``errors``          all errors that are raised on purpose
==================  ==========================================================================

Importing this package imports neither NumPy nor pydantic nor Numba; the first use of what needs
them does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from polyattn_core import errors
from polyattn_registry import (
    available,
    config_schema,
    create,
    plugins,
    prefer,
    preset,
    presets,
    register,
    spec,
)
from polyattn_registry.first_party import RESERVED_NAMES

from ._attend import attend, refresh

if TYPE_CHECKING:
    from polyattn_core import diagnostics, masks, positions
    from polyattn_core.caches import KVCache, PagedCache, RingCache
    from polyattn_core.mechanism import Attention
    from polyattn_core.simd.rules import score_rule, squared_norm
    from polyattn_core.spec import (
        Capabilities,
        EntrySpec,
        MechanismSpec,
        PresetSpec,
        SideInput,
    )

    from . import builders, training, weights
    from .builders import *  # noqa: F403 - what mechanisms there are, its stub says
    from .builders import Builder, builder
    from .model_presets import (
        AttentionPreset,
        for_generation,
        for_graphs,
        for_large_scale,
        for_sequences,
        for_vision,
        from_model_name,
        preset_builder,
    )
    from .pipeline import AttentionPipeline, decoder_block, encoder_block, load_torch_layer
    from .report import recommend

__version__ = "0.1.0"

__all__ = [
    "Attention",
    "AttentionPipeline",
    "AttentionPreset",
    "Builder",
    "Capabilities",
    "EntrySpec",
    "KVCache",
    "MechanismSpec",
    "PagedCache",
    "PresetSpec",
    "RingCache",
    "SideInput",
    "attend",
    "available",
    "builder",
    "builders",
    "config_schema",
    "create",
    "decoder_block",
    "diagnostics",
    "encoder_block",
    "errors",
    "for_generation",
    "for_graphs",
    "for_large_scale",
    "for_sequences",
    "for_vision",
    "from_model_name",
    "load_torch_layer",
    "masks",
    "plugins",
    "positions",
    "prefer",
    "preset",
    "preset_builder",
    "presets",
    "recommend",
    "refresh",
    "register",
    "score_rule",
    "spec",
    "squared_norm",
    "training",
    "weights",
]

_ON_FIRST_USE = {
    "Attention": "polyattn_core.mechanism:Attention",
    "AttentionPipeline": "polyattn.pipeline:AttentionPipeline",
    "AttentionPreset": "polyattn.model_presets:AttentionPreset",
    "Builder": "polyattn.builders:Builder",
    "Capabilities": "polyattn_core.spec:Capabilities",
    "EntrySpec": "polyattn_core.spec:EntrySpec",
    "KVCache": "polyattn_core.caches:KVCache",
    "MechanismSpec": "polyattn_core.spec:MechanismSpec",
    "PagedCache": "polyattn_core.caches:PagedCache",
    "PresetSpec": "polyattn_core.spec:PresetSpec",
    "RingCache": "polyattn_core.caches:RingCache",
    "SideInput": "polyattn_core.spec:SideInput",
    "builder": "polyattn.builders:builder",
    "builders": "polyattn.builders",
    "decoder_block": "polyattn.pipeline:decoder_block",
    "diagnostics": "polyattn_core.diagnostics",
    "encoder_block": "polyattn.pipeline:encoder_block",
    "for_generation": "polyattn.model_presets:for_generation",
    "for_graphs": "polyattn.model_presets:for_graphs",
    "for_large_scale": "polyattn.model_presets:for_large_scale",
    "for_sequences": "polyattn.model_presets:for_sequences",
    "for_vision": "polyattn.model_presets:for_vision",
    "from_model_name": "polyattn.model_presets:from_model_name",
    "load_torch_layer": "polyattn.pipeline:load_torch_layer",
    "masks": "polyattn_core.masks",
    "pipeline": "polyattn.pipeline",
    "positions": "polyattn_core.positions",
    "preset_builder": "polyattn.model_presets:preset_builder",
    "recommend": "polyattn.report:recommend",
    "score_rule": "polyattn_core.simd.rules:score_rule",
    "squared_norm": "polyattn_core.simd.rules:squared_norm",
    "training": "polyattn.training",
    "weights": "polyattn.weights",
}


def __getattr__(name: str) -> Any:
    reference = _ON_FIRST_USE.get(name)
    if reference is None and name.replace("_", "-") in RESERVED_NAMES:
        from . import builders

        return getattr(builders, name)  # not kept: what is installed may change
    if reference is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = reference.partition(":")
    value: Any = importlib.import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    from . import builders

    short = (name.replace("_", "-") for name in dir(builders))
    own = {name.replace("-", "_") for name in short if name in RESERVED_NAMES}
    return sorted({*globals(), *__all__, *own})
