"""The failure matrix: which fault is injected by which test, and how the tests end.

A test has the marker `fault(row, injection)`; a row may have many tests, in any folder of the
suite. `pytest tests/faults` runs them all; `python -m tests.checks.faults [ROW...]` runs them, or
those of some rows, and writes `docs/faults.md`.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Collection
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
ROWS = {
    1: ("A worker process is killed", "only its uncommitted shard runs again; same snapshots"),
    2: ("A node is lost", "as 1, and its work is placed elsewhere"),
    3: ("The head is lost, without a GCS store", "UNKNOWN; resubmitted once its lease lapsed"),
    4: ("The head is lost, with a GCS store", "as 3; duplicates are still refused"),
    5: ("The driver is killed at any point", "resumed to the same snapshots; nothing half-written"),
    6: ("The client is killed after a submit", "the job goes on"),
    7: ("The store answers 5xx, slows down or times out", "retried in a time budget, then WAITING"),
    8: ("A write succeeds and its answer is lost", "no duplicate, no false failure"),
    9: ("A multipart upload is cut", "never visible, swept later"),
    10: ("A listing is stale", "no decision depends on it"),
    11: ("A video is corrupt or cut", "a rejected row with its reason"),
    12: ("A record crashes or hangs its process", "isolated; never loops"),
    13: ("A committed object is damaged or gone", "found by its digest; recomputed"),
    14: ("The local disk is full", "no partial record; retried elsewhere"),
    15: ("The object store of Ray spills", "stages pass keys, not payloads"),
    16: ("The host kills a process for memory", "a budget of its own, then FAILED with the reason"),
    17: ("A GPU runs out of memory or hangs", "retried by its budget; a watchdog of steps"),
    18: ("A run is submitted twice", "one run; the second exits with code 5 and names the first"),
    19: ("Two runs share a fingerprint", "done once; the second adopts"),
    20: ("The owner of a lease is suspended and wakes", "it changes nothing and exits"),
    21: ("Clocks differ by an hour; daylight saving begins or ends", "each window once"),
    22: ("A machine is preempted with notice", "a checkpoint within the notice"),
    23: ("A loss or gradient is not finite", "step skipped; repeated ones stop the training"),
    24: ("The upload of a checkpoint fails", "reported to the training; the one before stays"),
    25: ("A checkpoint is half-written or damaged", "the one before it is used"),
    26: ("Work runs again, or elsewhere", "equal bytes by any number of workers"),
    27: ("The code of a gate raises or is silent", "blocked"),
    28: ("A scheduler is killed between record and run", "the next tick: exactly one run"),
    29: ("A scheduler is down for many windows", "as its policy says; no storm"),
    30: ("The cluster cannot be reached", "UNKNOWN; nothing is started again"),
    31: ("Code changes between a run and its resume", "refused, or recorded as accepted"),
    32: ("Nodes have other versions", "found before the first GPU second"),
    33: ("Credentials expire in a run", "renewed; none in a log"),
    34: ("A run is cancelled or gets a signal", "CANCELLED, 130; finished shards stay"),
    35: ("The tracking server is down", "training goes on; sent later"),
}  # fmt: skip
NOT_MET = {
    2: "no test on several nodes yet", 3: "no test of a lost head yet", 4: "as 3",
    6: "there is no submit verb yet",
    17: "no watchdog of steps; needs a GPU", 30: "the cluster is a stand-in",
    32: "no check before the start",
}  # fmt: skip
"""What is missing, of rows that have no test or whose tests do not cover the promise."""


@cache
def marked() -> dict[int, dict[str, set[str]]]:
    """Return the injections of each row, and the tests of each: `path::name`."""
    found: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tests = (n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef))
        for test in tests:
            calls = (mark for mark in test.decorator_list if isinstance(mark, ast.Call))
            for mark in (call for call in calls if ast.unparse(call.func) == "pytest.mark.fault"):
                row, injection = map(ast.literal_eval, mark.args)
                found[row][injection].add(f"{path.relative_to(ROOT)}::{test.name}")
    return dict(found)


class Outcomes:
    """A pytest plugin that counts how the cases of each test end."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        counts = self.counts[report.nodeid.partition("[")[0]]
        counts[0] += report.passed
        counts[1] += report.failed
        counts[2] += report.skipped


def ends(row: int, outcomes: dict[str, list[int]]) -> list[int]:
    """Return how many cases of a row passed, failed and were skipped."""
    tests = set[str]().union(*marked().get(row, {}).values())
    return [sum(outcomes[test][i] for test in tests) for i in range(3)]


def page(outcomes: dict[str, list[int]], rows: Collection[int] = ROWS) -> str:
    """Return the page: a row per fault; those that are not in `rows` as they are."""
    kept = [] if len(rows) == len(ROWS) else PAGE.read_text().splitlines()[-len(ROWS) :]
    lines = [
        "# Faults",
        "",
        "What is promised under each fault, what injects it in a test, and how the tests ended.",
        "Written by `python -m tests.checks.faults`, which runs the tests.",
        "",
        "| # | fault | promise | injections | cases | outcome |",
        "|---|---|---|---|---|---|",
    ]
    found = marked()
    for row, (fault, promise) in ROWS.items():
        if row not in rows:
            lines.append(kept[row - 1])
            continue
        passed, failed, skipped = ends(row, outcomes)
        state = "not met" if failed or skipped or not passed else "met"
        if row in NOT_MET:
            state = f"not met: {NOT_MET[row]}"
        injections = "; ".join(found.get(row, ()))
        cases = f"{passed} passed" + f", {failed} failed" * bool(failed)
        cases += f", {skipped} skipped" * bool(skipped)
        cells = (row, fault, promise, injections, cases if row in found else "", state)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main(*rows: int) -> int:
    """Run the tests of some rows or of all, write the page; return the exit code of pytest."""
    plugin = Outcomes()
    tests = {str(ROOT / t) for row in rows for of in marked()[row].values() for t in of}
    paths = sorted(tests) or [str(ROOT / "tests" / "faults")]
    code = pytest.main(["-m", "not gpu", "-q", *paths], [plugin])
    PAGE.write_text(page(plugin.counts, rows or ROWS))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
