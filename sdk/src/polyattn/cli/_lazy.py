"""Commands that are imported when they are run, and errors that end as one line."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from polyattn_core.errors import PolyattnError
from polyattn_core.spec import resolve

from ._output import print_error


class Entry(NamedTuple):
    """A command that may be run: where it is, and what help says about it."""

    name: str
    panel: str
    help: str
    reference: str


_LOOK, _WORK, _KEEP = "Look around", "Work", "House-keeping"

ENTRIES = (
    Entry("list", _LOOK, "List what is installed.", "polyattn.cli.listing:list_entries"),
    Entry("info", _LOOK, "Explain one mechanism.", "polyattn.cli.describing:info"),
    Entry(
        "schema", _LOOK, "Print the options of a mechanism as JSON Schema.",
        "polyattn.cli.describing:schema",
    ),
    Entry("presets", _LOOK, "List named sets of options.", "polyattn.cli.listing:presets"),
    Entry("run", _WORK, "Run a mechanism on arrays in files.", "polyattn.cli.running:run"),
    Entry(
        "compare", _WORK, "Compare mechanisms on a data set.", "polyattn.compare.command:compare"
    ),
    Entry(
        "report", _WORK, "Recommend a mechanism for a data set, and say why.",
        "polyattn.report.command:report",
    ),
    Entry("plugins", _KEEP, "List installed plugins.", "polyattn.cli.checking:plugins"),
    Entry(
        "doctor", _KEEP, "Check the installation: versions, processor, cache, plugins.",
        "polyattn.cli.checking:doctor",
    ),
    Entry("warmup", _KEEP, "Compile kernels ahead of their use.", "polyattn.cli.compiling:warmup"),
    Entry(
        "stubs", _KEEP, "Write type stubs of builders, for editors and type checkers.",
        "polyattn.cli.stubs:stubs",
    ),
    Entry("cache", _KEEP, "Look after compiled kernels.", "polyattn.cli.compiling:cache"),
)  # fmt: skip


class LightGroup(TyperGroup):
    """A group whose own options are taken as they are."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, that for help among them."""
        return [_spared(parameter, text=False) for parameter in super().get_params(ctx)]


class LightCommand(TyperCommand):
    """A command that takes values that need no conversion as they are."""

    texts: frozenset[str] = frozenset()
    """Names of the parameters that are texts, or lists of texts."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, that for help among them."""
        return [_spared(p, text=p.name in self.texts) for p in super().get_params(ctx)]


class LazyGroup(LightGroup):
    """The commands of :data:`ENTRIES`. An error that is raised on purpose ends as one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands.update({entry.name: LazyCommand(entry) for entry in ENTRIES})

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        as_json = "--json" in ctx.args
        try:
            return super().invoke(ctx)
        except PolyattnError as error:
            print_error(error, as_json=as_json)
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read our output has seen enough
                raise
            print_error(error, as_json=as_json)
        except MemoryError as error:
            print_error(error, as_json=as_json)
        raise typer.Exit(1)


class LazyCommand(TyperCommand):
    """Stands for a command until it is run."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.name, help=entry.help, rich_help_panel=entry.panel)
        self._entry = entry

    def load(self) -> Any:
        """Import the command."""
        return build(resolve(self._entry.reference))

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Make the context of the command that this one stands for."""
        return self.load().make_context(info_name, args, parent, **extra)


def build(target: typer.Typer | Callable[..., Any]) -> Any:
    """The command that a function, or an application, describes."""
    if isinstance(target, typer.Typer):
        return typer.main.get_command(target)
    application = typer.Typer(add_completion=False, rich_markup_mode="rich")
    application.command(cls=LightCommand, help=_reflowed(inspect.getdoc(target) or ""))(target)
    command = typer.main.get_command(application)
    hints = get_type_hints(target)
    command.texts = frozenset(name for name, hint in hints.items() if _is_text(hint))  # type: ignore[attr-defined]
    return command


def _reflowed(text: str) -> str:
    """`text` with its paragraphs on one line each: terminals differ in width."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _is_text(hint: Any) -> bool:
    options = get_args(hint) or (hint,)
    return all(option in (str, list[str], type(None)) for option in options) or hint == list[str]


def _spared(parameter: Any, *, text: bool) -> Any:
    """`parameter`, spared the conversion of values that need none.

    Typer converts with pydantic, whose import would take longer than `polyattn list`.
    """
    convert = parameter.process_value
    if getattr(convert, "spares", False):
        return parameter

    def process_value(ctx: Any, value: Any) -> Any:
        nothing = value is None or value in ((), [])
        if (nothing and parameter.required) or not (nothing or text or isinstance(value, bool)):
            return convert(ctx, value)
        if value is None and (parameter.nargs == -1 or getattr(parameter, "multiple", False)):
            value = ()
        if parameter.callback is not None:
            value = parameter.callback(ctx, parameter, value)
        return value

    setattr(process_value, "spares", True)  # noqa: B010 - functions declare no attributes
    parameter.process_value = process_value
    return parameter
