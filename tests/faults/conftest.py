"""`pytest tests/faults` collects the tests of all faults, in whatever folder they are.

With other arguments, or none, each is collected where it is, once.
"""

from pathlib import Path

import pytest

from tests.checks.faults import ROOT, ROWS, Outcomes, ends, marked

_FOLDER = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    if [Path(config.invocation_params.dir, arg).resolve() for arg in config.args] == [_FOLDER]:
        tests = {t for of in marked().values() for found in of.values() for t in found}
        config.args += sorted(
            str(ROOT / t) for t in tests if not (ROOT / t).is_relative_to(_FOLDER)
        )
        config.pluginmanager.register(_Summary())
        config.pluginmanager.register(_WithoutSoak())


class _Summary(Outcomes):
    """Prints a line per row that has tests."""

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for row in sorted(marked()):
            passed, failed, skipped = ends(row, self.counts)
            text = (
                f"row {row:2}: {passed} passed, {failed} failed, {skipped} skipped: {ROWS[row][0]}"
            )
            terminalreporter.write_line(text)


class _WithoutSoak:
    """Leaves out the cases of `make soak`."""

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        kept = [item for item in items if not item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
