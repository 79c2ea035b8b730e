"""One owner per run and per training; cancel, time limits and suspended drivers."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.child_process import start
from tests.support.toy_runs import execute, resume, toy_document, write_videos
from videoar.core.errors import ClusterUnknownError, LeaseHeldError, StorageError, TimedOutError
from videoar.core.settings import settings
from videoar.engine.inline import InlineEngine
from videoar.records.run_log import cancel_run
from videoar.records.run_record import events_of, load_run, run_ids
from videoar.storage.lease import Lease
from videoar.storage.store import Store, open_store
from videoar.testing.processes import suspended

pytestmark = pytest.mark.slow


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos", "a.mp4", "b.mp4")


def slow(videos: Path, steps: int = 8, pause_s: float = 0.5, **options) -> dict:
    """Return a pipeline with a training that takes long."""
    model = {"steps": steps, "pause_s": pause_s, **options}
    return toy_document(videos, model=model)


def drive(
    store_url: str, document: dict, run_id: str, resumed: bool = False, wait: bool = False
) -> None:
    """Drive a run in a child process; its exit code is that of the command line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    store = open_store(store_url)
    try:
        resume(store, run_id) if resumed else execute(store, document, run_id, wait=wait)
    except KeyboardInterrupt:
        os._exit(130)
    except LeaseHeldError as error:
        (Path(document["inputs"]["videos"]).parent / f"{run_id}.txt").write_text(str(error))
        os._exit(5)
    os._exit(0)


def wait_until(condition, limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def trains(store: Store, run_id: str) -> bool:
    records = (key for key in store.ledger.list("checkpoints/") if key.endswith(".json"))
    return any(records) and run_id in run_ids(store)


@pytest.mark.fault(18, "five processes run the pipeline of a sixth")
def test_equal_run_is_refused_and_names_the_first(store: Store, videos: Path, tmp_path: Path):
    document = slow(videos, steps=200)
    first = start(drive, store.url, document, "first")
    wait_until(lambda: trains(store, "first"))
    others = [start(drive, store.url, document, f"other{n}") for n in range(5)]
    for other in others:
        other.join(60)
    assert [other.exitcode for other in others] == [5] * 5
    for n in range(5):
        assert "is held by run first on" in (tmp_path / f"other{n}.txt").read_text()
    first.terminate()
    first.join(60)
    assert (first.exitcode, run_ids(store)) == (130, ["first"])  # the others left no run behind


def queue(store: Store, document: dict, run_id: str):
    """Start an equal run that waits, in a child process."""
    child = start(drive, store.url, document, run_id, False, True)
    wait_until(lambda: run_id in run_ids(store) and load_run(store, run_id).status == "QUEUED")
    assert load_run(store, run_id).queued_behind == "first"
    return child


@pytest.mark.fault(18, "an equal run that waits; one that is cancelled, one that is killed")
def test_equal_run_in_the_queue_is_seen_cancelled_and_adopts(store: Store, videos: Path):
    document = slow(videos, steps=200)
    first = start(drive, store.url, document, "first")
    wait_until(lambda: trains(store, "first"))
    waits, killed, cancelled = (queue(store, document, name) for name in ("waits", "k", "c"))
    killed.kill()
    killed.join()
    assert load_run(store, "k").status == "INTERRUPTED"
    cancel_run(store, "c")
    cancelled.join(30)
    assert cancelled.exitcode == 130
    run = load_run(store, "c")
    assert (run.status, run.code, run.queued_behind) == ("CANCELLED", "CANCELLED", None)
    first.terminate()
    first.join(60)
    wait_until(lambda: trains(store, "waits") and load_run(store, "waits").status == "RUNNING")
    cancel_run(store, "waits")
    waits.join(60)
    assert load_run(store, "waits").status == "CANCELLED"


@pytest.mark.fault(18, "resume of a run that goes on")
def test_resume_of_a_living_run_is_refused_and_changes_nothing(store: Store, videos: Path):
    first = start(drive, store.url, slow(videos, steps=200), "r1")
    wait_until(lambda: trains(store, "r1"))
    with pytest.raises(LeaseHeldError, match="is held by run r1 on"):
        resume(store, "r1")
    assert load_run(store, "r1").status == "RUNNING"
    first.terminate()
    first.join(60)
    assert [e["kind"] for e in events_of(store, "r1")].count("finish") == 1


@pytest.mark.fault(19, "two runs with one training")
def test_training_of_another_run_is_waited_for_and_adopted(store: Store, videos: Path):
    first = start(drive, store.url, slow(videos, steps=6), "first")
    wait_until(lambda: trains(store, "first"))
    seen: list[str] = []
    watcher = threading.Thread(target=lambda: wait_until(lambda: waits(store, seen)))
    watcher.start()
    second = execute(store, slow(videos, steps=6, pause_s=0.0), "second")  # another runtime option
    watcher.join()
    first.join(60)
    assert second.outputs["model"] == load_run(store, "first").outputs["model"]
    assert second.stage("model").status == "SUCCEEDED"
    events = (e["stage"] for e in events_of(store, "second") if e["kind"] == "stage")
    states = [stage["status"] for stage in events if stage["name"] == "model"]
    assert states.count("WAITING") == 1
    assert seen == ["lease: run first"]


def waits(store: Store, seen: list[str]) -> bool:
    if "second" not in run_ids(store):
        return False
    stage = load_run(store, "second").stage("model")
    if stage.status == "WAITING":
        seen.append(stage.waiting.partition(" on ")[0])
    return stage.status == "WAITING"


def test_training_of_a_killed_run_is_taken_over_from_its_checkpoint(store: Store, videos: Path):
    first = start(drive, store.url, slow(videos), "first")
    wait_until(lambda: trains(store, "first"))
    first.kill()
    first.join()
    second = execute(store, slow(videos, pause_s=0.0), "second")
    row = store.snapshot(second.outputs["model"]).table().to_pylist()[0]
    assert dict(row["metrics"])["began_at"] >= 2.0


@pytest.mark.fault(34, "a request to cancel from another process")
def test_cancel_ends_the_driver_of_another_process_and_keeps_its_work(store: Store, videos: Path):
    driver = start(drive, store.url, slow(videos, steps=200), "r1")
    wait_until(lambda: trains(store, "r1"))
    cancel_run(store, "r1")
    driver.join(20)
    assert driver.exitcode == 130
    run = load_run(store, "r1")
    assert (run.status, run.stage("big").status) == ("CANCELLED", "SUCCEEDED")
    assert run.stage("model").status == "CANCELLED"
    assert "cancelled by" in run.error
    # the lease was given back: no wait, and the old request does not cancel the resumed run
    again = start(drive, store.url, slow(videos, steps=200), "r1", True)
    wait_until(lambda: load_run(store, "r1").status == "RUNNING")
    time.sleep(settings().lease_ttl_s)
    assert load_run(store, "r1").status == "RUNNING"
    again.terminate()
    again.join(20)
    assert (again.exitcode, load_run(store, "r1").status) == (130, "CANCELLED")


@pytest.mark.fault(20, "SIGSTOP of the driver beyond its lease, SIGCONT")
def test_suspended_driver_that_wakes_changes_nothing(store: Store, videos: Path, tmp_path: Path):
    document = slow(videos, steps=8, pause_s=0.3)
    driver = start(drive, store.url, document, "r1")
    wait_until(lambda: trains(store, "r1"))
    with suspended(driver.pid):
        run = resume(store, "r1")  # waits until no heartbeat came for the time to live
        assert run.status == "SUCCEEDED"
        before = {info.key: info.etag or info.size_bytes for info in store.objects.list("")}
    driver.join(20)
    assert driver.exitcode == 5
    assert "is held by run r1" in (tmp_path / "r1.txt").read_text()
    after = {info.key: info.etag or info.size_bytes for info in store.objects.list("")}
    ours = ("leases/", "checkpoints/", "runs/r1/progress/")
    assert {k for k in before.keys() ^ after.keys() if not k.startswith(ours)} == set()
    assert load_run(store, "r1").status == "SUCCEEDED"


@pytest.mark.parametrize(
    ("limit", "what"),
    [({"timeout_s": 1.5}, "not finished after timeout_s"), ({"stall_s": 1.5}, "no progress")],
)
def test_stage_beyond_its_time_limit_ends_as_timed_out(
    store: Store, videos: Path, limit: dict, what: str
):
    with pytest.raises(TimedOutError, match=f"stage model: .*{what}") as raised:
        execute(store, slow(videos, steps=4, pause_s=30.0, **limit), "r1")
    assert raised.value.exit_code == 6
    run = load_run(store, "r1")
    assert (run.status, run.stage("model").status) == ("TIMED_OUT", "TIMED_OUT")
    assert set(execute(store, slow(videos, steps=4, pause_s=0.0)).outputs) == set(run.outputs) | {
        "model",
        "gate",
    }


def test_run_whose_lease_cannot_be_released_has_ended_as_recorded(
    store: Store, videos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def unreachable(_: Lease) -> None:
        raise StorageError("store", "does not respond")

    monkeypatch.setattr(Lease, "release", unreachable)
    assert execute(store, toy_document(videos), "r1").status == "SUCCEEDED"
    assert "ends by its time to live" in caplog.text


def test_slow_stage_with_progress_is_not_stalled(store: Store, videos: Path):
    run = execute(store, slow(videos, steps=8, pause_s=0.4, stall_s=3), "r1")
    assert run.status == "SUCCEEDED"


@pytest.mark.fault(30, "an engine whose cluster does not answer")
def test_cluster_that_cannot_be_reached_leaves_the_run_unknown(
    store: Store, videos: Path, monkeypatch: pytest.MonkeyPatch
):
    def unreachable(*_):
        raise ClusterUnknownError("10.0.0.1:6379", "cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(InlineEngine, "map", unreachable)
        with pytest.raises(ClusterUnknownError):
            execute(store, toy_document(videos), "r1")
    run = load_run(store, "r1")
    assert (run.status, run.stage("big").status) == ("UNKNOWN", "UNKNOWN")
    assert resume(store, "r1").status == "SUCCEEDED"
