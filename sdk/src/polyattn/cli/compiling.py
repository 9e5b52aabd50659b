"""``polyattn warmup`` and ``polyattn cache``: kernels ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count as count_from
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import polyattn_registry as registry
from polyattn_core.spec import MechanismSpec

from ._arguments import Json, mechanism_names
from ._lazy import LightCommand, LightGroup
from ._output import count, plain, print_error, print_json, show, table, to_errors

if TYPE_CHECKING:
    from .._warmup import Compiled

cache = typer.Typer(
    cls=LightGroup,
    help="Look after compiled kernels.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)
_COMPUTED = ("float32", "float64")


def warmup(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Mechanisms whose kernels to compile; of all that are installed by default.",
            autocompletion=mechanism_names,
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DTYPE",
            help="Only for this data type: float32 or float64. May be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile kernels ahead of their use.

    Runs each mechanism on a few tiny arrays: forward, and gradients, statistics, partial results,
    decoding from caches and bfloat16 where it has them. What was compiled before comes from the
    cache. The two data types are compiled side by side, in two processes.
    """
    for given in dtype or ():
        if given not in _COMPUTED:
            raise typer.BadParameter(f"--dtype: {given!r} is not one of {', '.join(_COMPUTED)}")
    from .._warmup import beside, exercise

    # Names are looked up first: a typing mistake should not show after a minute of compiling.
    names = names or registry.available()
    specs = {name: registry.spec(name) for name in names}
    first, *others = dict.fromkeys(dtype or _COMPUTED)
    kernels: list[Compiled] = []
    failures: dict[str, Exception] = {}
    with (
        _progress(len(specs) * (1 + len(others)), quiet=as_json) as begin,
        beside(names, others) as helper,
    ):
        for data_type in (first, *others):
            # What was compiled beside is only loaded here, and what could not be is compiled.
            done = {} if data_type == first else helper.wait()
            for name, spec in specs.items():
                begin(f"{name}, {data_type}")
                assert isinstance(spec, MechanismSpec)  # the kind of entry that was asked for
                try:
                    ready = exercise(spec, (data_type,))
                except Exception as error:  # a mechanism may fail in its own way; go on
                    failures[name] = error
                else:
                    kernels += [done.get(kernel.kernel, kernel) for kernel in ready]
    if as_json:
        print_json(
            {
                "mechanisms": list(specs),
                "kernels": [kernel._asdict() for kernel in kernels],
                "failures": {name: _reason(error) for name, error in failures.items()},
            }
        )
    else:
        _show_kernels(kernels, len(specs))
        for name, failure in failures.items():
            print_error(RuntimeError(f"{name}: {_reason(failure)}"))
    if failures:
        raise typer.Exit(1)


@cache.callback()
def _cache() -> None:
    """Look after compiled kernels."""


@cache.command(cls=LightCommand)
def clear(as_json: Json = False) -> None:
    """Delete all compiled kernels, of this version and of others."""
    from polyattn_core.simd import cache as kernel_cache

    folder = kernel_cache.base_folder()
    deleted = kernel_cache.clear()
    if as_json:
        print_json({"folder": str(folder), "deleted": deleted})
    else:
        show(plain(f"{count(deleted, 'kernel')} deleted from {folder}"))


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows what begins now, where there is somebody to see it."""
    console = to_errors()
    if quiet or not console.is_terminal:
        yield lambda name: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        numbers = count_from(1)
        yield lambda name: bar.update(
            task, description=plain(f"{name} ({next(numbers)} of {total})"), advance=1
        )


def _show_kernels(kernels: list[Compiled], mechanisms: int) -> None:
    used = count(mechanisms, "mechanism")
    if not kernels:
        show(f"{used} ready: nothing had to be compiled")
        return
    rows = table("Kernel", "Data type", "Seconds", "From")
    rows.columns[2].justify = "right"
    for kernel in sorted(kernels, key=lambda kernel: -kernel.seconds):
        name, dtype = _readable(kernel.kernel)
        origin = "cache" if kernel.from_cache else "compiler"
        rows.add_row(plain(name), dtype, f"{kernel.seconds:.2f}", origin)
    compiled = [kernel.seconds for kernel in kernels if not kernel.from_cache]
    loaded = [kernel.seconds for kernel in kernels if kernel.from_cache]
    show(
        rows,
        "",
        f"{used} ready: {count(len(compiled), 'kernel')} compiled ({sum(compiled):.1f} s), "
        f"{len(loaded)} from the cache ({sum(loaded):.1f} s)",
    )


def _readable(kernel: str) -> tuple[str, str]:
    """The name of a kernel, `module.function[tag]`, and the data type that its tag mentions."""
    path, _, tag = kernel.rstrip("]").partition("[")
    dtype = next((dtype for dtype in _COMPUTED if dtype in tag), "")
    parts = [part for part in path.split(".") if part != "<locals>"]
    # A rule's pass over a tile is generated code; the tag tells whose it is.
    if parts[-1] == "tile_pass":
        name = "score rule " + tag.partition("(")[0]
    else:
        module, function = (
            part.strip("_").removesuffix("_kernel") for part in (parts[-2], parts[-1])
        )
        name = function if module in ("", function) else f"{module} {function}"
    return name.replace("_", " "), dtype


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
