"""`quarantine retry` reads rejected sources again; `quarantine accept` keeps rejected clips."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.hostile import video
from tests.support.small_pipeline import videoar
from tests.support.toy_runs import toy_run, write_videos
from videoar import api
from videoar.core.errors import ConfigError
from videoar.storage.store import open_store


def test_retried_sources_alone_are_read_again_by_the_next_run(tmp_path: Path):
    store = open_store((tmp_path / "store").as_uri())
    videos = write_videos(tmp_path / "videos", "a.mp4", "bad.mp4", "bad2.mp4")
    first = toy_run(store, videos)
    assert toy_run(store, videos).stage("big").status == "CACHED"
    rows = api.quarantine_retry(store, "last", "BAD", "the drive was away")["rows"]
    assert [row["item_id"] for row in rows] == ["bad.mp4", "bad2.mp4"]
    again = toy_run(store, videos)
    shards = again.stage("big").shards
    assert (shards.planned, shards.cached) == (3, 1)
    assert again.outputs["big"] == first.outputs["big"]  # the toy rejects by name
    assert toy_run(store, videos).stage("big").status == "CACHED"
    api.quarantine_retry(store)
    assert toy_run(store, videos).stage("big").shards.cached == 1


@pytest.mark.slow
def test_accepted_clip_is_kept_until_its_source_is_taken_down(tmp_path: Path):
    (folder := tmp_path / "videos").mkdir()
    video(folder / "good.mp4")
    video(folder / "black.mp4", picture="color=c=black:s=64x48:r=12")
    clips = {"stage": "ingest", "rate_fps": None, "num_frames": 9, "size_px": 32}
    stages = {
        "clips": {**clips, "max_clips_per_source": 1, "from": {"sources": "videos"}},
        "good": {
            "stage": "filter",
            "from": {"clips": "clips", "accepted": "accepted"},
            "policy": {"max_black_frac": 0.5},
        },
    }
    inputs = {"videos": str(folder), "accepted": "ref://accepted?optional=true"}
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"pipeline": "p", "inputs": inputs, "stages": stages}))
    store = (tmp_path / "store").as_uri()

    def kept():
        report = videoar("run", str(path), store=store)
        table = open_store(store).snapshot(report["outputs"]["good"]).table()
        return set(table["source_name"].to_pylist())

    assert kept() == {"good.mp4"}
    (row,) = videoar("quarantine", "ls", store=store)["rows"]
    assert 0 == row["span_start_us"] < row["span_end_us"]
    accept = ["quarantine", "accept", row["item_id"], "--why", "black, as meant"]
    (found,) = videoar(*accept, store=store)["rows"]
    assert (found["item_id"], found["reasons"]) == (row["item_id"], ["BLACK"])
    assert found["detail"].endswith(": black, as meant")
    assert found["detail"].startswith("accepted by ")
    assert kept() == {"good.mp4", "black.mp4"}
    (head,) = videoar("refs", "accepted", store=store)["refs"]
    assert head["evidence"] == {"accepted": [row["item_id"]], "reason": "black, as meant"}
    videoar("forget", "--source", found["source_id"], store=store)
    assert list(open_store(store).snapshot("accepted").available_rows(["item_id"])) == []
    assert kept() == {"good.mp4"}


def test_only_rejected_clips_can_be_accepted_and_only_rejected_sources_retried(tmp_path: Path):
    store = open_store((tmp_path / "store").as_uri())
    run = toy_run(store, write_videos(tmp_path / "videos", "a.mp4", "bad.mp4"))
    with pytest.raises(ConfigError, match=r"bad\.mp4: is no rejected clip"):
        api.quarantine_accept(store, ["bad.mp4"], "it is a source")
    shutil.rmtree(tmp_path / "videos")
    toy_run(store, write_videos(tmp_path / "videos", "a.mp4"))
    with pytest.raises(ConfigError, match="last: no rejected source"):
        api.quarantine_retry(store)
    assert api.quarantine_retry(store, run.run_id)["rows"]
