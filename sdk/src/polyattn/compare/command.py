"""The command `polyattn compare`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

_CHOICES, _OUTPUT = "Choices", "Output"


def compare(
    data: Annotated[
        str | None,
        typer.Argument(
            help="A bundled data set (see --list-data), or vectors in a .npy, .npz, .csv, .tsv or "
            ".parquet file.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Labels: a column of the table, an array of the .npz, or a file. By default y, "
            "label, labels, target, targets or class, where there is one.",
            show_default=False,
        ),
    ] = None,
    mechanisms: Annotated[
        list[str] | None,
        typer.Option(
            "--mechanisms", "-m",
            help="Names, wildcards or names with options, separated by commas: "
            "'flash,*-max,top-k\\[k=16]'. All that fit by default.",
            show_default=False, rich_help_panel=_CHOICES,
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Only mechanisms of this family.", rich_help_panel=_CHOICES),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Names and wildcards to leave out, separated by commas.",
            show_default=False, rich_help_panel=_CHOICES,
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="MECHANISM.OPTION=VALUE",
            help="Set an option, as in top-k.k=16. Setting the one for sharpness fixes it.",
            show_default=False, rich_help_panel=_CHOICES,
        ),
    ] = None,
    task: Annotated[
        str, typer.Option(help="auto, classification, regression or reconstruction.")
    ] = "auto",
    metric: Annotated[
        str | None,
        typer.Option(
            help="Rank by and tune for: accuracy, log-loss or ndcg; without classes, r2 or mae.",
            show_default="accuracy, or r2",
        ),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="standard (z-scores), unit (length 1) or none.")
    ] = "standard",
    splits: Annotated[int, typer.Option(help="Random splits, at least 2.")] = 5,
    test_size: Annotated[float, typer.Option(help="Share of samples held out for testing.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of all that is random.")] = 0,
    limit: Annotated[int, typer.Option(help="Samples used at most; 0 takes all.")] = 5000,
    threads: Annotated[
        int | None, typer.Option(help="Threads of a mechanism; all cores by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    time_limit: Annotated[
        float, typer.Option(help="Seconds after which a mechanism is given up.")
    ] = 60.0,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Seconds for everything: mechanisms that would use much more than their share are "
            "left out.",
            show_default="no bound",
        ),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(
            help="Where to write the page.", show_default="polyattn-compare-DATA.html",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    no_html: Annotated[
        bool, typer.Option("--no-html", help="Write no page.", rich_help_panel=_OUTPUT)
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document instead.", rich_help_panel=_OUTPUT),
    ] = False,
    list_data: Annotated[
        bool,
        typer.Option("--list-data", help="List the bundled data sets.", rich_help_panel=_OUTPUT),
    ] = False,
) -> None:  # fmt: skip
    """Compare mechanisms on a data set.

    Each acts as a kernel smoother: test vectors attend over training vectors, with labels as
    values. Its sharpness is tuned on a part of the training data; random splits give differences
    their uncertainty. Without labels, hidden coordinates are predicted.
    """
    from ._command import list_bundled, run

    if list_data:
        list_bundled(as_json)
        return
    if data is None:
        raise typer.BadParameter("what to compare on; --list-data shows what is bundled",
                                 param_hint="DATA")  # fmt: skip
    if html is not None and no_html:
        raise typer.BadParameter("--html and --no-html exclude each other", param_hint="--html")
    settings: dict[str, Any] = {
        "family": family, "exclude": exclude or (), "options": options or (), "task": task,
        "metric": metric, "scale": scale, "splits": splits, "test_size": test_size, "seed": seed,
        "limit": limit, "threads": threads, "dtype": dtype, "time_limit": time_limit,
        "budget": budget,
    }  # fmt: skip
    run(data, labels, mechanisms, settings, page=not no_html, path=html, as_json=as_json)
