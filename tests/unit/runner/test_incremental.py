"""A folder that changes between runs: a source costs its own shard, the run says what moved."""

import os
import shutil
from pathlib import Path

import pytest

from tests.support.small_videos import address, document, draw, run, sha, shards
from videoar.api import quarantine
from videoar.storage.store import Store, open_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Four videos, and a store in which they were curated from the folder `videos`."""
    base = tmp_path_factory.mktemp("base")
    (base / "original").mkdir()
    for seed, name in enumerate("abcd"):
        draw(base / "original" / f"{name}.mp4", seed)
    shutil.copytree(base / "original", base / "videos")
    made = run(open_store((base / "store").as_uri()), document(base / "videos"))
    listed = made.inputs["videos"]
    assert (listed.sources, listed.new, listed.changed, listed.gone) == (4, 4, 0, 0)
    return base


@pytest.fixture
def videos(base: Path) -> Path:
    """The folder as it was curated: tests change it. Addresses must stay, so it has one path."""
    for name in ("videos", "moved"):
        shutil.rmtree(base / name, ignore_errors=True)
    return Path(shutil.copytree(base / "original", base / "videos"))  # with equal times


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Store:
    return open_store(Path(shutil.copytree(base / "store", tmp_path / "store")).as_uri())


def again(store: Store, videos: Path):
    """Run again; return the run, (new, changed, gone), and the sources of the good clips."""
    made = run(store, document(videos))
    listed = made.inputs["videos"]
    good = store.snapshot(made.outputs["good"]).table(["source_id", "clip_id"])
    return made, (listed.new, listed.changed, listed.gone), good


def test_unchanged_folder_is_cached(store: Store, videos: Path, caplog):
    with caplog.at_level("INFO"):
        made, moved, _ = again(store, videos)
    assert moved == (0, 0, 0)
    assert {s.status for s in made.stages} == {"CACHED"}
    assert "input videos: 4 sources (0 new, 0 changed, 0 gone)" in caplog.text


def test_new_file_runs_only_its_shard(store: Store, videos: Path):
    draw(videos / "bb.mp4", 10)
    made, moved, good = again(store, videos)
    assert (shards(made), moved) == ((5, 4, 1), (1, 0, 0))
    assert sha(videos / "bb.mp4") in good["source_id"].to_pylist()


def test_removed_file_is_absent_from_the_next_snapshot(store: Store, videos: Path):
    gone = sha(videos / "b.mp4")
    (videos / "b.mp4").unlink()
    made, moved, good = again(store, videos)
    assert (shards(made), moved) == ((3, 3, 0), (0, 0, 1))
    assert gone not in good["source_id"].to_pylist()


def test_changed_file_runs_only_its_shard(store: Store, videos: Path):
    old = sha(videos / "b.mp4")
    draw(videos / "b.mp4", 11)
    made, moved, good = again(store, videos)
    assert (shards(made), moved) == ((4, 3, 1), (0, 1, 0))
    assert old not in good["source_id"].to_pylist()
    assert sha(videos / "b.mp4") in good["source_id"].to_pylist()


def test_touched_file_reruns_nothing_downstream(store: Store, videos: Path):
    os.utime(videos / "b.mp4", (1, 1))
    made, moved, _ = again(store, videos)
    assert (shards(made), moved) == ((4, 3, 1), (0, 1, 0))
    assert [stage.status for stage in made.stages] == ["SUCCEEDED", "CACHED"]


def test_renamed_folder_keeps_clip_ids(store: Store, videos: Path):
    _, _, before = again(store, videos)
    _, moved, after = again(store, videos.rename(videos.parent / "moved"))
    assert moved == (4, 0, 4)
    assert sorted(before["clip_id"].to_pylist()) == sorted(after["clip_id"].to_pylist())


def test_rejected_file_is_in_quarantine_although_the_clips_are_equal(store: Store, videos: Path):
    assert quarantine(store, None)["rows"] == []
    (videos / "page.mp4").write_text("<html>403</html>")
    made, _, _ = again(store, videos)
    (row,) = quarantine(store, None)["rows"]
    assert (row["item_id"], row["reasons"], row["retryable"]) == ("page.mp4", ["NOT_VIDEO"], False)
    assert quarantine(store, row["snapshot"])["rows"] == [row]
    assert quarantine(store, made.run_id, "TOO_SHORT")["rows"] == []
    assert [s.status for s in made.stages] == ["SUCCEEDED", "CACHED"]


def test_file_added_to_shards_of_several_runs_only_its_shard(videos: Path, tmp_path: Path):
    store = open_store((tmp_path / "store").as_uri())
    for seed in range(12, 20):
        draw(address(videos, str(seed), per_shard=3, ends_shard=seed in (13, 16)), seed)
    planned = run(store, document(videos, per_shard=3)).stage("clips").shards.planned
    assert planned >= 3
    draw(address(videos, "15b", per_shard=3, ends_shard=False), 20)
    assert shards(run(store, document(videos, per_shard=3))) == (planned, planned - 1, 1)
    draw(address(videos, "15c", per_shard=3, ends_shard=True), 21)
    assert shards(run(store, document(videos, per_shard=3))) == (planned + 1, planned - 1, 2)
