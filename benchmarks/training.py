"""Training: an encoder block, InfoNCE, AdamW; time of torch over ours where torch is installed.

python benchmarks/training.py
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
from timing import interleaved

import polyattn as pa
from polyattn.training import AdamW, InfoNCE

TITLE = "Training, float32: time of torch ÷ ours"


def measure() -> list[dict[str, object]]:
    """Milliseconds of a call, and the time of torch over it."""
    parts = (_encoder_block, _info_nce, _adamw)
    return [row for part in parts for row in part()]


def _row(what: str, seconds: dict[str, float]) -> dict[str, object]:
    row: dict[str, object] = {"what": what, "milliseconds": 1e3 * seconds["ours"]}
    for name, taken in seconds.items():
        if name != "ours":
            row[f"{name} ÷ ours"] = taken / seconds["ours"]
    return row


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _encoder_block() -> list[dict[str, object]]:
    block = pa.encoder_block(768, 12, 3072, activation="gelu", norm_first=False)
    x = np.random.default_rng(0).standard_normal((8, 512, 768), dtype=np.float32)

    def with_gradients() -> object:
        output, pullback = block.vjp(x)
        return pullback(output)

    forward: dict[str, Callable[[], object]] = {"ours": lambda: block.run(x)}
    both: dict[str, Callable[[], object]] = {"ours": with_gradients}
    if _has_torch():
        import torch

        layer = torch.nn.TransformerEncoderLayer(
            768, 12, 3072, dropout=0.0, activation="gelu", batch_first=True
        )
        pa.load_torch_layer(block, layer.state_dict())
        tensor = torch.from_numpy(x)
        tracked = torch.from_numpy(x).requires_grad_()

        def theirs() -> object:
            with torch.no_grad():
                return layer(tensor)

        def theirs_with_gradients() -> object:
            output = layer(tracked)
            return torch.autograd.grad(output, [tracked, *layer.parameters()], output.detach())

        forward["torch"], both["torch"] = theirs, theirs_with_gradients
    title = "BERT-base encoder block, 8 × 512"
    return [
        _row(f"{title}, forward", interleaved(forward, rounds=5)),
        _row(f"{title}, forward and gradients", interleaved(both, rounds=5)),
    ]


def _info_nce() -> list[dict[str, object]]:
    query, positive = np.random.default_rng(0).standard_normal((2, 4096, 256), dtype=np.float32)
    loss = InfoNCE(temperature=0.07)
    candidates: dict[str, Callable[[], object]] = {"ours": lambda: loss(query, positive)}
    if _has_torch():
        import torch
        import torch.nn.functional as F

        q, p = (torch.from_numpy(a).requires_grad_() for a in (query, positive))
        labels = torch.arange(len(query))

        def theirs() -> object:
            logits = F.normalize(q, dim=-1) @ F.normalize(p, dim=-1).T / 0.07
            value = F.cross_entropy(logits, labels)
            return value, torch.autograd.grad(value, (q, p))

        candidates["torch"] = theirs
    return [_row("InfoNCE and gradients, 4,096 × 256", interleaved(candidates))]


def _adamw(size: int = 100_000_000) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    parameters = {"weight": rng.standard_normal(size, dtype=np.float32)}
    gradients = {"weight": rng.standard_normal(size, dtype=np.float32)}
    ours = AdamW(learning_rate=1e-3)
    candidates: dict[str, Callable[[], object]] = {"ours": lambda: ours.step(parameters, gradients)}
    if _has_torch():
        import torch

        weight = torch.nn.Parameter(torch.from_numpy(parameters["weight"].copy()))
        weight.grad = torch.from_numpy(gradients["weight"])
        for name, options in (
            ("torch, fused", {"fused": True}),
            ("torch, foreach", {"foreach": True}),
        ):
            candidates[name] = torch.optim.AdamW([weight], lr=1e-3, **options).step
    return [_row("AdamW, 100 million parameters", interleaved(candidates, rounds=5))]


if __name__ == "__main__":
    for found in measure():
        print(*(f"{k} {v:.3g}" if isinstance(v, float) else v for k, v in found.items()), sep="  ")
