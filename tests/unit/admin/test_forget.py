"""A takedown on real clips: what goes, what stays, what the next run does; kills in between."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.child_process import exit_code
from tests.support.small_pipeline import videoar
from tests.support.small_videos import address, document, draw, run, sha, shards
from tests.support.stored_text import holding_text
from videoar.admin.forget import _scrub, forget
from videoar.api import quarantine
from videoar.core.errors import ConfigError, SnapshotNotFoundError, WithdrawnError
from videoar.media.sources import list_sources
from videoar.pipeline.spec import parse_pipeline
from videoar.records.lineage import lineage
from videoar.runner.plan import plan
from videoar.storage.layout import text_features_key
from videoar.storage.store import Store, open_store
from videoar.storage.takedown import address_digest, find_tombstone

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


def objects(store: Store) -> set[str]:
    return {info.key for info in store.objects.list("objects/")}


def refused(store: Store) -> dict[str, list[str]]:
    return {row["item_id"]: row["reasons"] for row in quarantine(store, None)["rows"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with `videos`, and a `store` in which they were ingested one by one."""
    base = tmp_path_factory.mktemp("base")
    (base / "videos").mkdir()
    for seed, name in enumerate("abc"):
        draw(base / "videos" / f"{name}.mp4", seed)
    draw(base / "videos" / "short.mp4", 9, num_frames=5)
    (base / "videos" / "labels.csv").write_text("file,license,source\na.mp4,CC0,here\n")
    run(open_store((base / "store").as_uri()), document(base / "videos"))
    return base


@pytest.fixture
def videos(base: Path) -> Path:
    return base / "videos"


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Store:
    shutil.copytree(base / "store", tmp_path / "store")
    return open_store((tmp_path / "store").as_uri())


def own_videos(videos: Path, tmp_path: Path) -> Path:
    """Copy the folder to one that the test may change; every address in it is new."""
    return Path(shutil.copytree(videos, tmp_path / "own"))


def holders(found: dict) -> dict[str, int]:
    return {e["dataset"]: e["rows"] for e in found["derived"] if e["holds_content"]}


def test_files_with_content_are_deleted_and_raise_withdrawn(store: Store, videos: Path):
    source, before = sha(videos / "a.mp4"), objects(store)
    old = {name: store.snapshot(f"{name}:{digest}") for name, digest in heads(store).items()}
    found = forget(store, source, "asked by its owner")
    assert holders(found) == {"clips": 1, "good": 1}
    assert found["deleted"]["objects"] == len(before - objects(store)) == 1
    assert found["deleted"]["files"] == 2
    assert sha(videos / "a.mp4") == source
    for snapshot in (old["clips"], old["good"]):
        for columns in (None, ["clip_id"]):
            with pytest.raises(WithdrawnError, match=f"withdrawn by the takedown of .* {source}"):
                snapshot.table(columns)
        assert sum(table.num_rows for table in snapshot.read_available()) == 2
    stone = find_tombstone(store.ledger, source)
    assert stone.reason == "asked by its owner"
    rows = pa.concat_tables(list_sources(str(videos))).to_pylist()
    (listed,) = (row for row in rows if row["name"] == "a.mp4")
    assert stone.addresses == (address_digest(listed["uri"], listed["etag"]),)
    ends = {n["sha256"]: n for n in lineage(store, old["good"].id)["nodes"] if "sha256" in n}
    assert set(ends) == {sha(videos / f"{name}.mp4") for name in "abc"}
    assert ends[source]["forgotten"]
    assert (ends[source]["licence"], ends[source]["origin"]) == ("CC0", "here")
    with pytest.raises(WithdrawnError, match="taken down"):
        lineage(store, source)


def heads(store: Store) -> dict[str, str]:
    return {s.dataset: s.id.partition(":")[2] for s in store.snapshots()}


def test_next_run_succeeds_without_the_source(store: Store, videos: Path):
    old = store.snapshot(f"good:{heads(store)['good']}")
    forget(store, sha(videos / "a.mp4"))
    made = run(store, document(videos))
    assert shards(made) == (3, 3, 0)
    # the files of all others are the old ones: shards made from them are found again
    assert len(set(old.files) - set(store.snapshot(made.outputs["good"]).files)) == 1
    assert made.inputs["videos"].sources == 3
    assert made.inputs["videos"].gone == 1
    names = store.snapshot(made.outputs["good"]).table(["source_name"])["source_name"]
    assert sorted(names.to_pylist()) == ["b.mp4", "c.mp4"]
    assert {s.status for s in run(store, document(videos)).stages} == {"CACHED"}


def test_only_the_shard_of_the_source_is_recomputed(videos: Path, tmp_path: Path):
    store = open_store((tmp_path / "store").as_uri())
    own = own_videos(videos, tmp_path)
    drawn = [
        address(own, str(seed), per_shard=3, ends_shard=seed in (11, 14)) for seed in range(10, 16)
    ]
    for seed, path in enumerate(drawn, start=10):
        draw(path, seed)
    first = run(store, document(own, per_shard=3))
    planned = first.stage("clips").shards.planned
    assert planned >= 3
    (replanned,) = forget(store, sha(drawn[2]), replan=True)["replan"]
    clips = next(stage for stage in replanned["stages"] if stage["name"] == "clips")
    assert (clips["action"], clips["shards"]["planned"] - clips["shards"]["cached"]) == (
        "partial",
        1,
    )
    second = run(store, document(own, per_shard=3))
    assert shards(second) == (planned, planned - 1, 1)
    assert store.snapshot(second.outputs["clips"]).rows == 8


def test_replan_lists_the_stages_that_run_again(store: Store, videos: Path):
    made = run(store, document(videos))
    source = sha(videos / "a.mp4")
    planned = forget(store, source, dry_run=True, replan=True)["replan"]
    assert forget(store, source, replan=True)["replan"] == planned
    assert forget(store, source, replan=True)["replan"] == planned  # after it, too
    assert "replan" not in forget(store, source)
    (one,) = planned
    assert one["pipeline"] == made.pipeline
    stages = {stage["name"]: stage for stage in one["stages"]}
    assert list(stages) == ["clips", "good"]
    assert {stage["snapshot"] for stage in stages.values()} == {*made.outputs.values()}
    again = run(store, document(videos))
    for name, stage in stages.items():
        counts = again.stage(name).shards
        assert stage["action"] == ("partial" if counts.cached else "run")
        assert stage["shards"]["planned"] - stage["shards"]["cached"] == counts.done
    assert "depends on clips:" in stages["good"]["reason"]


def test_features_of_prompts_are_deleted(store: Store, videos: Path):
    key = text_features_key("0" * 64, 16, "1" * 64)
    store.objects.put(key, b"features of its caption")
    forget(store, sha(videos / "a.mp4"), dry_run=True)
    assert store.objects.size(key)
    forget(store, sha(videos / "a.mp4"))
    assert store.objects.size(key) is None


def test_copy_of_the_source_is_rejected_by_its_content(store: Store, videos: Path, tmp_path: Path):
    forget(store, sha(videos / "a.mp4"))
    own = own_videos(videos, tmp_path)
    made = run(store, document(own))
    assert refused(store) == {"a.mp4": ["FORGOTTEN"], "short.mp4": ["TOO_SHORT"]}
    assert store.snapshot(made.outputs["clips"]).rows == 2
    again = forget(store, sha(videos / "a.mp4"))  # the refusal is no row of it
    assert holders(again) == {"clips": 1, "good": 1}
    assert {s.status for s in run(store, document(own)).stages} == {"CACHED"}


def test_stage_with_deleted_files_is_not_cached(store: Store, videos: Path):
    listing = f"snapshot://videos:{heads(store)['videos']}"  # asks for exactly what was asked
    assert {s.status for s in run(store, document(listing)).stages} == {"CACHED"}
    forget(store, sha(videos / "a.mp4"))
    shown = plan(parse_pipeline(document(listing), "p.yaml"), store)[0]
    assert (shown.action, shown.shards.planned, shown.shards.cached) == ("partial", 3, 3)
    made = run(store, document(listing))
    assert shards(made) == (3, 3, 0)
    assert store.snapshot(made.outputs["clips"]).table().num_rows == 2
    again = run(store, document(listing))
    assert {s.status for s in again.stages} == {"CACHED"}
    assert again.outputs == made.outputs


def test_stage_with_deleted_rejects_is_not_cached(store: Store, videos: Path):
    listing = f"snapshot://videos:{heads(store)['videos']}"
    found = forget(store, sha(videos / "short.mp4"))
    assert holders(found) == {"clips.rejects": 1}
    assert quarantine(store, None) == {"rows": [], "withdrawn": 1}
    made = run(store, document(listing))
    assert shards(made) == (3, 3, 0)
    assert refused(store) == {}
    assert {s.status for s in run(store, document(listing)).stages} == {"CACHED"}
    assert refused(store) == {}


def test_run_that_began_before_cannot_commit_the_source(store: Store, videos: Path):
    old = store.snapshot(f"clips:{heads(store)['clips']}")
    rows = old.table()
    forget(store, sha(videos / "a.mp4"))
    with pytest.raises(WithdrawnError, match="which was withdrawn"):
        store.dataset("good", "clips@1").write(rows)
    provenance = old.commit.provenance.model_copy(update={"fingerprint": "new"})
    with pytest.raises(WithdrawnError, match="during the run"):
        store.dataset("clips", "clips@1").commit(old.files, provenance, {})


def test_uncommitted_files_are_deleted(store: Store, videos: Path):
    rows = store.snapshot(f"clips:{heads(store)['clips']}").table()
    left = store.dataset("killed", "clips@1").write(rows)
    half = store.objects.root / ".tmp" / "half"  # what a kill amid a put leaves
    half.hardlink_to(store.objects.location(left.key))
    assert forget(store, sha(videos / "a.mp4"))["deleted"]["files"] == 3
    assert store.objects.size(left.key) is None
    assert not half.exists()


def test_listings_are_rewritten_without_address_and_caption(videos: Path, tmp_path: Path):
    own = own_videos(videos, tmp_path)
    (own / "labels.csv").write_text("file,label_text\na.mp4,a quite private day\n")
    store = open_store((tmp_path / "store").as_uri())
    first = store.snapshot(run(store, document(own)).inputs["videos"].snapshot)
    (own / "c.mp4").touch()  # another listing, with the same content
    again = store.snapshot(run(store, document(own)).inputs["videos"].snapshot)
    texts = ("a quite private day", (own / "a.mp4").as_uri())
    assert all(holding_text(store, text) for text in texts)
    forgotten = [sha(own / f"{name}.mp4") for name in ("a", "b", "c", "short")]
    found = forget(store, forgotten[0])
    assert found["rewritten"] == 2
    assert not any(holding_text(store, text) for text in texts)
    for listing in (first, again):
        for columns in (None, ["name"]):
            names = listing.table(columns)["name"].to_pylist()
            assert sorted(names) == ["b.mp4", "c.mp4", "short.mp4"]
    # what the one before has written; without c, whose etag changed, both listings are one
    assert [forget(store, source)["rewritten"] for source in forgotten[1:]] == [2, 2, 1]
    assert first.table().num_rows == again.table().num_rows == 0
    assert forget(store, forgotten[0])["rewritten"] == 2
    assert not any(holding_text(store, (own / f"{name}.mp4").as_uri()) for name in "abc")
    # keys of clips may end in the same letter
    keys = {key for name in "abc" for key in holding_text(store, f"{name}.mp4")}
    assert all(key.startswith("withdrawn/") for key in keys)
    with pytest.raises(ConfigError, match="all of its files were withdrawn"):
        run(store, document(own))


def test_address_is_removed_from_errors_of_runs(store: Store, videos: Path):
    uri = (videos / "a.mp4").as_uri()
    key = "runs/x/events/0000.json"
    store.ledger.create(key, {"kind": "stage", "error": f"{uri}: is broken"})
    forget(store, sha(videos / "a.mp4"))
    assert store.ledger.read(key) == {"kind": "stage", "error": "(taken down): is broken"}


def test_address_that_json_escapes_is_removed_from_errors_of_runs(store: Store):
    uri, key = 's3://b/\u00e9 "1".mp4', "runs/x/events/0000.json"  # S3 keys may have any character
    store.ledger.create(key, {"kind": "stage", "error": f"{uri}: is broken"})
    _scrub(store, {uri})
    assert store.ledger.read(key) == {"kind": "stage", "error": "(taken down): is broken"}


def test_second_takedown_from_a_rewritten_file_succeeds(videos: Path, tmp_path: Path):
    store = open_store((tmp_path / "store").as_uri())
    run(store, document(videos, per_shard=100))
    for name in "ab":
        found = forget(store, sha(videos / f"{name}.mp4"))
        assert holders(found) == {"clips": 1, "good": 1}
        assert found["deleted"]["objects"] == 1
    assert len(objects(store)) == 1
    made = run(store, document(videos, per_shard=100))
    assert store.snapshot(made.outputs["good"]).table().num_rows == 1


def test_object_of_two_sources_is_deleted_with_the_second(videos: Path, tmp_path: Path):
    own = own_videos(videos, tmp_path)
    (own / "twin.mp4").write_bytes((own / "a.mp4").read_bytes() + b"\0\0\0\x08free")
    store = open_store((tmp_path / "store").as_uri())
    run(store, document(own))
    before = objects(store)
    assert forget(store, sha(own / "a.mp4"))["deleted"]["objects"] == 0
    assert objects(store) == before
    assert forget(store, sha(own / "twin.mp4"))["deleted"]["objects"] == 1
    assert len(objects(store)) == len(before) - 1


def test_dry_run_changes_nothing(store: Store, videos: Path):
    before = {info.key for info in store.objects.list("")}
    shown = forget(store, sha(videos / "a.mp4"), dry_run=True)
    assert {info.key for info in store.objects.list("")} == before
    assert shown == {**forget(store, sha(videos / "a.mp4")), "dry_run": True}


@pytest.mark.parametrize("dataset", ["videos", "clips"])
def test_damaged_commit_is_named_and_the_takedown_goes_on_without_it(
    store: Store, videos: Path, tmp_path: Path, dataset: str
):
    shutil.copytree(tmp_path / "store", tmp_path / "calm")
    calm = open_store((tmp_path / "calm").as_uri())
    expected = forget(calm, sha(videos / "a.mp4"), "why")
    assert expected["damaged"] == []
    key = f"tables/{dataset}/_delta_log/{0:020d}.json"
    data = store.objects.get(key)
    store.objects.put(key, data[: len(data) // 2])
    videoar("forget", "--source", sha(videos / "a.mp4"), "--dry-run", store=store.url, code=7)
    found = forget(store, sha(videos / "a.mp4"), "why")
    (what,) = found["damaged"]
    assert key in what
    assert objects(store) == objects(calm)
    assert found["deleted"] == expected["deleted"]
    store.objects.put(key, data)
    assert forget(store, sha(videos / "a.mp4")) == expected
    listed = [info.key for info in calm.objects.list("tables/")]
    assert [info.key for info in store.objects.list("tables/")] == listed


def test_unknown_source_is_one_error_line(store: Store):
    with pytest.raises(ConfigError, match="is not a SHA-256"):
        forget(store, "a.mp4")
    with pytest.raises(SnapshotNotFoundError, match=r"no source of .*videoar lineage"):
        forget(store, "0" * 64)


def forget_at(store_url: str, source: str) -> None:
    forget(open_store(store_url), source, "why")


POINTS = [
    "forget.tombstone", "forget.records", "forget.scrub", "forget.listing", "forget.notes",
    "forget.objects", "forget.file",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_forget_killed_at_a_crash_point_ends_the_same_when_repeated(
    store: Store, videos: Path, tmp_path: Path, point: str
):
    record, uri = "runs/x/events/0000.json", (videos / "a.mp4").as_uri()
    store.ledger.create(record, {"kind": "stage", "error": f"{uri}: is broken"})
    shutil.copytree(tmp_path / "store", tmp_path / "calm")
    calm = open_store((tmp_path / "calm").as_uri())
    expected = forget(calm, sha(videos / "a.mp4"), "why")
    arguments = (store.url, sha(videos / "a.mp4"))
    assert exit_code(forget_at, *arguments, VIDEOAR_CRASH_AT=point) == -9
    assert store.ledger.read(record)["kind"] == "stage"
    made = run(store, document(videos))  # a run in between already goes on without it
    assert shards(made) == (3, 3, 0)
    assert forget(store, sha(videos / "a.mp4"), "another reason") == expected
    assert objects(store) == objects(calm)
    assert store.ledger.read(record)["error"] == "(taken down): is broken"
    good = store.snapshot(made.outputs["good"])
    assert good.table(["source_id"]).num_rows == 2
