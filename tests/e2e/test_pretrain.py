"""The three phases of `pipelines/pretrain.yaml` with small sizes: images, two resolutions."""

import json

import pytest

from tests.support.small_pipeline import ROOT, sets, videoar

pytestmark = pytest.mark.slow

SMALL = {
    "inputs.videos": "rendered://shapes?num_videos=16&seed=0",
    "stages.clips_low.size_px": "[[32, 48], [32, 32]]",
    "stages.clips_low.num_frames": "5",
    "stages.clips_low.max_clips_per_source": "1",
    "stages.clips.size_px": "[[64, 96], [64, 64]]",
    "stages.clips.num_frames": "13",
    "stages.clips.max_clips_per_source": "1",
    "stages.good_low.policy": "permissive",
    "stages.good.policy": "permissive",
    "stages.tokenizer.preset": "tiny",
    "stages.tokenizer.tokenizer": "{scales: [[1, 1], [2, 2], [4, 4], [8, 8]]}",
    "stages.tokenizer.training": "{steps: 4, image_steps: 2, batch_clips: 2, excerpt_frames: 5}",
    "stages.tokenizer.min_psnr_db": "0",
    "stages.tokenizer.resources": "{}",
    "stages.tokens_low.min_psnr_db": "0",
    "stages.tokens_low.resources": "{}",
    "stages.tokens.min_psnr_db": "0",
    "stages.tokens.resources": "{}",
    "stages.model.preset": "tiny",
    "stages.model.resources": "{}",
    "stages.model.training.precision": "fp32",
    "stages.model.training.validation": "{points: 1}",
}
PHASES = ((5, 3), (9, 3), (13, 2))
"""Pixel frames and steps."""


def test_three_phases_run_from_raw_video(tmp_path):
    store = (tmp_path / "store").as_uri()
    small = [f"{key}={value}" for key, value in SMALL.items()]
    for number, (frames, steps) in enumerate(PHASES):
        own = {"num_frames": frames, "steps": steps, "batch_size": 4, "accumulate": 2}
        small += [f"stages.model.training.phases.{number}.{k}={v}" for k, v in own.items()]
    run = videoar("run", str(ROOT / "pipelines" / "pretrain.yaml"), *sets(base=small), store=store)
    assert run["status"] == "SUCCEEDED"
    (row,) = videoar("show", "model", store=store)["first_rows"]
    assert row["step"] == sum(steps for _, steps in PHASES)
    history = json.loads(row["history_json"])
    measured = [point for point in history if "val/loss" in point]
    assert [point["step"] for point in measured] == [3, 6, 8]
