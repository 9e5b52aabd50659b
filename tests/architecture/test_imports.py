"""Who may import whom: docs/architecture.md in a form that can fail.

A module is held to the first rule that it matches. Of the entries of a rule the longest that
matches an import decides, the last of equals; what is in functions comes after what is at import.
The standard library is permitted unless an entry says otherwise.

========  ===========================================
``a.b``   ``a.b`` and everything in it
``=a.b``  ``a.b`` itself, nothing in it
``!a.b``  not ``a.b``, nor anything in it
``a*.b``  every ``b`` at any depth in ``a``
========  ===========================================
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import pytest

from workspace import DISTRIBUTIONS, FAMILIES

MODULES = {name: path for dist in DISTRIBUTIONS for name, path in dist.modules().items()}

LIGHT_CORE = (
    "=polyattn_core",
    *(f"polyattn_core.{name}" for name in ("spec", "hooks", "errors", "diagnostics", "resolver")),
)
"""What listing mechanisms needs: neither NumPy nor pydantic nor Numba."""

CORE = ("polyattn_core", "!polyattn_core.simd")

ANNOTATIONS = ("numpy", "polyattn_core", "polyattn_core.simd")


When = Literal["at import", "in a function", "for types"]


class Import(NamedTuple):
    """One imported module."""

    name: str
    line: int
    when: When


class Rule(NamedTuple):
    """What the modules that match `modules` may import, when they are imported and later.

    Annotations may name anything of core besides.
    """

    modules: str
    at_import: tuple[str, ...] = ()
    in_functions: tuple[str, ...] = ()

    def permitted(self, when: When) -> tuple[str, ...]:
        if when == "at import":
            return self.at_import
        later = self.at_import + self.in_functions
        return later if when == "in a function" else (*later, *ANNOTATIONS)

    def offences(self, imports: Iterator[Import]) -> Iterator[str]:
        for item in imports:
            if not permits(self.permitted(item.when), item.name):
                yield f"line {item.line}: {item.name} {item.when}"


def family_rules(package: str) -> tuple[Rule, ...]:
    return (
        Rule(package, (), (package,)),
        Rule(
            # A family of several parts has a manifest for each.
            rf"{package}(\..*)?\.(plugin|manifest)",
            ("polyattn_core.hooks", "polyattn_core.spec", f"={package}", f"{package}*.manifest"),
        ),
        Rule(rf"{package}(\..*)?\.config", ("pydantic", *CORE, package)),
        Rule(
            rf"{package}(\..*)?\.reference(\..*)?",
            ("numpy", "scipy", "polyattn_core.reference", f"{package}*.reference"),
            # A mixture is defined by the references of its experts.
            ("polyattn_core.resolver", "polyattn_core.spec"),
        ),
        Rule(
            rf"{package}(\..*)?\.kernels(\..*)?",
            ("numpy", "numba", "llvmlite", "polyattn_core.simd", f"{package}*.kernels"),
        ),
        # As in core's `streaming`: kernels are for the first call.
        Rule(rf"{package}\..*", ("numpy", *CORE, package), ("polyattn_core.simd",)),
    )


SDK_IN_FUNCTIONS = (
    *("numpy", "pydantic", "polyattn_core", "ml_dtypes", "safetensors"),
    *("altair", "pyarrow", "scipy", "sklearn"),
)

RULES = (
    Rule(
        r"polyattn_core\.simd(\..*)?",
        ("numpy", "numba", "llvmlite", "polyattn_core.simd", "polyattn_core.errors"),
    ),
    Rule(
        r"polyattn_core(\.(spec|hooks|errors|diagnostics|resolver))?", ("pluggy", *LIGHT_CORE), CORE
    ),
    Rule(
        r"polyattn_core\..*",
        ("numpy", "pydantic", *CORE),
        ("polyattn_core.simd", "ml_dtypes", "safetensors", "threadpoolctl"),
    ),
    Rule(
        r"polyattn_registry\.entry_points", ("importlib_metadata", *LIGHT_CORE, "polyattn_registry")
    ),
    Rule(
        r"polyattn_registry(\..*)?",
        ("!importlib.metadata", "pluggy", *LIGHT_CORE, "polyattn_registry"),
        ("pydantic", "polyattn_core"),
    ),
    # Held to less when nothing imports them at import: see `rule_of`.
    Rule(
        r"polyattn\.cli(\..*)?",
        ("rich", "typer", *LIGHT_CORE, "polyattn_registry", "polyattn"),
        SDK_IN_FUNCTIONS,
    ),
    Rule(
        r"polyattn(\..*)?",
        (*LIGHT_CORE, "polyattn_registry", "polyattn"),
        (*SDK_IN_FUNCTIONS, "rich", "typer"),
    ),
    # Every run of pytest imports it where the kit is installed.
    Rule(
        r"polyattn_testing(\.pytest_plugin)?",
        ("pytest", "=polyattn_testing"),
        ("numpy", *CORE, "polyattn_registry", "polyattn_testing"),
    ),
    Rule(
        r"polyattn_testing\..*",
        ("numpy", "pydantic", "pytest", *CORE, "polyattn_registry", "polyattn_testing"),
        ("polyattn_core.simd",),
    ),
    *(rule for family in FAMILIES for rule in family_rules(family.package)),
)


def permits(entries: tuple[str, ...], name: str) -> bool:
    """Whether a rule with these entries permits the import of `name`."""
    best, verdict = -1, name.partition(".")[0] in sys.stdlib_module_names
    for entry in entries:
        target = entry.lstrip("=!")
        pattern = re.escape(target).replace(r"\*", ".*") + ("" if entry[0] == "=" else r"(\..*)?")
        if re.fullmatch(pattern, name) and len(target) >= best:
            best, verdict = len(target), entry[0] != "!"
    return verdict


def imports_of(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import in a source text, with relative ones resolved."""
    package = module if is_package else module.rpartition(".")[0]

    def names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = node.module or ""
        if node.level:
            anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*anchor, base] if base else anchor)
        for alias in node.names:
            # `from package import name` may import a module or take a name from one.
            whole = f"{base}.{alias.name}"
            yield whole if whole in MODULES or base == "importlib" else base

    def walk(node: ast.AST, when: When) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield from (Import(name, child.lineno, when) for name in names(child))
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, "for types")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, "in a function")
            else:
                yield from walk(child, when)

    return walk(ast.parse(source), "at import")


def imports_of_module(name: str) -> Iterator[Import]:
    path = MODULES[name]
    return imports_of(path.read_text("utf-8"), name, path.name == "__init__.py")


def imported_with(start: str) -> set[str]:
    """The modules of this repository that importing `start` imports."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in found or name not in MODULES:
            continue
        found.add(name)
        waiting += [item.name for item in imports_of_module(name) if item.when == "at import"]
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return found


EAGER = imported_with("polyattn") | imported_with("polyattn.cli")


def rule_of(name: str, eager: set[str] = EAGER) -> Rule:
    rule = next((rule for rule in RULES if re.fullmatch(rule.modules, name)), None)
    assert rule is not None, f"no rule says what {name} may import"
    if re.match(r"polyattn(\.|$)", name) and name not in eager:
        # A module of the SDK that is itself imported in functions may import at once.
        return Rule(rule.modules, rule.at_import + rule.in_functions)
    return rule


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_what_it_may(name: str) -> None:
    offences = list(dict.fromkeys(rule_of(name).offences(imports_of_module(name))))
    if offences:
        pytest.fail(f"{name} may not import\n  " + "\n  ".join(offences), pytrace=False)


OFFENCES: Mapping[tuple[str, str], bool] = {
    ("polyattn_core.spec", "import numpy"): False,
    ("polyattn_core.spec", "from dataclasses import dataclass"): True,
    ("polyattn_core.config", "import numba"): False,
    ("polyattn_core.config", "from . import masks"): True,
    ("polyattn_core.streaming", "from .simd import engine"): False,
    ("polyattn_core.streaming", "def call():\n    from .simd import engine"): True,
    ("polyattn_core.simd.engine", "from .. import masks"): False,
    ("polyattn_core.simd.engine", "from . import tiles"): True,
    ("polyattn_registry.names", "from importlib import metadata"): False,
    ("polyattn_registry.names", "import importlib.metadata"): False,
    ("polyattn_registry.names", "from polyattn_core import config"): False,
    ("polyattn_registry.names", "from polyattn_core.errors import ArgumentError"): True,
    ("polyattn_registry.entry_points", "import importlib_metadata"): True,
    ("polyattn", "import polyattn_sparse"): False,
    ("polyattn", "def create():\n    import numpy"): True,
    ("polyattn", "from polyattn_core.simd import cache"): False,
    ("polyattn", "def doctor():\n    from polyattn_core.simd import cache"): True,
    ("polyattn", "class A:\n    import numpy"): False,
    ("polyattn", "try:\n    import numpy\nexcept ImportError:\n    pass"): False,
    ("polyattn", "if TYPE_CHECKING:\n    import numpy"): True,
    ("polyattn", "if TYPE_CHECKING:\n    import polyattn_sparse"): False,
    ("polyattn_sparse.flash", "if TYPE_CHECKING:\n    from polyattn_core.simd import jit"): True,
    ("polyattn_sparse.plugin", "from . import __version__"): True,
    ("polyattn_sparse.plugin", "from .config import FlashConfig"): False,
    ("polyattn_sparse.flash", "def call():\n    import polyattn_registry"): False,
    ("polyattn_sparse.flash", "import polyattn_standard.reference"): False,
    ("polyattn_sparse.flash", "from polyattn_core.simd import jit"): False,
    ("polyattn_sparse.flash", "def call():\n    from polyattn_core.simd import engine"): True,
    ("polyattn_sparse.flash", "from . import kernels"): True,
    ("polyattn_sparse.kernels.scan", "from polyattn_core.simd import jit"): True,
    ("polyattn_sparse.linear.kernels.scan", "from polyattn_core.simd import jit"): True,
    ("polyattn_sparse.linear.kernels.scan", "from ..kernels import state"): True,
    ("polyattn_sparse.linear.kernels.scan", "from .. import mechanism"): False,
    ("polyattn_sparse.kernels.scan", "from polyattn_core import masks"): False,
    ("polyattn_sparse.reference", "import scipy.special"): True,
    ("polyattn_sparse.reference", "from polyattn_core import masks"): False,
}


@pytest.mark.parametrize(("module", "source"), OFFENCES)
def test_the_reader_of_imports_sees(module: str, source: str) -> None:
    is_package = module in {"polyattn", "polyattn_core"}
    offences = rule_of(module, {module}).offences(imports_of(source, module, is_package))
    assert (not list(offences)) is OFFENCES[module, source]
