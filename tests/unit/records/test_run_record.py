"""The run record: ids, statuses and what a user may call a run."""

import itertools
import time

import pytest

from tests.support.remote_objects import Counting
from tests.support.toys import REGISTRY
from videoar import api
from videoar.core.errors import ConfigError
from videoar.core.ids import new_run_id
from videoar.core.processes import this_process
from videoar.pipeline.spec import parse_pipeline
from videoar.records.names import find_run
from videoar.records.run import StageRun
from videoar.records.run_folds import fold_runs, fold_runs_if_due
from videoar.records.run_log import RunLog, cancel_run
from videoar.records.run_record import events_of, load_run, next_run_id
from videoar.storage import folds
from videoar.storage.layout import (
    cancel_key,
    folded_events_key,
    log_entry_key,
    run_claim,
    run_events,
)
from videoar.storage.lease import Lease
from videoar.storage.ledger import current_user
from videoar.storage.store import Store, open_store

numbers = itertools.count()
DOCUMENT = {
    "pipeline": "toy",
    "inputs": {"videos": "/v"},
    "stages": {
        "big": {"stage": "upper", "from": {"sources": "videos"}},
        "few": {"stage": "pick", "from": {"sources": "big"}},
        "total": {"stage": "count", "from": {"sources": "big"}},
    },
}


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://record-{next(numbers)}")


def create(store: Store, run_id: str, until: str | None = None) -> RunLog:
    log = RunLog(store, run_id, lambda: None)
    log.create(parse_pipeline(DOCUMENT, "toy.yaml", REGISTRY), "0", None, until)
    return log


def finished(store: Store, run_id: str) -> RunLog:
    log = create(store, run_id)
    log.driver({}, ())
    for name in ("big", "few", "total"):
        for status in ("RUNNING", "SUCCEEDED"):
            log.stage(StageRun(name=name, type="upper", status=status))
    log.finish("SUCCEEDED", None)
    return log


def test_ended_run_is_read_with_few_requests_and_as_from_its_events(store):
    finished(store, "r1")
    counting = Counting(store.objects)
    folded = load_run(Store(counting), "r1")
    assert counting.requests == 3  # record, folded events, the event after them
    store.objects.delete(folded_events_key("r1"))
    assert load_run(store, "r1") == folded
    RunLog(store, "r1", lambda: None).finish("SUCCEEDED", None)  # rebuilt by the next driver
    assert len(events_of(store, "r1")) == 9
    assert store.objects.find(folded_events_key("r1")) is not None


def test_runs_are_read_from_folds_and_others_by_themselves(store, monkeypatch):
    monkeypatch.setattr(folds, "SIZES", (8, 4))
    for number in range(9):
        log = finished(store, f"r{number}")
        if number == 2:
            log.driver({}, ())
            log.finish("FAILED", "boom", "STAGE")
        fold_runs_if_due(store, f"r{number}")
    log.driver({}, ())
    log.finish("FAILED", "again", "STAGE")
    counting = Counting(store.objects)
    listed = api.ls(Store(counting))
    keys = list(store.ledger.list("folds/"))
    assert keys == [folds.fold_key("runs/", *span) for span in ((0, 4), (0, 8), (4, 4))]
    # listings of runs and folds, a fold of 8, and the runs 2 and 8: run.json, events, two after it
    assert counting.requests == 2 + 1 + 2 * 5
    for key in keys:
        store.objects.delete(key)
    assert api.ls(store) == listed
    assert fold_runs(store) == 3
    assert [run.status for run in listed].count("FAILED") == 2


def test_events_after_the_end_are_read_as_well(store):
    log = finished(store, "r1")
    log.driver({}, ())
    log.finish("FAILED", "boom", "STAGE")
    assert (load_run(store, "r1").status, load_run(store, "r1").error) == ("FAILED", "boom")
    assert len(events_of(store, "r1")) == 10


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-9], lambda data: data.replace(b"few", b"fow"), lambda _: b"[]"],
    ids=["cut", "changed", "other"],
)
def test_folded_events_that_are_damaged_are_ignored(store, caplog, damage):
    finished(store, "r1")
    before = load_run(store, "r1")
    key = folded_events_key("r1")
    store.objects.put(key, damage(store.objects.get(key)))
    assert load_run(store, "r1") == before
    assert f"{key}: damaged" in caplog.text


def test_event_that_is_lost_is_not_hidden(store):
    log = finished(store, "r1")
    store.objects.delete(folded_events_key("r1"))
    store.objects.delete(log_entry_key(run_events("r1"), 3))
    log.finish("SUCCEEDED", None)
    assert store.objects.find(folded_events_key("r1")) is None


@pytest.mark.slow
def test_listing_many_runs_takes_requests_by_what_is_shown(store):
    for n in range(300):
        finished(store, f"r{n:03}")
    counting = Counting(store.objects, request_s=0.02)
    remote = Store(counting)
    began = time.monotonic()
    assert len(api.ls(remote, 20)) == 20
    assert time.monotonic() - began < 2
    assert counting.requests == 1 + 20 * 3
    counting.requests = 0
    assert api.status(remote).run_id == "r299"
    assert counting.requests <= 6


def test_new_run_id_after_a_later_id_is_still_greater(monkeypatch):
    first = new_run_id()
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)  # the clock is set back to 2001
    assert new_run_id() < first
    second = new_run_id(after=[first, "run1", "zzz"])
    assert first < second < new_run_id(after=[second, first])
    assert len(second) == len(first) == 18


@pytest.mark.fault(21, "a clock that is set back")
def test_next_run_id_sorts_after_all_runs_of_the_store(store, monkeypatch):
    create(store, next_run_id(store))
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    run_id = next_run_id(store)
    create(store, run_id)
    assert find_run(store, None) == find_run(store, "last") == run_id


@pytest.mark.parametrize(
    ("until", "skipped"), [(None, set()), ("few", {"total"}), ("big", {"few", "total"})]
)
def test_load_run_unrequested_stages_are_skipped(store, until, skipped):
    create(store, "r1", until)
    run = load_run(store, "r1")
    assert {stage.name for stage in run.stages if stage.status == "SKIPPED"} == skipped
    assert {stage.status for stage in run.stages} <= {"SKIPPED", "PENDING"}


def test_run_without_a_finish_event_is_running_while_its_driver_beats(store, monkeypatch):
    log = create(store, "r1")
    log.driver({}, ())
    assert load_run(store, "r1").status == "INTERRUPTED"  # no driver has ever claimed it
    elsewhere = this_process().model_copy(update={"host": "other", "machine": "other"})
    monkeypatch.setattr("videoar.storage.lease.this_process", lambda: elsewhere)
    lease = Lease(store, "work", "run r1", ttl_s=0.2)
    lease.acquire()
    lease.claim(run_claim("r1"), pytest.fail)
    assert load_run(store, "r1").status == "RUNNING"
    time.sleep(0.3)
    assert load_run(store, "r1").status == "INTERRUPTED"  # its host is lost
    log.finish("CANCELLED", "cancelled")
    assert (load_run(store, "r1").status, load_run(store, "r1").error) == ("CANCELLED", "cancelled")


def test_cancel_is_asked_of_the_driver_that_has_the_run(store):
    log = create(store, "r1")
    log.driver({}, ())
    with pytest.raises(ConfigError, match="is not running"):
        cancel_run(store, "r1")
    lease = Lease(store, "work", "run r1")
    lease.acquire()
    claim = lease.claim(run_claim("r1"), pytest.fail)
    cancel_run(store, "r1")
    cancel_run(store, "r1")  # twice: one request
    assert store.ledger.read(cancel_key("r1", claim))["user"] == current_user()


def test_find_run_ambiguous_prefix_lists_its_candidates(store):
    for i in range(7):
        create(store, f"ab{i}")
    create(store, "ab")
    assert find_run(store, "ab3") == "ab3"
    assert find_run(store, "ab") == "ab"  # a whole id, though others begin with it
    with pytest.raises(ConfigError, match="matches 8: ab6, ab5, ab4, ab3, ab2, ab1, ab0, ab"):
        find_run(store, "a")
    for unknown in ("x", ""):
        with pytest.raises(ConfigError, match="no such run"):
            find_run(store, unknown)


def test_stage_unknown_name_gets_a_suggestion(store):
    create(store, "r1")
    with pytest.raises(ConfigError, match="did you mean total"):
        load_run(store, "r1").stage("totl")
