"""The page of faults: each row has tests or says what is missing, and their injections."""

import ast
import re
from collections import defaultdict

from tests.checks.faults import NOT_MET, PAGE, ROOT, ROWS, marked, page


def test_every_fault_has_a_test_or_says_what_is_missing():
    assert set(marked()) | set(NOT_MET) == set(ROWS)


def test_page_has_the_injections_of_the_tests():
    lines = [line.split(" | ") for line in PAGE.read_text().splitlines() if line[2:3].isdigit()]
    shown = {int(cells[0].strip("| ")): cells[3] for cells in lines}
    assert shown == {row: "; ".join(marked().get(row, ())) for row in ROWS}


def test_page_of_one_row_keeps_the_others():
    before = PAGE.read_text().splitlines()
    after = page(defaultdict(lambda: [1, 0, 0]), [5]).splitlines()
    changed = [line for line, old in zip(after, before, strict=True) if line != old]
    assert [line[:4] for line in changed] in ([], ["| 5 "])


def test_tests_of_the_table_of_faults_exist():
    text = (ROOT / "benchmarks" / "results" / "faults.md").read_text()
    found = re.findall(r"`(tests/[^`]*)::(test_\w+)`", text)
    assert len(found) > 30
    for path, name in found:
        body = ast.parse((ROOT / path).read_text()).body
        assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}, path
