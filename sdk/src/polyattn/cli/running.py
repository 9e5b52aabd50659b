"""``polyattn run``: a mechanism on arrays in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ._arguments import Json, Name, options_from
from ._output import fields, note, print_json, show, to_errors

if TYPE_CHECKING:
    from .._file_run import Report, Request

_ARCHIVES = (".npz", ".safetensors")
_ROLES = ("query", "key", "value")


def _array_option(help: str) -> Any:
    return typer.Option(metavar="FILE.npy", show_default=False, rich_help_panel="Arrays", help=help)


def run(
    name: Name,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT", show_default=False,
            help="One .npz or .safetensors file with arrays query, key, value, mask, bias; or .npy "
            "files of query, key, value in this order. Key defaults to query, value to key.",
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write: .npy, .npz or .safetensors."
        ),
    ] = "output.npy",
    heads: Annotated[
        int | None, typer.Option(min=1, help="Number of heads.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", show_default=False,
            help="An option of the mechanism; the value is JSON or text. May be repeated.",
        ),
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", show_default=False,
            help="Write these too, by commas: entropy, log_sum_exp, column_mass, weights.",
        ),
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", show_default=False,
            help="Learned arrays of the mechanism, a .safetensors file.",
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            min=1, show_default=False,
            help="Queries to compute at a time, where they can be divided. By size otherwise.",
        ),
    ] = None,
    query: Annotated[str | None, _array_option("Queries.")] = None,
    key: Annotated[str | None, _array_option("Keys.")] = None,
    value: Annotated[str | None, _array_option("Values.")] = None,
    mask: Annotated[str | None, _array_option("Booleans, true where a key is visible.")] = None,
    bias: Annotated[str | None, _array_option("Numbers added to the scores.")] = None,
    side: Annotated[
        list[str] | None,
        typer.Option(
            "--side", metavar="NAME=FILE.npy", show_default=False, rich_help_panel="Arrays",
            help="A side input that the mechanism declares. May be repeated.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run a mechanism on arrays in files.

    Arrays are (…, tokens, dim); dim is taken from the queries. Large calls are computed in blocks,
    with the same result; .npy files are mapped into memory, so they may be larger than it.
    """
    options = options_from(settings or ())
    if heads is not None:
        options["heads"] = heads
    roles = {"query": query, "key": key, "value": value, "mask": mask, "bias": bias}
    given = {role: file for role, file in roles.items() if file}
    archive = _sort_out(inputs or [], given)
    for text in side or ():
        side_name, equals, file = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--side: {text!r} is not of the form name=file.npy")
        given[side_name] = file
    names = [n.strip() for n in (statistics or "").split(",")]

    from .._file_run import Request

    request = Request(
        name=name,
        options=options,
        output=Path(output),
        archive=archive,
        files={role: Path(file) for role, file in given.items()},
        parameters=Path(parameters) if parameters else None,
        statistics=tuple(dict.fromkeys(filter(None, names))),
        block=block,
    )
    _report(_watched(request, quiet=as_json), as_json)


def _sort_out(inputs: list[str], given: dict[str, str]) -> Path | None:
    """The archive among the inputs; .npy files go to `given` under the roles they play."""
    if not inputs:
        if "query" not in given:
            raise typer.BadParameter("say what to run on: INPUT, or --query FILE.npy")
        return None
    if inputs[0].lower().endswith(_ARCHIVES):
        if len(inputs) > 1:
            raise typer.BadParameter(f"one {' or '.join(_ARCHIVES)} file, not {len(inputs)} files")
        return Path(inputs[0])
    if len(inputs) > len(_ROLES):
        raise typer.BadParameter(f"at most {len(_ROLES)} files: {', '.join(_ROLES)}")
    for role, file in zip(_ROLES, inputs, strict=False):
        if role in given:
            raise typer.BadParameter(f"{role} is given twice: {file} and --{role} {given[role]}")
        given[role] = file
    return None


def _watched(request: Request, *, quiet: bool) -> Report:
    """Carry out a request under a progress bar, where there is somebody to see it."""
    from .._file_run import carry_out

    console = to_errors()
    columns = (TextColumn(request.name), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    if quiet or not console.is_terminal:
        return carry_out(request)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        return carry_out(request, lambda done, total: bar.update(task, completed=done, total=total))


def _report(report: Report, as_json: bool) -> None:
    spec, plan = report.mechanism.spec, report.plan
    if as_json:
        print_json(
            {
                "mechanism": spec.full_name,
                "options": report.mechanism.config.model_dump(mode="json"),
                "inputs": {
                    name: {"shape": array.shape, "dtype": array.dtype.name}
                    for name, array in report.inputs.items()
                },
                "outputs": {
                    array.name: {
                        "file": str(array.file), "shape": array.shape, "dtype": array.dtype
                    }
                    for array in report.written
                },
                "blocks": len(plan.blocks()),
                "queries_divided": plan.queries,
                "why_not": plan.reason,
                "seconds": report.seconds,
                "seconds_preparing_kernels": report.preparing,
            }
        )  # fmt: skip
        return
    if len(report.mechanism.parameters) and not report.learned:
        note(f"{spec.full_name} has learned arrays, drawn from seed 0 here: see --parameters")
    inputs = ((n, f"{_shape(a.shape)} {a.dtype.name}") for n, a in report.inputs.items())
    outputs = ((w.name, f"{_shape(w.shape)} {w.dtype} → {w.file}") for w in report.written)
    kernels = f" ({report.preparing:.2f} s to get kernels ready)" if report.preparing else ""
    took = ("took", f"{report.seconds:.2f} s{kernels}, {_manner(report)}")
    show(fields([("mechanism", repr(report.mechanism)), *inputs, *outputs, took]))


def _manner(report: Report) -> str:
    """How the work was divided, in words."""
    plan = report.plan
    blocks = len(plan.blocks())
    if blocks == 1:
        return "in one piece"
    over = "leading axes and queries" if plan.queries else "leading axes"
    kept = "" if plan.queries else f"; queries are not divided: {plan.reason}"
    return f"in {blocks} blocks over {over}{kept}"


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "1"
