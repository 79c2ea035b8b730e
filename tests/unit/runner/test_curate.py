"""Curation as a user runs it: one decode, then any number of policies; gates that leave a page."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.clip_rows import clip_row, clips_of
from tests.support.small_videos import document, draw
from tests.support.small_videos import run as run_small
from tests.support.stage_chain import describe
from videoar.core.errors import GateError
from videoar.engine.inline import InlineEngine
from videoar.pipeline.spec import load_pipeline, parse_pipeline
from videoar.pipeline.work.reduce import find_check
from videoar.records.run_record import load_run
from videoar.report.collect import collect
from videoar.report.data import Thumbnail
from videoar.report.page import render
from videoar.runner.execute import Execution
from videoar.storage.layout import check_key
from videoar.storage.store import open_store

PIPELINE = Path(__file__).parents[3] / "pipelines" / "curate.yaml"
pytestmark = pytest.mark.slow


def curate(store, *sets):
    videos = "inputs.videos=rendered://shapes?num_videos=16&seed=0"
    spec = load_pipeline(PIPELINE, (videos, "stages.clips.size_px=32", *sets))
    return Execution(spec, store, InlineEngine()).run()


def test_changed_policy_decodes_no_frame(tmp_path, monkeypatch):
    store = open_store((tmp_path / "store").as_uri())
    first = curate(store)
    assert first.status == "SUCCEEDED"
    policy = tmp_path / "my.yaml"
    policy.write_text("max_source_fps: 25\nmin_motion: p10\n")

    def refuse(*_, **__):
        raise AssertionError("a frame was asked for")

    monkeypatch.setattr(av, "open", refuse)
    second = curate(store, f"stages.good.policy={policy}")
    states = {stage.name: stage.status for stage in second.stages}
    assert states == {"clips": "CACHED", "profile": "CACHED", "good": "SUCCEEDED"}
    assert "config.policy.min_motion" in second.stage("good").reason
    assert second.outputs["good"] != first.outputs["good"]


def test_report_shows_bounds_histograms_and_rejected_clips(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    run = curate(store, "stages.good.override={min_short_side_px: 80, max_source_fps: 26}")
    data = collect(store, run)
    drawn = {found.score: [text for _, text in found.bounds] for found in data.histograms}
    assert drawn["src_rate_fps"] == ["max 26", "min 12"]
    assert drawn["motion_per_s"][0].startswith("min ")
    kept, *rejected = data.contact_sheets
    assert (kept.title, kept.count) == ("kept", run.stage("good").rows.out)
    assert len(kept.thumbnails) == min(8, kept.count)
    thumbnails = [frame for sheet in data.contact_sheets for frame in sheet.thumbnails]
    assert all(frame.jpeg.startswith(b"\xff\xd8") for frame in thumbnails)
    assert dict(data.funnel[-1].reasons) == {sheet.title: sheet.count for sheet in rejected}
    (check,) = data.checks
    assert (check.stage, check.success) == ("good", True)

    clip = store.snapshot(run.outputs["good"]).table().slice(0, 1).to_pylist()[0]
    copy = {**clip, "clip_id": "d" * 32, "source_id": "e" * 64, "src_width_px": 1}
    again = run_filter(store, clips_of(store, [clip], [copy]), override={"min_short_side_px": 0})
    (pair,) = collect(store, again).duplicates
    assert (pair.reason, pair.clip_id) == ("DUPLICATE_NEAR", "d" * 32)
    assert (pair.kept_id, pair.thumbnail) == (clip["clip_id"], pair.kept_thumbnail)

    store.objects.delete(clip["video_key"])
    left = collect(store, again)
    missing = Thumbnail(error="UNAVAILABLE: no such object")
    assert left.duplicates[0].thumbnail == left.contact_sheets[0].thumbnails[0] == missing
    assert "UNAVAILABLE: no such object</span>" in render(left)


def test_report_of_referenced_clips_reads_their_sources(tmp_path):
    (tmp_path / "videos").mkdir()
    for seed, name in enumerate("abc"):
        draw(tmp_path / "videos" / f"{name}.mp4", seed)
    shown = {}
    for keep in ("clips", "references"):
        store = open_store((tmp_path / keep).as_uri())
        doc = document(tmp_path / "videos")
        doc["stages"]["clips"] |= {"keep": keep, "size_px": 64}
        made = run_small(store, doc)
        shown[keep] = collect(store, made).contact_sheets[0].thumbnails
    assert len(shown["references"]) == 3
    middles = {}
    for keep, pictures in shown.items():
        for i, picture in enumerate(pictures):
            with av.open(io.BytesIO(picture.jpeg)) as jpeg:
                middles[keep, i] = next(jpeg.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    for i in range(3):
        apart = [np.abs(middles["references", i] - middles["clips", j]).mean() for j in range(3)]
        assert sorted(apart)[0] == apart[i] < 8 < sorted(apart)[1]
    draw(tmp_path / "videos" / "a.mp4", 7)
    (tmp_path / "videos" / "b.mp4").unlink()
    data = collect(store, made)
    errors = {frame.error.partition(" ")[2] for frame in data.contact_sheets[0].thumbnails}
    assert "" in errors
    assert "No such file or directory" in errors
    assert any("ingest it again" in error for error in errors)
    assert "IO_PERMANENT: No such file or directory</span>" in render(data)


def test_thumbnails_beyond_the_time_budget_are_not_read(tmp_path):
    (tmp_path / "videos").mkdir()
    draw(tmp_path / "videos" / "a.mp4", 0)
    store = open_store((tmp_path / "store").as_uri())
    doc = document(tmp_path / "videos")
    doc["stages"]["clips"] |= {"keep": "references"}
    made = run_small(store, doc)
    (frame,) = collect(store, made, thumbnail_budget_s=-1.0).contact_sheets[0].thumbnails
    assert (frame.jpeg, frame.error) == (b"", "not read: time limit for thumbnails exceeded")


def run_filter(store, clips, profile=None, **options):
    given = {"clips": clips} | ({"profile": profile} if profile else {})
    ports = {port: port for port in given}
    stage = {"stage": "filter", "from": ports, "policy": "permissive", **options}
    inputs = {port: f"snapshot://{snapshot.id}" for port, snapshot in given.items()}
    spec = parse_pipeline({"pipeline": "p", "inputs": inputs, "stages": {"good": stage}}, "t")
    execution = Execution(spec, store, InlineEngine())
    try:
        return execution.run()
    except GateError as error:
        return load_run(store, execution.run_id), error


def test_profile_given_as_a_snapshot_input_does_not_change_with_the_clips(tmp_path):
    store = open_store(tmp_path.as_uri())
    old = [clip_row(f"old{i}", motion_mean=1.0 + i) for i in range(20)]
    frozen = describe(store, clips_of(store, old))
    grown = clips_of(store, old, [clip_row(f"calm{i}", motion_mean=0.1) for i in range(20)])
    run = run_filter(store, grown, frozen, policy={"min_motion": "p10"})
    metrics = store.snapshot(run.outputs["good"]).commit.metrics
    assert metrics["bound/min_motion"] == pytest.approx(2.9)  # of old alone
    assert metrics["reject/LOW_MOTION"] == 2 + 20
    (histogram,) = collect(store, run).histograms
    assert (sum(histogram.counts), histogram.score) == (40, "motion_mean")  # of all that came in


def test_check_is_stored_for_success_and_failure(tmp_path):
    store = open_store(tmp_path.as_uri())
    clips = clips_of(store, [clip_row("a"), clip_row("still", motion_per_s=0.0)])
    passed = run_filter(store, clips).stage("good")
    found = find_check(store, "good", passed.fingerprint)
    assert found["success"]

    run, error = run_filter(store, clips, min_keep_fraction=1)
    failed = run.stage("good")
    assert (run.status, failed.status, failed.snapshot) == ("GATE_BLOCKED", "GATE_BLOCKED", None)
    found = find_check(store, "good", failed.fingerprint)
    assert not found["success"]
    key = check_key("good", failed.fingerprint)
    assert str(error).endswith(f"{store.url}/{key})")
    assert [e["name"] for e in found["expectations"] if not e["passed"]] == [
        "expect_table_row_count_to_be_between"
    ]
    assert not list(tmp_path.rglob("*.html"))
    store.objects.purge(key)  # as an older version wrote it, with the page of Great Expectations
    store.ledger.create(key, {**found, "page": "checks/good/0.html"})
    assert run_filter(store, clips, min_keep_fraction=1)[0].status == "GATE_BLOCKED"
    assert [check.success for check in collect(store, run).checks] == [False]
    assert [s.id for s in store.snapshots() if s.dataset == "good"] == [passed.snapshot]
