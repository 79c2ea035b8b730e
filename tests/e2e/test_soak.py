"""A few of the schedules that `make soak` plays by the hundreds."""

import json
from pathlib import Path

import pytest

from tests.support.soak import KINDS, Schedule, Subject, measured, toy_subject
from videoar.storage.ledger import seal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    return measured(toy_subject(tmp_path_factory.mktemp("calm")))


@pytest.mark.parametrize("seed", range(0, len(KINDS), 2))
def test_schedule_of_faults_ends_as_an_undisturbed_run(subject: Subject, tmp_path: Path, seed: int):
    (tmp_path / "temp").mkdir()
    assert Schedule(subject, seed, tmp_path).play().looks > 0


def test_observer_notices_what_is_not_whole_and_what_changes(subject: Subject, tmp_path: Path):
    (tmp_path / "temp").mkdir()
    schedule = Schedule(subject, 1, tmp_path)
    schedule.play()
    store, observer = schedule.observer.store, schedule.observer
    store.refs.advance("other", "big:0123456789abcdef", expect=None, evidence={})
    with pytest.raises(Exception, match="big:0123456789abcdef"):
        observer.look()
    store.objects.delete("refs/other/00000000.json")
    observer.look()
    event = next(iter(store.ledger.list("runs/run1/events/")))
    store.objects.put(event, json.dumps(seal(event, {"kind": "other"})).encode())
    with pytest.raises(AssertionError, match="have changed"):
        observer.look()
