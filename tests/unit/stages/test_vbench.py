"""The stage `vbench` with a stand-in of the package: values with provenance, or the reason."""

import itertools
import json
from statistics import fmean

import numpy as np
import pytest

from tests.support.vbench_runs import commit_samples, interpreter, sample_rows, set_fault, weights
from videoar.core.settings import settings
from videoar.evaluation import vbench_scores
from videoar.evaluation.metric_names import metric_of
from videoar.evaluation.vbench import temporal_flickering
from videoar.evaluation.vbench_constants import DIMENSIONS
from videoar.evaluation.vbench_prompts import video_name, video_names
from videoar.evaluation.vbench_samples import VBenchSamples
from videoar.media.decode import decode_clip
from videoar.media.transcode import encode_clips
from videoar.pipeline.context import StageContext
from videoar.stages.vbench import VBenchConfig, VBenchStage
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow

numbers = itertools.count()
TOTALS = ("total", "quality", "semantic")


@pytest.fixture
def store():
    return open_store(f"memory://vbench-{next(numbers)}")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of weights of the stand-in, which the settings name."""
    folder = weights(tmp_path, monkeypatch)
    monkeypatch.setenv("VIDEOAR_VBENCH_PYTHON", str(interpreter(tmp_path)))
    monkeypatch.setenv("VIDEOAR_VBENCH_CACHE", str(folder))
    settings.cache_clear()
    yield folder
    settings.cache_clear()


def run(store, rows=None, **config):
    samples = commit_samples(store, sample_rows(store) if rows is None else rows)
    stage = VBenchStage(VBenchConfig(**config))
    (output,) = stage.reduce({"samples": samples}, StageContext(store))
    return {row["metric"].removeprefix("vbench/"): row for row in output.rows.to_pylist()}


def name_of(row):
    return video_name(row["prompt"], row["index"])


def calls(cache):
    path = cache / "calls"
    return path.read_text().split() if path.exists() else []


def expected(dimension):
    names = video_names(dimension)
    return fmean((sum(name.encode()) + len(dimension)) % 100 / 100 for name in names)


def test_invariant_5_all_dimensions_give_official_totals_with_provenance(store, cache):
    rows = run(store)
    assert list(rows) == [*DIMENSIONS, "quality", "semantic", "total"]
    assert all(metric_of(row["metric"]) for row in rows.values())
    values = {name: rows[name]["value"] for name in DIMENSIONS}
    assert values == pytest.approx({name: expected(name) for name in DIMENSIONS}, rel=1e-5)
    totals = {name: rows[name]["value"] for name in TOTALS}
    assert totals == pytest.approx(vbench_scores(values), rel=1e-5)
    assert sorted(calls(cache)) == sorted(DIMENSIONS)  # one process each
    row = rows["aesthetic_quality"]
    lock = json.loads(row["lock_json"])
    assert (lock["vbench"], lock["device"], lock["scorer"]) == ("0.1.5", "cpu", "subprocess")
    assert set(lock["weights"]) == {
        "clip_model/ViT-L-14.pt",
        "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
    }
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert row["num_samples"] == len(video_names("aesthetic_quality"))
    result = json.loads(store.objects.get(json.loads(row["details_json"])["result_key"]))
    score, videos = result["aesthetic_quality"]
    assert score == pytest.approx(row["value"], rel=1e-5)
    assert {video["video_path"] for video in videos} == set(video_names("aesthetic_quality"))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash", "exited with status 1: RuntimeError: CUDA error: out of memory"),
        ("hang", "took more than 3 s"),
        ("bad json", "its result cannot be read: JSONDecodeError"),
        ("nan", "its result is not finite"),
        ("missing video", "its result lacks 1 videos"),
        ("other dimension", "its result cannot be read: KeyError: 'scene'"),
        ("no file", "its process wrote no result"),
        ("download", "Connection refused"),
    ],
)
def test_invariant_7_fault_of_one_dimension_is_its_reason(store, cache, fault, reason, monkeypatch):
    monkeypatch.setattr("videoar.stages.vbench.DIMENSIONS", ("scene", "color"))
    monkeypatch.setattr("videoar.stages.vbench._totals", lambda rows: ())
    set_fault(cache, scene=fault)
    needed = {*video_names("scene"), *video_names("color")}
    samples = [row for row in sample_rows(store) if name_of(row) in needed]
    rows = run(store, samples, timeout_s=3)
    assert (rows["scene"]["status"], rows["scene"]["value"]) == ("not_evaluated", None)
    assert reason in rows["scene"]["reason"]
    assert rows["color"]["value"] == pytest.approx(expected("color"), rel=1e-5)


def test_invariant_7_weight_file_missing_or_other_starts_no_process(store, cache):
    (cache / "amt_model/amt-s.pth").unlink()
    (cache / "clip_model/ViT-B-32.pt").write_bytes(b"clip_model/ViT-B-33.pt")  # the same size
    rows = run(store)
    assert "amt-s.pth: cannot be read: No such file" in rows["motion_smoothness"]["reason"]
    for dimension in ("background_consistency", "appearance_style"):
        assert "ViT-B-32.pt: has SHA-256" in rows[dimension]["reason"]
    absent = {"motion_smoothness", "background_consistency", "appearance_style"}
    assert set(calls(cache)) == set(DIMENSIONS) - absent
    # neither group is complete, so there is no total: never a sum of what is there
    for total in TOTALS:
        assert rows[total]["value"] is None
    assert rows["semantic"]["reason"] == "no value of appearance_style"


def test_invariant_7_missing_videos_are_named_for_the_dimensions_that_need_them(store, cache):
    lost, damaged = video_names("human_action")[3], video_names("color")[0]
    rows = [row for row in sample_rows(store) if name_of(row) != lost]
    for row in rows:
        if name_of(row) == damaged:
            row["video_sha256"] = "0" * 64
    scores = run(store, rows)
    assert scores["human_action"]["reason"] == f"1 of 500 videos are missing: {lost}"
    assert scores["color"]["reason"] == f"1 of 425 videos are missing: {damaged}"
    assert scores["quality"]["status"] == "ok"
    assert scores["total"]["reason"] == "no value of human_action, color"


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"num_frames": 40}, "clips of 5 s need VBench-Long"),
        ({"num_frames": 39}, ""),
    ],
)
def test_clips_from_5_s_on_are_refused(store, columns, reason):
    assert VBenchSamples(sample_rows(store, **columns)).problem.startswith(reason)
    assert bool(VBenchSamples(sample_rows(store, **columns)).problem) == bool(reason)


def test_samples_that_differ_or_repeat_a_name_are_not_evaluated(store, cache):
    rows = sample_rows(store)
    scores = run(store, [{**rows[0], "width_px": 32}, *rows[1:]])
    assert all("several forms: 17 frames" in scores[name]["reason"] for name in DIMENSIONS)
    assert "1 names have several samples" in VBenchSamples([*rows, rows[0]]).problem
    assert not calls(cache)


def test_rewritten_prompts_keep_the_original_name_and_have_another_lock(store):
    rows = sample_rows(store)
    longer = VBenchSamples({**row, "prompt": f"{row['prompt']}, in detail"} for row in rows)
    plain = VBenchSamples(rows)
    assert longer.missing() == plain.missing() == []
    assert (longer.lock()["rewritten"], plain.lock()["rewritten"]) == (True, False)


def test_without_interpreter_only_flickering_has_a_value(store, monkeypatch):
    monkeypatch.setenv("VIDEOAR_VBENCH_PYTHON", "")
    settings.cache_clear()
    frames_THWC = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    (video,) = encode_clips([frames_THWC], 8.0, 12)
    rows = run(store, sample_rows(store, video))
    row = rows.pop("temporal_flickering")
    assert row["value"] == pytest.approx(temporal_flickering(decode_clip(video)), rel=1e-5)
    assert json.loads(row["lock_json"])["scorer"] == "native"
    assert all(row["value"] is None for row in rows.values())
    assert "VIDEOAR_VBENCH_PYTHON: is not set" in rows["scene"]["reason"]
    settings.cache_clear()


def test_tools_change_with_interpreter_and_weights(cache):
    stage = VBenchStage(VBenchConfig())
    before = stage.tools()
    assert before["vbench"] == "0.1.5"
    (cache / "amt_model/amt-s.pth").write_bytes(b"other")
    changed = {name for name, value in stage.tools().items() if value != before[name]}
    assert changed == {"amt_model/amt-s.pth"}


def test_an_interpreter_without_the_package_is_the_reason(store, cache, monkeypatch):
    monkeypatch.setenv("VIDEOAR_VBENCH_PYTHON", "/nosuch/python")
    settings.cache_clear()
    assert "has no package vbench" in run(store)["scene"]["reason"]
