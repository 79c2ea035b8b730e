"""Executions of toy stages: reuse, growth by shards, resume after SIGKILL, gates."""

import tempfile
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.child_process import exit_code
from tests.support.toy_runs import execute, execute_at, resume, toy_document, write_videos
from tests.support.toys import REGISTRY
from videoar.api import explain, rollback
from videoar.core.errors import ConfigError, DamagedError, GateError, StageError, StorageError
from videoar.pipeline.spec import parse_pipeline
from videoar.records.lineage import lineage
from videoar.records.run import Run
from videoar.records.run_record import load_run, run_ids
from videoar.runner.damage import damage_removed
from videoar.runner.plan import plan
from videoar.storage.store import Store, open_store


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.mp4").write_bytes(b"x" * 10)
    return folder


def statuses(run: Run) -> dict[str, str]:
    return {stage.name: stage.status for stage in run.stages}


def test_unchanged_pipeline_run_again_is_cached(store: Store, videos: Path):
    first = execute(store, toy_document(videos))
    assert set(statuses(first).values()) == {"SUCCEEDED"}
    assert first.stage("big").rows.model_dump() == {"in_": 3, "out": 3, "rejected": 0}
    second = execute(store, toy_document(videos))
    assert set(statuses(second).values()) == {"CACHED"}
    assert second.outputs == first.outputs


def test_changed_option_reruns_its_stage_and_explain_names_it(store: Store, videos: Path):
    execute(store, toy_document(videos))
    changed = toy_document(videos, few={"at_most_bytes": 99})
    plans = {p.name: p for p in plan(parse_pipeline(changed, "t", REGISTRY), store, REGISTRY)}
    assert [plans[n].action for n in ("big", "few", "model")] == ["cached", "run", "run"]
    assert plans["few"].reason == "changed: config.at_most_bytes"
    run = execute(store, changed)
    # `few` ran and made the same rows, so everything under it is reused by content
    assert statuses(run) == {
        "big": "CACHED",
        "few": "SUCCEEDED",
        "model": "CACHED",
        "gate": "CACHED",
    }
    assert explain(store, run.run_id, "few")["changed"] == [
        {"component": "config.at_most_bytes", "old": 10_000, "new": 99}
    ]


def test_changed_runtime_option_reruns_nothing(store: Store, videos: Path):
    execute(store, toy_document(videos))
    run = execute(store, toy_document(videos, big={"nice": 5, "resources": {"workers": 7}}))
    assert set(statuses(run).values()) == {"CACHED"}


def test_plan_writes_nothing(store: Store, videos: Path, tmp_path: Path):
    plan(parse_pipeline(toy_document(videos), "t", REGISTRY), store, REGISTRY)
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").rglob("*.json"))


def test_new_source_runs_only_its_shard(store: Store, videos: Path):
    execute(store, toy_document(videos))
    (videos / "d.mp4").write_bytes(b"x" * 10)
    spec = parse_pipeline(toy_document(videos), "t", REGISTRY)
    shown = plan(spec, store, REGISTRY)[0]
    assert (shown.action, shown.shards.planned, shown.shards.cached) == ("partial", 4, 3)
    run = execute(store, toy_document(videos))
    shards = run.stage("big").shards
    assert (shards.planned, shards.cached, shards.done) == (4, 3, 1)


def test_rejected_rows_are_committed_with_their_reasons(store: Store, videos: Path):
    (videos / "bad.mp4").write_bytes(b"x")
    run = execute(store, toy_document(videos))
    rows = run.stage("big").rows
    assert rows.in_ == rows.out + rows.rejected == 4
    assert run.stage("big").metrics == {"seen": 4.0}
    rejects = store.snapshot(run.outputs["big"]).rejects()
    assert rejects.table()["reasons"].to_pylist() == [["BAD"]]
    with pytest.raises(StageError, match="max_reject_fraction"):
        execute(store, toy_document(videos, big={"max_reject_fraction": 0.1, "suffix": "y"}))


def test_error_in_a_shard_fails_the_run_and_names_stage_and_shard(store: Store, videos: Path):
    (videos / "explode.mp4").write_bytes(b"x")
    with pytest.raises(StageError, match=r"stage big, shard 3: ValueError: boom"):
        execute(store, toy_document(videos))
    run = load_run(store, run_ids(store)[-1])
    assert run.status == "FAILED"
    assert "boom" in run.stage("big").error
    (videos / "explode.mp4").unlink()
    assert execute(store, toy_document(videos)).stage("big").shards.cached == 3


def test_from_and_until_run_only_the_stages_between(store: Store, videos: Path):
    with pytest.raises(ConfigError, match="no finished snapshot"):
        execute(store, toy_document(videos), start="few")
    run = execute(store, toy_document(videos), until="few")
    assert statuses(run) == {
        "big": "SUCCEEDED", "few": "SUCCEEDED", "model": "SKIPPED", "gate": "SKIPPED",
    }  # fmt: skip
    assert statuses(execute(store, toy_document(videos), start="model"))["gate"] == "SUCCEEDED"


def damage_file(store: Store, key: str, damage: str) -> None:
    data = store.objects.get(key)
    store.objects.delete(key)
    if damage != "deleted":
        store.objects.put(key, data[:-1])


def assert_readable(store: Store, run: Run) -> None:
    outputs = [store.snapshot(name) for name in run.outputs.values()]
    for snapshot in [*outputs, *filter(None, (snapshot.rejects() for snapshot in outputs))]:
        snapshot.table(verify=True)


@pytest.mark.fault(13, "a data file cut or deleted")
@pytest.mark.slow
@pytest.mark.parametrize("damage", ["deleted", "cut"])
@pytest.mark.parametrize("dataset", ["videos", "big", "big.rejects", "few", "model"])
def test_snapshot_with_a_missing_or_damaged_file_is_recomputed(
    store: Store, videos: Path, dataset: str, damage: str
):
    (videos / "bad.mp4").write_bytes(b"x")
    first = execute(store, toy_document(videos))
    damage_file(store, next(store.objects.list(f"tables/{dataset}/data/")).key, damage)
    (shown, *_) = plan(parse_pipeline(toy_document(videos), "t", REGISTRY), store, REGISTRY)
    again = execute(store, toy_document(videos))
    ran = {name for name, status in statuses(again).items() if status == "SUCCEEDED"}
    if dataset == "model":  # resumes from its last checkpoint and records the step: other bytes
        assert ran == {"model", "gate"}
    else:
        assert ran == {dataset.partition(".")[0]} - {"videos"}
        assert again.outputs == first.outputs
    if "big" in ran:
        assert (shown.action, shown.shards.planned, shown.shards.cached) == ("partial", 4, 3)
    assert_readable(store, again)
    third = execute(store, toy_document(videos))
    assert (set(statuses(third).values()), third.outputs) == ({"CACHED"}, again.outputs)


@pytest.mark.slow
@pytest.mark.fault(13, "a byte of a data file turned over, read by the next stage")
@pytest.mark.parametrize("dataset", ["big", "videos"])
def test_damage_that_a_stage_reads_is_named_and_made_again_by_the_next_run(
    store: Store, videos: Path, dataset: str
):
    first = execute(store, toy_document(videos), until="few")
    info = next(store.objects.list(f"tables/{dataset}/data/"))
    data = bytearray(store.objects.get(info.key))
    # the end of a page: unlike statistics it is read, and the second column by the stage alone
    column = pq.read_metadata(BytesIO(data)).row_group(0).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start + column.total_compressed_size - 1] ^= 1
    store.objects.put(info.key, bytes(data))
    assert set(statuses(execute(store, toy_document(videos), until="few")).values()) >= {"CACHED"}
    reader = {"big": {"few": {"at_most_bytes": 9_999}}, "videos": {"big": {"suffix": "_"}}}[dataset]
    changed = toy_document(videos, **reader)
    with pytest.raises(DamagedError, match=f"{info.key}: damaged: .*removed: run"):
        execute(store, changed, until="few")
    (shown, *_) = plan(parse_pipeline(changed, "t", REGISTRY), store, REGISTRY)
    again = execute(store, changed, until="few")
    if dataset == "big":
        assert (shown.action, again.stage("big").shards.cached) == ("partial", 2)
        assert again.outputs["big"] == first.outputs["big"]
    assert_readable(store, again)


@pytest.mark.slow
@pytest.mark.fault(13, "an object that a row names is lost or damaged, read by the next stage")
@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_damaged_object_is_made_again_with_the_row_that_names_it(
    store: Store, videos: Path, tmp_path: Path, damage: str
):
    model = store.snapshot(execute(store, toy_document(videos)).outputs["model"])
    ((file, *_),) = model.table(["files"])["files"].to_pylist()
    store.objects.delete(file["key"])
    if damage == "damaged":
        store.objects.put(file["key"], bytes(file["size_bytes"]))
    for made, removes in [(set(), False), ({"model"}, True)]:
        with pytest.raises(StorageError), damage_removed(store, {"model": model}, made):
            store.fetch_folder([file], tmp_path / "fetched")
        found = store.dataset("model", "models@1").find(model.fingerprint)
        assert (found is None) == removes
    again = execute(store, toy_document(videos))
    assert statuses(again)["model"] == "SUCCEEDED"
    ((file, *_),) = store.snapshot(again.outputs["model"]).table(["files"])["files"].to_pylist()
    store.fetch_folder([file], tmp_path / "again")


def test_fault_of_the_machine_removes_nothing(store: Store, videos: Path):
    big = store.snapshot(execute(store, toy_document(videos), until="big").outputs["big"])
    where = f"{store.url}/{big.files[0].key}"
    with pytest.raises(DamagedError, match="restore"), damage_removed(store, {}, {"big"}):
        raise DamagedError(where, "damaged: other bytes", "restore it")
    assert_readable(store, execute(store, toy_document(videos), until="big"))


@pytest.mark.slow
@pytest.mark.fault(25, "a checkpoint file of other bytes")
def test_damaged_checkpoint_resumes_from_the_one_before(store: Store, videos: Path):
    first = execute(store, toy_document(videos))
    damage_file(store, next(store.objects.list("tables/model/data/")).key, "deleted")
    newest = next(i for i in store.objects.list("checkpoints/") if "/000000006-" in i.key)
    store.objects.put(newest.key, bytes(newest.size_bytes))
    again = execute(store, toy_document(videos))
    row = store.snapshot(again.outputs["model"]).table().to_pylist()[0]
    assert dict(row["metrics"])["began_at"] == 4.0
    assert again.outputs["few"] == first.outputs["few"]


def test_missing_listing_of_the_last_run_counts_all_sources_as_new(store: Store, videos: Path):
    execute(store, toy_document(videos))
    damage_file(store, next(store.objects.list("tables/videos/data/")).key, "deleted")
    (videos / "d.mp4").write_bytes(b"x" * 10)
    seen = execute(store, toy_document(videos)).inputs["videos"]
    assert (seen.sources, seen.new, seen.gone) == (4, 4, 0)


@pytest.mark.parametrize("dataset", ["big", "big.rejects", "few", "model"])
def test_file_missing_before_its_commit_is_recomputed(store: Store, videos: Path, dataset: str):
    (videos / "bad.mp4").write_bytes(b"x")
    stage = dataset.partition(".")[0]
    execute(store, toy_document(videos), until=stage)
    for folder in (f"tables/{stage}/_delta_log/", f"commits/{stage}/"):
        for info in list(store.objects.list(folder)):  # what a kill before the commit leaves
            store.objects.delete(info.key)
    damage_file(store, next(store.objects.list(f"tables/{dataset}/data/")).key, "deleted")
    run = execute(store, toy_document(videos))
    assert run.stage(stage).status == "SUCCEEDED"
    assert_readable(store, run)


def test_passed_gate_moves_the_ref_once_and_rollback_restores_it(store: Store, videos: Path):
    first = execute(store, toy_document(videos))
    execute(store, toy_document(videos))
    assert [e["snapshot"] for e in store.refs.history("champion")] == [first.outputs["model"]]
    second = execute(store, toy_document(videos, model={"steps": 4}))
    assert store.refs.head("champion") == second.outputs["model"]
    rollback(store, "champion")
    assert store.refs.head("champion") == first.outputs["model"]
    execute(
        store, toy_document(videos, model={"steps": 4})
    )  # cached: an old decision moves nothing
    assert store.refs.head("champion") == first.outputs["model"]


def test_failed_rule_blocks_the_run_and_moves_no_ref(store: Store, videos: Path):
    with pytest.raises(GateError, match="rows >= 2"):
        execute(store, toy_document(videos, gate={"bound": 2.0}))
    run = load_run(store, run_ids(store)[-1])
    assert (run.status, run.stage("gate").status) == ("GATE_BLOCKED", "GATE_BLOCKED")
    assert store.refs.head("champion") is None


def test_lineage_lists_ancestors_and_descendants(store: Store, videos: Path):
    run = execute(store, toy_document(videos))
    up = {node["id"] for node in lineage(store, run.outputs["gate"])["nodes"]}
    assert up >= set(run.outputs.values())
    down = {node["id"] for node in lineage(store, run.outputs["big"], down=True)["nodes"]}
    assert run.outputs["gate"] in down


def test_loop_below_its_gate_resumes_from_its_checkpoint_when_the_gate_is_lowered(
    store: Store, videos: Path
):
    with pytest.raises(GateError, match=r"count\.at_most"):
        execute(store, toy_document(videos, model={"at_most": 5}))
    run = execute(store, toy_document(videos, model={"at_most": 6}))
    row = store.snapshot(run.outputs["model"]).table().to_pylist()[0]
    assert dict(row["metrics"])["began_at"] == 6.0
    other = execute(store, toy_document(videos, model={"at_most": 7}))
    assert statuses(other)["model"] == "SUCCEEDED"  # for reuse the gate counts
    changed = execute(store, toy_document(videos, model={"at_most": 7, "checkpoint_every": 3}))
    row = store.snapshot(changed.outputs["model"]).table().to_pylist()[0]
    assert dict(row["metrics"])["began_at"] == 0.0


CRASHES = [
    "write.after_put", "shard-written", "mapping-b.mp4", "before-commit", "commit.before_log",
    "commit.after_log", "committed", "reduce-written", "counting-5", "checkpoint-written",
    "checkpoint-committed", "checkpoint-removing",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, Store, Run]:
    """Three videos, and a store with an undisturbed run of them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    videos = write_videos(folder / "videos", "a.mp4", "b.mp4", "c.mp4")
    store = open_store((folder / "store").as_uri())
    return videos, store, execute(store, toy_document(videos))


@pytest.mark.slow
def test_run_killed_right_after_its_end_has_succeeded(store: Store, tmp_path: Path):
    document = toy_document(write_videos(tmp_path / "videos", "a.mp4"))
    killed = exit_code(execute_at, store.url, document, "run1", VIDEOAR_CRASH_AT="run-finished")
    assert killed == -9
    before = load_run(store, "run1")
    assert before.status == "SUCCEEDED"
    assert resume(store, "run1") == load_run(store, "run1") == before


@pytest.mark.fault(5, "SIGKILL at each crash point")
@pytest.mark.slow
@pytest.mark.parametrize("point", CRASHES)
def test_run_killed_at_a_crash_point_resumes_to_the_same_snapshots(
    undisturbed, store: Store, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
):
    videos, other, expected = undisturbed
    temp = tmp_path / "temp"
    temp.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    child = {"VIDEOAR_CRASH_AT": point, "TMPDIR": str(temp)}
    assert exit_code(execute_at, store.url, toy_document(videos), "run1", **child) == -9
    assert load_run(store, "run1").status == "INTERRUPTED"
    if point == "counting-5":
        assert any(temp.glob("videoar-scratch-*"))
    run = resume(store, "run1")
    assert run.status == "SUCCEEDED"
    for name in ("big", "few"):
        assert run.outputs[name] == expected.outputs[name]
    row = store.snapshot(run.outputs["model"]).table().to_pylist()[0]
    (digest,) = other.snapshot(expected.outputs["model"]).table()["digest"].to_pylist()
    assert row["digest"] == digest  # no step lost, none done twice
    if point == "counting-5":
        assert dict(row["metrics"])["began_at"] == 4.0
    left = [info.key.rpartition("/")[2][:9] for info in store.objects.list("checkpoints/")]
    assert sorted(left) == ["000000004", "000000004", "000000006", "000000006"]
    # the scratch folder of the killed rank is removed too
    assert not any(temp.glob("videoar-scratch-*"))
