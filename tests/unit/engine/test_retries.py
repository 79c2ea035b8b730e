"""How often work is tried again, by the kind of its error; reason codes and their page."""

import inspect
import re
from operator import attrgetter
from pathlib import Path
from typing import get_args

import pytest

from tests.support.toy_runs import execute, toy_document, write_videos
from videoar.core import errors
from videoar.core.errors import (
    ConfigError,
    OutOfMemoryError,
    PreemptedError,
    StageError,
    StorageError,
    ThrottledError,
    TransientStorageError,
    VideoARError,
    WorkerLostError,
    reason_code,
)
from videoar.core.retry import RetryPolicy
from videoar.core.types import Retries
from videoar.engine import base, inline
from videoar.records.run import Status
from videoar.records.run_record import events_of, load_run
from videoar.storage.store import open_store

PAGE = Path(__file__).parents[3] / "docs" / "operators.md"


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    policy = RetryPolicy(first_wait_s=0, max_wait_s=0, sleep=lambda _: None)
    monkeypatch.setattr(base, "_RETRY", policy)


def calls_until_it_fails(error: Exception, retries: Retries) -> int:
    calls = 0

    def work():
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error)):
        base.with_retries(work, retries)
    return calls


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (TransientStorageError("a", "b"), 1 + 3),
        (WorkerLostError("a", "b"), 1 + 3),
        (PreemptedError("a", "b"), 1 + 8),
        (ThrottledError("a", "b"), 1 + 8),
        (OutOfMemoryError("a", "b"), 1 + 1),
        (StorageError("a", "b"), 1),
        (StageError("a", "b"), 1),
        (ConfigError("a", "b"), 1),
        (ValueError("a"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_is_retried_as_often_as_its_kind_allows(error, calls):
    assert calls_until_it_fails(error, Retries()) == calls


def test_each_kind_has_a_budget_of_its_own():
    raised = iter([PreemptedError("a", "b")] * 2 + [WorkerLostError("a", "b")] * 2)

    def work():
        error = next(raised, None)
        if error is not None:
            raise error
        return "done"

    assert base.with_retries(work, Retries(preempt=2, infra=2)) == "done"
    assert calls_until_it_fails(WorkerLostError("a", "b"), Retries(infra=0)) == 1


def test_budget_is_an_option_of_the_stage_and_the_record_has_the_code(tmp_path, monkeypatch):
    store = open_store((tmp_path / "store").as_uri())
    videos = write_videos(tmp_path / "videos", "a.mp4")
    tried = []

    def lost(*_):
        tried.append(1)
        raise WorkerLostError("shard 0", "a worker died")

    monkeypatch.setattr("videoar.engine.inline.ShardWorker.__call__", lost)
    with pytest.raises(WorkerLostError):
        execute(store, toy_document(videos, big={"retries": {"infra": 6}}), "r1")
    assert len(tried) == 7
    run = load_run(store, "r1")
    assert (run.status, run.code, run.stage("big").code) == ("FAILED", "WORKER_LOST", "WORKER_LOST")


@pytest.mark.parametrize(
    ("work", "stage"),
    [("ShardWorker.__call__", "big"), ("run_reduce", "few"), ("run_rank", "model")],
)
@pytest.mark.parametrize(
    ("error", "waiting"),
    [
        (WorkerLostError("x", "a worker died"), "backoff: tried again after x: a worker died"),
        (TransientStorageError("x", "silent"), "store: tried again after x: silent"),
    ],
)
def test_stage_that_is_tried_again_waits(tmp_path, monkeypatch, work, stage, error, waiting):
    store = open_store((tmp_path / "store").as_uri())
    videos = write_videos(tmp_path / "videos", "a.mp4")
    original, errors_left, recorded = attrgetter(work)(inline), [error], []

    def fails_once(*args):
        if errors_left:
            raise errors_left.pop()
        return original(*args)

    monkeypatch.setattr(f"{inline.__name__}.{work}", fails_once)
    waits = RetryPolicy(0, 0, sleep=lambda _: recorded.append(load_run(store, "r1").stage(stage)))
    monkeypatch.setattr(base, "_RETRY", waits)
    run = execute(store, toy_document(videos), "r1")
    events = [e["stage"] for e in events_of(store, "r1") if e["kind"] == "stage"]
    seen = [(e["status"], e["waiting"]) for e in events if e["name"] == stage]
    assert seen[-3:] == [("WAITING", waiting), ("RUNNING", ""), ("SUCCEEDED", "")]
    assert run.stage(stage).reason == "never ran before"
    # a store that has failed would fail the record, too
    assert [s.status for s in recorded] == ["RUNNING" if "store" in waiting else "WAITING"]


def test_memory_error_of_a_stage_is_of_the_kind_memory(tmp_path, monkeypatch):
    store = open_store((tmp_path / "store").as_uri())
    videos = write_videos(tmp_path / "videos", "a.mp4")
    monkeypatch.setattr("tests.support.toys.Pick.reduce", hungry)
    with pytest.raises(OutOfMemoryError, match="stage few, reduction: MemoryError"):
        execute(store, toy_document(videos), "r1")
    assert load_run(store, "r1").code == "OUT_OF_MEMORY"


def hungry(*_):
    raise MemoryError("17 GiB")


def test_page_of_states_has_every_state():
    table = PAGE.read_text().partition("## States")[2].partition("\n\nExit codes")[0]
    cells = (line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    shown = {state for cell in cells for state in re.findall("[A-Z_]{4,}", cell)}
    assert shown == set(get_args(Status))


def test_page_of_reason_codes_has_every_code_with_its_kind_and_retries():
    rows = [line.split("|")[1:4] for line in PAGE.read_text().splitlines() if line.count("|") == 6]
    shown = {code.strip(): (kind.strip(), retried.strip()) for code, kind, retried in rows}
    classes = [c for c in vars(errors).values() if inspect.isclass(c)]
    known = {c for c in classes if issubclass(c, VideoARError)}
    assert len({c.code for c in known}) == len(known)
    expected = {
        c.code: (c.kind, str(getattr(Retries(), c.kind)) if c.retryable else "") for c in known
    }
    expected[reason_code(KeyboardInterrupt())] = ("", "")
    assert {code: shown.get(code) for code in expected} == expected
    assert set(shown) - set(expected) <= {"code", "---"}
