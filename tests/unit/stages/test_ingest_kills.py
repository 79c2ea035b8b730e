"""Ingest by 1, 2 and 4 workers on one store, killed at every step: always the same snapshot."""

import random
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tests.support.hostile import video
from tests.support.ingest_worker import make_task, run_workers
from tests.support.stage_chain import commit, provenance, sources_snapshot
from videoar.core.ids import sha256_hex
from videoar.media.sources import list_sources
from videoar.pipeline.context import StageContext
from videoar.stages.ingest.config import IngestConfig
from videoar.stages.ingest.stage import IngestStage
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow
OPTIONS = {"rate_fps": None, "num_frames": 9, "size_px": 32, "sources_per_shard": 1}
PLACES = {1: [0.0], 2: [0.0, 0.0], 4: [0.0, 0.25, 0.5, 0.75]}  # two race for the same shards
SHARD_STEPS = [  # those that leave different things behind
    ["put.before_publish"],  # of a clip
    ["clips-stored"],
    ["write.after_put"],
    ["shard-written", "put.before_publish"],  # of the shard's record
]
COMMIT_STEPS = [
    ["before-commit"],
    ["commit.before_log"],  # of the rejects
    ["commit.after_log"],
    ["commit.between_records"],
    ["commit.after_records"],
    ["rejects-committed"],
    ["rejects-committed", "commit.before_log"],  # of the clips
    ["rejects-committed", "commit.after_log"],
    ["committed"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(2):
        video(folder / f"good{i}.mp4", picture=f"testsrc2=s=64x48:r={12 + i}")
    video(folder / "short.mp4", num_frames=5)
    (folder / "empty.mp4").touch()
    (folder / "list.mp4").write_text("#EXTM3U\n")
    shutil.copy(folder / "good0.mp4", folder / "copy.mp4")
    return folder


def new_store(folder, root):
    """Commit the sources to a new store; return its ingest task."""
    store = open_store(root.as_uri())
    return make_task(store, sources_snapshot(store, str(folder)), **OPTIONS)


@pytest.fixture(scope="module")
def mapped(folder, tmp_path_factory):
    """A store in which all shards are done but not committed."""
    task = new_store(folder, tmp_path_factory.mktemp("mapped"))
    assert run_workers(task, PLACES[1], "before-commit") == [-9]
    return task


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """The digests that a worker commits when it is not killed."""
    task = new_store(folder, tmp_path_factory.mktemp("undisturbed"))
    assert run_workers(task, PLACES[1]) == [0]
    return committed(task.open_store())


def committed(store):
    """Return the digests of clips and rejects, after reading every object they refer to."""
    result = {snapshot.dataset: snapshot for snapshot in store.snapshots()}
    assert set(result) == {"videos", "clips", "clips.rejects"}
    assert len(list(store.snapshots())) == 3
    clips = result["clips"]
    rows = clips.table(verify=True).to_pylist()
    for row in rows:
        assert sha256_hex(store.objects.get(row["video_key"])) == row["video_sha256"]
    assert clips.rejects().digest == result["clips.rejects"].digest
    assert len({row["source_uri"] for row in rows}) + result["clips.rejects"].rows == 6
    return clips.digest, clips.rejects().digest


def kill_and_rerun(task, steps, workers, expected):
    for step in steps:
        codes = run_workers(task, PLACES[workers], step)
        assert set(codes[1::2]) <= {0}
        assert set(codes[::2]) <= ({-9} if workers == 1 else {-9, 0})
    assert run_workers(task, PLACES[1]) == [0]
    assert committed(task.open_store()) == expected


@pytest.mark.parametrize("workers", PLACES)
@pytest.mark.parametrize("steps", SHARD_STEPS, ids="+".join)
def test_kill_in_a_shard_gives_the_same_snapshot(folder, undisturbed, tmp_path, steps, workers):
    kill_and_rerun(new_store(folder, tmp_path / "store"), steps, workers, undisturbed)


@pytest.mark.parametrize("workers", PLACES)
@pytest.mark.parametrize("steps", COMMIT_STEPS, ids="+".join)
def test_kill_in_the_commit_gives_the_same_snapshot(mapped, undisturbed, tmp_path, steps, workers):
    shutil.copytree(mapped.open_store().objects.root, tmp_path / "store")
    task = replace(mapped, store_url=(tmp_path / "store").as_uri())
    kill_and_rerun(task, steps, workers, undisturbed)


@pytest.mark.parametrize("seed", range(2))
def test_any_order_without_an_engine_gives_the_same_bytes(folder, undisturbed, tmp_path, seed):
    draw = random.Random(seed)
    store = open_store(tmp_path.as_uri())
    rows = pa.concat_tables(list_sources(str(folder)))
    rows = rows.take(np.random.default_rng(seed).permutation(len(rows)))
    dataset = store.dataset("videos", "sources@1")
    sources = dataset.commit([dataset.write(rows)], provenance("videos"), {})
    stage = IngestStage(IngestConfig(**OPTIONS))
    shards = draw.sample(stage.shards({"sources": sources}), 6)
    mapper = stage.open({}, StageContext(store))
    outputs = [mapper(pa.Table.from_pylist([dict(r) for r in s.rows])) for s in shards]
    clips = commit(store, "clips", "clips@1", outputs)
    assert (clips.digest, clips.rejects().digest) == undisturbed
