"""``pytest --polyattn-conformance NAMES``: the checks as tests, one for each.

NAMES are families and names of mechanisms, separated by commas. The tests join those that pytest
collects otherwise; ``-k`` selects among them by mechanism, case and check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .runner import Planned

OPTION = "--polyattn-conformance"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("polyattn").addoption(
        OPTION,
        metavar="NAMES",
        action="append",
        default=[],
        help="check mechanisms of these families, or of these names, separated by commas",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Put the checks before other tests; first of all hooks, so that ``-k`` and ``-m`` see them."""
    names = [name.strip() for text in config.getoption(OPTION) for name in text.split(",")]
    if any(names):
        collector = Conformance.from_parent(
            session, name="conformance", nodeid="conformance", names=[n for n in names if n]
        )
        items[:0] = collector.collect()


class Conformance(pytest.Collector):
    """Collects the checks of some families and mechanisms."""

    def __init__(self, *, names: list[str], **others: Any) -> None:
        super().__init__(**others)
        self.names = names

    def collect(self) -> list[pytest.Item]:
        """One item for each mechanism, case and check."""
        # Imported for those only who ask: every run of pytest loads this plugin.
        from polyattn_core.errors import PolyattnError

        from .collection import planned_checks

        try:
            found = list(planned_checks(self.names))
        except PolyattnError as error:
            raise pytest.UsageError(f"{OPTION}: {error}") from None
        return [
            ConformanceItem.from_parent(self, name=str(planned), planned=planned)
            for planned in found
        ]


class ConformanceItem(pytest.Item):
    """One check of one mechanism in one case."""

    def __init__(self, *, planned: Planned, **others: Any) -> None:
        super().__init__(**others)
        from .collection import expected_failure

        self.planned = planned
        for marker in expected_failure(planned):
            self.add_marker(marker)

    def runtest(self) -> None:
        """Run the check."""
        from .collection import run_as_test

        run_as_test(self.planned)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """A finding is its message; anything else needs its traceback."""
        if type(excinfo.value) is AssertionError:
            purpose = (self.planned.check.__doc__ or "").strip().partition("\n")[0]
            return f"{self.planned.subject.name}: {excinfo.value}\nRequired: {purpose}"
        return super().repr_failure(excinfo, style="long")

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Where pytest says that the test is."""
        return self.path, None, self.name
