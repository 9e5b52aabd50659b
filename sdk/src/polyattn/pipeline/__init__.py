"""Pipelines: attention with what stands around it in a network.

>>> import numpy as np
>>> import polyattn as pa
>>> pipeline = (
...     pa.AttentionPipeline()
...     .add_norm("layer-norm")
...     .add_attention(pa.multi_head(32, 4))
...     .add_dropout(0.1)
...     .add_residual()
...     .add_norm("rms-norm")
... )
>>> x = np.random.default_rng(0).standard_normal((2, 5, 32))
>>> pipeline.run(x).shape
(2, 5, 32)
"""

from __future__ import annotations

from .blocks import decoder_block, encoder_block, load_torch_layer
from .pipeline import AttentionPipeline, PipelineGradients
from .stage import Flow, Stage, StageGradients

__all__ = [
    "AttentionPipeline",
    "Flow",
    "PipelineGradients",
    "Stage",
    "StageGradients",
    "decoder_block",
    "encoder_block",
    "load_torch_layer",
]
