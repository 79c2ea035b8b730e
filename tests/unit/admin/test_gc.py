"""`gc` deletes what nothing names, whatever else happens, and nothing else."""

import random
import time

import pyarrow as pa
import pytest

from tests.support.child_process import exit_code, preload, start
from tests.support.toy_runs import execute, execute_at, resume, toy_document, write_videos
from videoar import api
from videoar.admin import garbage, gc
from videoar.bench.stores import commit
from videoar.contracts.names import SAMPLES
from videoar.core.errors import ConfigError, LeaseHeldError, TransientStorageError
from videoar.records.run_record import load_run, run_ids
from videoar.storage import layout
from videoar.storage.collection import CollectionWatch, wait_for_collection
from videoar.storage.delta_log import DeltaLog
from videoar.storage.lease import Lease
from videoar.storage.store import Store, open_store

preload(__name__)
NOW = garbage.Retention(keep_s=0.0, unfinished_s=0.0)
DRAWN = {"draw": {"stage": "draw", "from": {"model": "model"}}}


def collect(store: Store, retention: garbage.Retention = NOW) -> dict[str, int]:
    deleted, problems = gc.apply(store, gc.plan(store, retention).plan)
    assert not problems
    return {kind: found.keys for kind, found in deleted.items()}


def keys(store: Store, *prefixes: str) -> set[str]:
    return {info.key for prefix in prefixes for info in store.objects.list(prefix)}


def orphans(store: Store, number: int = 3) -> set[str]:
    """Write files and objects that nothing names."""
    made = {store.put_object(f"orphan {i}".encode(), ".mp4").key for i in range(number)}
    for i in range(number):
        key = layout.data_key("big", f"{i:064x}")
        store.objects.put(key, b"orphan")
        made.add(key)
    return made


def apply_at(url: str, plan: str) -> None:
    gc.apply(open_store(url), plan)


def read_all(store: Store) -> None:
    """Read every row of every snapshot, and every object that they name."""
    for snapshot in store.snapshots():
        for row in snapshot.table(verify=True).to_pylist():
            for file in row.get("files") or ():
                store.objects.get(file["key"])
            if row.get("video_key"):
                store.objects.get(row["video_key"])


def test_what_is_named_stays_and_what_is_not_goes(store, videos, tmp_path):
    document = toy_document(videos, **DRAWN)
    run = execute(store, document)
    kept = keys(store, "objects/", "tables/", "refs/", "stages/", "runs/")
    kept -= keys(store, f"runs/{run.run_id}/progress/")
    lost = orphans(store)
    found = collect(store)
    assert found.pop("checkpoint") == 4
    assert found.pop("progress")
    assert found == {"data": 3, "object": 3}
    assert not lost & keys(store, "objects/", "tables/")
    assert kept <= keys(store, "")
    read_all(store)
    again = execute(store, document)
    assert {stage.status for stage in again.stages} == {"CACHED"}
    assert api.lineage(store, "draw")["nodes"]
    assert api.show(store, "model")["rows"] == 1
    assert api.status(store, run.run_id).status == "SUCCEEDED"
    api.report(store, run.run_id, tmp_path / "page.html")


@pytest.mark.slow
def test_garbage_of_a_bucket_goes(moto_server, videos):
    store = open_store(moto_server.new_url(), endpoint=moto_server.endpoint)
    execute(store, toy_document(videos, **DRAWN))
    assert "object" not in collect(store)
    lost = orphans(store)
    found = collect(store)
    assert (found["data"], found["object"]) == (3, 3)
    assert not lost & keys(store, "objects/", "tables/")
    read_all(store)
    with pytest.raises(ConfigError, match="no such plan"):
        gc.apply(store, "none")


def test_nothing_younger_than_the_retention_time_goes(store, videos):
    execute(store, toy_document(videos))
    orphans(store)
    before = keys(store, "")
    assert collect(store, garbage.Retention()) == {}
    assert before <= keys(store, "")


def test_a_plan_is_checked_again_when_it_is_applied(store, videos):
    (kept, *_) = sorted(key for key in orphans(store) if key.startswith("objects/"))
    made = gc.plan(store, NOW)
    assert made.kinds["object"].keys == 3
    execute(store, toy_document(videos, **DRAWN))
    drawn = store.snapshot(api.show(store, "draw")["snapshot"])
    rows = [drawn.table().to_pylist()[0] | {"video_key": kept}]
    commit(store, "adopted", SAMPLES, [pa.Table.from_pylist(rows, drawn.table().schema)])
    later = orphans(store, 5)  # garbage, but not in the plan
    deleted, _ = gc.apply(store, made.plan)
    assert {kind: found.keys for kind, found in deleted.items()} == {"object": 2, "data": 3}
    assert store.objects.size(kept) is not None
    assert len(later & keys(store, "objects/", "tables/")) == 5


def test_objects_of_a_lost_file_are_kept_until_it_is_made_again(store, videos):
    document = toy_document(videos, **DRAWN)
    execute(store, document)
    orphans(store)
    snapshot = store.snapshot(api.show(store, "draw")["snapshot"])
    store.objects.delete(snapshot.files[0].key)
    result = api.gc_plan(store, 0.0, 0.0)
    assert not result["ok"]
    assert snapshot.id in result["checks"][-1]["detail"]
    assert "object" not in {check["name"] for check in result["checks"] if check["ok"]}
    execute(store, document)
    assert collect(store)["object"] == 3
    read_all(store)


@pytest.mark.parametrize(("name", "says"), [("", "no such plan"), ("../x", "no such plan")])
def test_an_unknown_plan_is_an_error(store, name, says):
    with pytest.raises(ConfigError, match=says):
        gc.apply(store, name)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["gc.acquired", "gc.deleted"])
def test_apply_that_was_killed_goes_on(store, videos, point):
    execute(store, toy_document(videos))
    lost = orphans(store)
    made = gc.plan(store, NOW)
    assert exit_code(apply_at, store.url, made.plan, VIDEOAR_CRASH_AT=point) == -9
    gc.apply(store, made.plan)
    assert not lost & keys(store, "objects/", "tables/")
    read_all(store)
    assert gc.apply(store, made.plan) == ({}, [])


@pytest.mark.slow
def test_plan_that_was_killed_is_garbage_itself(store, videos):
    orphans(store)
    code = exit_code(plan_at, store.url, VIDEOAR_CRASH_AT="gc.part")
    assert (code, len(keys(store, layout.PLANS_PREFIX))) == (-9, 1)
    assert collect(store)["plan"] == 1


def plan_at(url: str) -> None:
    gc.plan(open_store(url), NOW)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["write.after_put", "shard-written", "before-commit", "counting-5"]
)
def test_a_run_that_was_killed_resumes_to_the_same_snapshots(store, videos, tmp_path, point):
    document = toy_document(videos)
    undisturbed = execute(open_store((tmp_path / "other").as_uri()), document)
    assert exit_code(execute_at, store.url, document, "killed", VIDEOAR_CRASH_AT=point) == -9
    # what a resume would continue has a time of its own
    kept = garbage.Retention(keep_s=0.0)
    records = keys(store, "stages/", "checkpoints/")
    collect(store, kept)
    assert records == keys(store, "stages/", "checkpoints/")
    found = collect(store)
    assert found.get("checkpoint", 0) == (4 if point == "counting-5" else 0)
    assert resume(store, "killed").status == "SUCCEEDED"
    run = load_run(store, "killed")
    for name in ("big", "few"):
        assert run.outputs[name] == undisturbed.outputs[name]
    read_all(store)


@pytest.mark.slow
def test_what_a_living_run_may_continue_stays(store, videos):
    document = toy_document(videos, model={"pause_s": 0.4})
    child = start(execute_at, store.url, document, "living")
    try:
        while len(keys(store, "checkpoints/")) < 2:
            time.sleep(0.05)
        before = keys(store, "stages/", "checkpoints/", "tables/", "objects/")
        assert not {"work", "checkpoint", "data", "object"} & collect(store).keys()
        assert before - keys(store, "") <= {k for k in before if k.startswith("checkpoints/")}
    finally:
        child.join(60)
    assert load_run(store, "living").status == "SUCCEEDED"
    read_all(store)


@pytest.mark.slow
def test_two_collectors_exclude_each_other_and_runs_wait(store, videos):
    made = gc.plan(store, NOW)
    lease = Lease(store, layout.COLLECTOR_LEASE, "other")
    watch = CollectionWatch(store)
    lease.acquire()
    lease.keep(lambda _: None)
    with pytest.raises(LeaseHeldError, match="other"):
        gc.apply(store, made.plan)
    child = start(execute_at, store.url, toy_document(videos), "waits")
    time.sleep(1.5)
    assert child.is_alive()
    assert "stages/" not in {key[:7] for key in keys(store, "")}
    lease.release()
    child.join(60)
    assert load_run(store, "waits").status == "SUCCEEDED"
    assert watch.has_collected()
    assert wait_for_collection(store)
    assert not CollectionWatch(store).has_collected()


def test_what_was_deleted_while_it_was_made_is_an_error(store):
    watch = CollectionWatch(store)
    (key, *_) = orphans(store, 1)
    watch.require_all("record", lambda: [key])
    collect(store)
    with pytest.raises(TransientStorageError, match="deleted as garbage"):
        watch.require_all("record", lambda: [key])
    CollectionWatch(store).require_all("record", lambda: [key])  # it has begun since


def test_half_written_versions_of_a_log_go(store, videos):
    execute(store, toy_document(videos))
    left = f"{layout.log_version_key('big', 7)}#1"
    store.objects.put(left, b"{")
    assert collect(store)["data"] == 1
    assert store.objects.size(left) is None
    read_all(store)


def test_an_object_that_is_deleted_in_that_moment_is_made_again(store, videos, monkeypatch):
    """The collector looks before the put, and deletes after it."""
    put, deleted = Store.put_object, []

    def put_and_lose(self, data, suffix):
        file = put(self, data, suffix)
        if not deleted:
            lease = Lease(self, layout.COLLECTOR_LEASE, "collector")
            lease.acquire()
            self.objects.delete(file.key)
            lease.release()
            deleted.append(file.key)
        return file

    monkeypatch.setattr(Store, "put_object", put_and_lose)
    run = execute(store, toy_document(videos, **DRAWN))
    assert run.status == "SUCCEEDED"
    assert deleted
    read_all(store)


def test_a_file_that_is_deleted_before_its_commit_fails_the_run_which_resumes(
    store, videos, monkeypatch
):
    document = toy_document(videos)
    append, deleted = DeltaLog.append, []

    def append_and_lose(self, draft, schema):
        commit = append(self, draft, schema)
        if not deleted and draft.dataset == "few":
            lease = Lease(store, layout.COLLECTOR_LEASE, "collector")
            lease.acquire()
            deleted.append(draft.files[0].key)
            store.objects.delete(deleted[0])
            lease.release()
        return commit

    monkeypatch.setattr(DeltaLog, "append", append_and_lose)
    with pytest.raises(TransientStorageError, match="was deleted as garbage"):
        execute(store, document, "lost")
    assert resume(store, "lost").status == "SUCCEEDED"
    read_all(store)


def test_epochs_go_only_with_all_before_them(store):
    for _ in range(3):
        lease = Lease(store, "work", "owner")
        lease.acquire()
        lease.release()
    assert collect(store)["lease"] == 4
    suspended = Lease(store, "work", "suspended")
    suspended.acquire()
    store.ledger.create(layout.log_entry_key(layout.lease_log("work"), 4), {"owner": "b"})
    store.ledger.create(layout.log_entry_key(layout.lease_log("work"), 5), {"owner": "c"})
    assert collect(store)["lease"] == 2  # number 2: numbers 4 and 5 tell the owner of 3
    with pytest.raises(LeaseHeldError):
        suspended.renew()


@pytest.mark.slow
def test_random_kills_beside_a_collector_lose_nothing(store, tmp_path):
    """Runs that are killed at random beside a collector that keeps nothing."""
    draw = random.Random(5)
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    points = ["write.after_put", "shard-written", "record-published", "commit.after_log",
              "counting-3", "checkpoint-written", "reduce-written", ""]  # fmt: skip
    drawn = set()

    def document(suffix: str) -> dict:
        return toy_document(videos, big={"suffix": suffix}, model={"pause_s": 0.05}, **DRAWN)

    for number in range(6):
        drawn.add(suffix := str(draw.randrange(2)))
        point = draw.choice(points)
        arguments = (execute_at, store.url, document(suffix), f"run{number}")
        child = start(*arguments, VIDEOAR_CRASH_AT=point)
        while child.is_alive():
            collect(store)
    for run_id in run_ids(store):
        if load_run(store, run_id).status != "SUCCEEDED":
            assert resume(store, run_id).status == "SUCCEEDED"
        collect(store)
    read_all(store)
    for suffix in sorted(drawn):
        run = execute(store, document(suffix))
        assert {stage.status for stage in run.stages} == {"CACHED"}
        other = execute(open_store((tmp_path / f"other{suffix}").as_uri()), document(suffix))
        assert (run.outputs["big"], run.outputs["few"]) == (
            other.outputs["big"],
            other.outputs["few"],
        )


def test_files_that_people_leave_are_no_garbage_and_stop_nothing(store, videos):
    execute(store, toy_document(videos))
    collect(store)
    folders = ("checkpoints", "claims", "claims/runs", "leases", "refs")
    left = {f"{folder}/{name}" for folder in folders for name in (".DS_Store", "notes.json")}
    for key in left:
        store.objects.put(key, b"{}")
    collect(store)
    assert keys(store, *folders) >= left
    assert [row["name"] for row in api.refs(store)["refs"]] == ["champion"]
