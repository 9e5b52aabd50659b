"""Run the benchmarks: print tables, write JSON with machine and versions, and a picture.

python benchmarks/run.py [--only PART …] [--quick] [--json FILE] [--markdown FILE] [--plots FOLDER]

A part is a module of this folder, or of `plugins/*/benchmarks`, with a TITLE and a function
`measure() -> list[dict]`, whose rows it shows.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import machine  # noqa: E402
import report  # noqa: E402
import timing  # noqa: E402
from rich.console import Console  # noqa: E402

OWN = (
    "peak", "plain_attention", "gradients", "sweep", "particular", "user_rules", "memory",
    "lengths", "start_up", "mechanisms",
)  # fmt: skip


def parts() -> dict[str, Path]:
    """All parts by name: ours in this order, then others of this folder, then the families'."""
    here = {
        file.stem: file
        for file in sorted(HERE.glob("*.py"))
        if "\ndef measure(" in file.read_text("utf-8")
    }
    found = {name: here.pop(name) for name in OWN}
    found |= here
    for file in sorted(HERE.parent.glob("plugins/*/benchmarks/*.py")):
        if "\ndef measure(" in file.read_text("utf-8"):
            found[f"{file.parent.parent.name}/{file.stem}"] = file
    return {name.replace("_", "-"): file for name, file in found.items()}


def load(name: str, file: Path) -> ModuleType:
    """The module of a part."""
    spec = importlib.util.spec_from_file_location(f"benchmark {name}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # score rules are found again by their module
    spec.loader.exec_module(module)
    return module


def run(name: str, file: Path, console: Console) -> dict[str, Any]:
    """Measure one part; what goes wrong in it is its result, not the end of the run."""
    start = time.perf_counter()
    part: dict[str, Any] = {"part": name, "title": name, "rows": [], "error": ""}
    with console.status(name) as status:
        try:
            module = load(name, file)
            first_line = (module.__doc__ or name).splitlines()[0]
            part["title"] = getattr(module, "TITLE", first_line)
            timing.say = lambda text: status.update(f"{part['title']} … {text}")
            part["rows"] = module.measure()
        except Exception as error:
            part["error"] = f"{type(error).__name__}: {error}"
    part["seconds"] = time.perf_counter() - start
    if part["rows"]:
        console.print(report.table(f"{part['title']}  ({part['seconds']:.0f} s)", part["rows"]))
    if part["error"]:
        console.print(f"[red]{name}: {part['error']}[/red]")
    return part


def main() -> int:
    """Run the parts that were asked for."""
    available = parts()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=available, default=list(available))
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks.json"))
    parser.add_argument(
        "--markdown", type=Path, help="write the tables to this file too, between its marks"
    )
    parser.add_argument("--plots", type=Path, default=Path("build"))
    options = parser.parse_args()
    timing.quick = options.quick
    console = Console()
    console.width = max(console.width, 130)  # rather lines too long than numbers cut off
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(),
        "quick": options.quick,
        "parts": [],
    }
    console.print(results["machine"])
    for name in options.only:
        part = run(name, available[name], console)
        results["parts"].append(part)
        if name == "lengths" and part["rows"]:
            for file in report.picture(part["rows"], options.plots):
                console.print(f"Written to {file}")
        # After each part, so that a run that is stopped has left what it measured.
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if options.markdown:
            report.write(options.markdown, results)
    console.print(f"Written to {options.json}")
    return 1 if any(part["error"] for part in results["parts"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
