"""The filter on hand-made rows: verdicts, duplicates over files, the funnel and the gate."""

import pathlib

import pyarrow as pa
import pytest
from pydantic import ValidationError

from tests.stage_chain import commit, sift
from tests.unit.media.test_policy import GOOD
from videoar.contracts.contract import load_contract
from videoar.core.errors import GateError
from videoar.core.ids import sha256_hex
from videoar.pipeline.stage import Output
from videoar.stages.filter import FilterConfig, FilterStage
from videoar.storage.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path.as_uri())


def row(name, **change):
    """A complete row of clips@1 that the default policy keeps."""
    source_id = sha256_hex(name.encode())
    filled = {
        **GOOD,
        "clip_id": source_id[:32],
        "source_id": source_id,
        "source_uri": f"file:///{name}",
        "source_name": name,
        "container": "mov",
        "codec": "h264",
        "pix_fmt": "yuv420p",
        "is_vfr": False,
        "rotation_deg": 0,
        "span_end_us": 2_000_000,
        "frame_index_start": 0,
        "width_px": 64,
        "height_px": 64,
        "cut_in_score": 0.0,
        "cut_in": "start",
        "frame_times_us": [0],
        "start_pts": 0,
        "motion_max": 5.0,
        "phash": [int(source_id[i : i + 15], 16) for i in (0, 15, 30)],
        "split": "train",
        "video_key": "objects/x.mp4",
        "video_sha256": source_id,
        "video_size_bytes": 1,
    }
    return {**filled, **change}


def clips_of(store, *files):
    schema = load_contract("clips@1").arrow_schema
    tables = [pa.Table.from_pylist(list(rows), schema) for rows in files]
    return commit(store, "clips", "clips@1", [Output(table) for table in tables])


def test_files_stay_files_and_the_sum_holds(store):
    best = row("best")
    worse = row("worse", phash=best["phash"], src_width_px=200)
    clips = clips_of(store, [best, row("still", motion_mean=0.0)], [worse, row("other")])
    good, metrics = sift(store, clips)
    kept = set(good.table(["source_name"])["source_name"].to_pylist())
    assert kept == {"best", "other"}
    assert len(good.files) == 2
    refused = {r["uri"]: r["reasons"] for r in good.rejects().table().to_pylist()}
    assert refused == {"file:///still": ["LOW_MOTION"], "file:///worse": ["DUPLICATE_NEAR"]}
    assert (metrics["clips_in"], metrics["clips_kept"]) == (4, 2)
    assert (metrics["reject/LOW_MOTION"], metrics["reject/DUPLICATE_NEAR"]) == (1, 1)
    assert metrics["profile/motion_mean_p50"] == pytest.approx(3.0)


def test_a_copy_in_another_file_is_an_exact_duplicate(store):
    first = row("a")
    copy = {**first, "source_uri": "file:///b", "source_name": "b"}
    good, _ = sift(store, clips_of(store, [first], [copy]), gate=False)
    assert good.table(["source_name"])["source_name"].to_pylist() == ["a"]
    assert good.rejects().table()["reasons"].to_pylist() == [["DUPLICATE_EXACT"]]
    both, _ = sift(store, clips_of(store, [first], [copy]), gate=False, dedup=False)
    assert both.rows == 2


@pytest.mark.slow
def test_gate_names_what_failed_and_keeps_the_page(store):
    stage = FilterStage(FilterConfig(min_keep_fraction=0.5))
    clips = clips_of(store, [row(str(i)) for i in range(4)])
    table = clips.table()
    stage.check({"clips": clips}, table)
    twice = pa.concat_tables([table.slice(0, 2), table.slice(0, 1)])
    with pytest.raises(GateError, match="unique on clip_id") as error:
        stage.check({"clips": clips}, twice)
    page = error.value.hint.removeprefix("details in ")
    with pathlib.Path(page).open(encoding="utf-8") as file:
        assert "clip_id" in file.read()
    with pytest.raises(GateError, match="row_count"):
        stage.check({"clips": clips}, table.slice(0, 1))


def test_nothing_in_is_refused(store):
    empty = commit(store, "clips", "clips@1", [])
    with pytest.raises(GateError, match="no clips came in"):
        sift(store, empty)


def test_options_are_checked():
    assert FilterConfig(override={"min_motion": None}).bounds.min_motion is None
    with pytest.raises(ValidationError, match="no policy strict"):
        FilterConfig(policy="strict")
    with pytest.raises(ValidationError, match="min_motoin"):
        FilterConfig(override={"min_motoin": 1.0})
