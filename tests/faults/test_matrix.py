"""The page of faults: each row has tests or says what is missing, and their injections."""

from tests.checks.faults import NOT_MET, PAGE, ROWS, marked


def test_every_fault_has_a_test_or_says_what_is_missing():
    assert set(marked()) | set(NOT_MET) == set(ROWS)


def test_page_has_the_injections_of_the_tests():
    lines = [line.split(" | ") for line in PAGE.read_text().splitlines() if line[2:3].isdigit()]
    shown = {int(cells[0].strip("| ")): cells[3] for cells in lines}
    assert shown == {row: "; ".join(marked()[row]) for row in ROWS}
