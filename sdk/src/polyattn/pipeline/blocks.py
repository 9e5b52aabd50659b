"""Whole blocks of the transformer as pipelines, with the weights of torch's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import polyattn_registry as registry
from polyattn_core.errors import ParameterError

from .pipeline import AttentionPipeline
from .stages import Activation


def encoder_block(
    dim: int, heads: int, hidden: int | None = None, *, activation: Activation = "relu",
    norm_first: bool = False, dropout: float = 0.0, epsilon: float = 1e-5, bias: bool = True,
    **attention: Any,
) -> AttentionPipeline:  # fmt: skip
    """Self-attention and a feed-forward layer, each with a residual and a norm.

    Parameters
    ----------
    dim, heads, hidden
        Width of the stream, number of heads, width of the feed-forward layer (4 · dim).
    activation
        Of the feed-forward layer.
    norm_first
        Norms before attention and feed-forward layer, rather than behind the residuals.
    dropout
        Of weights, of the feed-forward layer, and of what either adds to the stream.
    epsilon
        Of the norms.
    bias
        Do norms and layers have vectors to add?
    **attention
        Further options of `multi-head`, such as ``causal=True``.

    Examples
    --------
    >>> import numpy as np, polyattn as pa
    >>> block = pa.encoder_block(32, 4, norm_first=True)
    >>> block.run(np.zeros((2, 5, 32), np.float32)).shape
    (2, 5, 32)

    With the weights of a `torch.nn.TransformerEncoderLayer`:

    >>> pa.load_torch_layer(block, layer.state_dict())  # doctest: +SKIP
    """
    parts = {"self_attention": "self"}
    return _block(
        parts, dim, heads, hidden, activation, norm_first, dropout, epsilon, bias, attention
    )


def decoder_block(
    dim: int, heads: int, hidden: int | None = None, *, activation: Activation = "relu",
    norm_first: bool = False, dropout: float = 0.0, epsilon: float = 1e-5, bias: bool = True,
    **attention: Any,
) -> AttentionPipeline:  # fmt: skip
    """Like :func:`encoder_block`, causal, with attention to a context after that to itself.

    The context is `key` of a run: ``block.run(target, memory, context_mask=…)``.
    """
    parts = {"self_attention": "self", "cross_attention": "context"}
    return _block(
        parts, dim, heads, hidden, activation, norm_first, dropout, epsilon, bias,
        {"causal": True, **attention},
    )  # fmt: skip


def _block(
    parts: Mapping[str, str], dim: int, heads: int, hidden: int | None, activation: Activation,
    norm_first: bool, dropout: float, epsilon: float, bias: bool, options: Mapping[str, Any],
) -> AttentionPipeline:  # fmt: skip
    pipeline = AttentionPipeline(dim)

    def surrounded(number: int, add: Any) -> None:
        norm: dict[str, Any] = {"name": f"norm{number}", "epsilon": epsilon, "bias": bias}
        start = len(pipeline)
        if norm_first:
            pipeline.add_norm("layer-norm", **norm)
        add()
        if dropout:
            pipeline.add_dropout(dropout)
        pipeline.add_residual(start)
        if not norm_first:
            pipeline.add_norm("layer-norm", **norm)

    for number, (name, source) in enumerate(parts.items(), 1):
        chosen = {"dim": dim, "heads": heads, "bias": bias, "dropout": dropout, **options}
        if source == "context":
            chosen["causal"] = False
        attention = registry.create("multi-head", **chosen)
        surrounded(
            number,
            lambda a=attention, s=source, n=name: pipeline.add_attention(a, source=s, name=n),
        )
    surrounded(
        len(parts) + 1,
        lambda: pipeline.add_feed_forward(
            hidden or 4 * dim, activation=activation, bias=bias, dropout=dropout
        ),
    )
    return pipeline


_TORCH_ATTENTION = {"self_attention": "self_attn", "cross_attention": "multihead_attn"}
_TORCH_LAYERS = {"feed_forward.up": "linear1", "feed_forward.down": "linear2"}


def load_torch_layer(pipeline: AttentionPipeline, state: Mapping[str, Any]) -> None:
    """Give a block the weights of a torch layer.

    Parameters
    ----------
    pipeline
        What :func:`encoder_block` or :func:`decoder_block` made.
    state
        The `state_dict()` of a `torch.nn.TransformerEncoderLayer` or `TransformerDecoderLayer`:
        names and arrays, or tensors on the CPU.

    Raises
    ------
    ParameterError
        Where names are missing or surplus, or a shape differs; nothing has been set then.
    """
    left = {name: np.asarray(array) for name, array in state.items()}
    arrays: dict[str, Any] = {}
    missing: list[str] = []

    def take(theirs: str) -> Any:
        if theirs not in left:
            missing.append(theirs)
            return np.empty(0)
        return left.pop(theirs)

    together: dict[str, Any] = {}
    for ours in pipeline.parameters:
        stage, _, inner = ours.partition(".")
        part, _, kind = inner.rpartition(".")
        if stage in _TORCH_ATTENTION:
            prefix = _TORCH_ATTENTION[stage]
            if part == "output":
                arrays[ours] = take(f"{prefix}.out_proj.{kind}")
                continue
            theirs = f"{prefix}.in_proj_{kind}"
            if theirs not in together:
                together[theirs] = take(theirs)
            whole = together[theirs]
            place = ("query", "key", "value").index(part)
            arrays[ours] = np.split(whole, 3)[place] if len(whole) % 3 == 0 else whole
        else:
            layer = _TORCH_LAYERS.get(f"{stage}.{part}", stage)
            arrays[ours] = take(f"{layer}.{kind}")
    if missing or left:
        words = (("missing", missing), ("surplus", list(left)))
        text = "; ".join(f"{word} {', '.join(names)}" for word, names in words if names)
        raise ParameterError("state", text, "the state of a torch layer of this kind")
    pipeline.parameters.update(arrays)
