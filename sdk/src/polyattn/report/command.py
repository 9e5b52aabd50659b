"""The command `polyattn report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def report(
    data: Annotated[
        str,
        typer.Argument(
            help="A bundled data set (polyattn compare --list-data), or vectors in a .npy, .npz, "
            ".csv, .tsv or .parquet file.",
            show_default=False,
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(help="Labels, which are not looked at: a column, an array or a file."),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="standard (z-scores), unit (length 1) or none.")
    ] = "standard",
    limit: Annotated[int, typer.Option(help="Vectors used at most; 0 takes all.")] = 5000,
    html: Annotated[
        str | None, typer.Option(help="Also write a page to this file.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead.")
    ] = False,
) -> None:  # fmt: skip
    """Recommend a mechanism for a data set, and say why.

    The vectors are queries, keys and values. Each family that is installed contributes a metric.
    """
    import polyattn_registry as registry

    from ..cli._output import note, print_json, show, to_errors

    if html is not None:
        from ..compare._command import check_target

        check_target(Path(html))
    vectors = _vectors(data, labels, scale, limit)
    with to_errors().status(f"looking at {len(vectors):,} vectors"):
        choice = _recommended(vectors)
    page: Path | None = None
    if html is not None:
        from .page import render

        page = Path(html)
        page.write_text(render(choice, data, vectors), "utf-8")
    if as_json:
        print_json({"data": data, "shape": list(vectors.shape), **choice.to_dict()})
        return
    from .terminal import panel

    show(panel(choice, data, vectors.shape))
    summary = registry.spec(choice.mechanism).summary
    show(f"polyattn info {choice.mechanism}: {summary[0].lower()}{summary[1:]}")
    if page is not None:
        note(f"written to {page}")


def _recommended(vectors: Any) -> Any:
    from . import recommend

    return recommend(vectors)


def _vectors(data: str, labels: str | None, scale: str, limit: int) -> Any:
    import numpy as np

    from polyattn_core.errors import ArgumentError

    from ..compare._checks import check_finite
    from ..compare.data import as_vectors, load

    data_set = load(data, labels)
    vectors = np.asarray(as_vectors(data_set.vectors), np.float64)
    check_finite(vectors, np.arange(len(vectors)), data_set.columns)
    if limit < 0:
        raise ArgumentError("limit", limit, "0 for all, or how many at most")
    if limit and len(vectors) > limit:
        chosen = np.random.default_rng(0).choice(len(vectors), limit, replace=False)
        vectors = vectors[np.sort(chosen)]
    if scale == "standard":
        deviation = vectors.std(axis=0)
        return (vectors - vectors.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    if scale == "unit":
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(length > 0, length, 1)
    if scale != "none":
        raise ArgumentError("scale", scale, "standard, unit or none")
    return vectors
