"""The page of faults: each row has tests or says what is missing, and their injections."""

from tests.checks.faults import NOT_MET, ROWS, marked


def test_every_fault_has_a_test_or_says_what_is_missing():
    assert set(marked()) | set(NOT_MET) == set(ROWS)
