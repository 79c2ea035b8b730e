"""Data triggers as a function of what is new and of the time."""

from datetime import timedelta

import pytest

from tests.support.schedules import at
from videoar.pipeline.trigger import Trigger
from videoar.schedule.decide import NewData, State, data_key, due, window_key

NOW = at("2026-11-01T12:00")


@pytest.mark.parametrize(
    ("rule", "items", "num_bytes", "first_s", "last_s", "reason"),
    [
        ({}, 1, 10, 0, 0, ""),
        ({"min_items": 5}, 4, 10, 0, 0, "too few"),
        ({"min_items": 5}, 5, 10, 0, 0, ""),
        ({"min_bytes": 100}, 9, 99, 0, 0, "too few"),
        ({"min_bytes": 100}, 1, 100, 0, 0, ""),
        ({"min_items": 5, "min_bytes": 100}, 4, 100, 0, 0, ""),  # whichever is first
        ({"debounce_s": 60}, 1, 10, 300, 59, "still changes"),
        ({"debounce_s": 60}, 1, 10, 300, 60, ""),
        ({"min_items": 5, "max_wait_s": 600}, 1, 10, 599, 0, "too few"),
        ({"min_items": 5, "max_wait_s": 600}, 1, 10, 600, 600, ""),
        ({"debounce_s": 60, "max_wait_s": 600}, 1, 10, 600, 1, ""),  # arrivals that never pause
    ],
)
def test_new_sources_start_a_run_when_the_rule_says(
    rule, items, num_bytes, first_s, last_s, reason
):
    ago = [NOW - timedelta(seconds=seconds) for seconds in (first_s, last_s)]
    state = State("toy", NOW, current="digest", new=NewData(items, num_bytes, *ago))
    decision = due(Trigger(new_sources={"input": "videos", **rule}), state, NOW)
    assert reason in decision.reason
    assert bool(decision.due) == (reason == "")


@pytest.mark.parametrize(
    ("consumed", "current", "is_due"),
    [(None, None, False), (None, "a:1", True), ("a:1", "a:1", False), ("a:1", "a:2", True)],
)
def test_new_snapshot_starts_a_run_once(consumed, current, is_due):
    state = State("toy", NOW, firings=int(bool(consumed)), consumed=consumed, current=current)
    assert bool(due(Trigger(new_snapshot={"ref": "champion"}), state, NOW).due) == is_due


def test_keys_are_of_the_window_or_of_what_was_consumed():
    keys = {
        window_key("toy", at("2026-11-01T03:00")), window_key("toy", at("2026-11-02T03:00")),
        window_key("other", at("2026-11-01T03:00")), data_key("toy", 0, None),
        data_key("toy", 1, "a:1"), data_key("toy", 1, "a:2"), data_key("toy", 2, "a:1"),
    }  # fmt: skip
    assert len(keys) == 7
