"""Rows of `score`, from clips of the synthetic corpus."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.support.clip_rows import clip_row, clips_of, stored
from videoar.contracts.contract import load_contract
from videoar.core.errors import ContractError
from videoar.core.types import Provenance
from videoar.evaluation.metric_names import is_metric
from videoar.media.decode import decode_clip
from videoar.media.synthetic import draw, scenes
from videoar.model.tokenizer.config import TokenizerConfig
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.pipeline.context import StageContext
from videoar.stages.score.stage import ScoreConfig, ScoreStage
from videoar.storage.store import open_store
from videoar.training.model_store import publish_model

numbers = itertools.count()


@pytest.fixture
def store():
    torch.set_num_threads(1)
    return open_store(f"memory://score-{next(numbers)}")


def commit(store, dataset, contract, rows, **parents):
    target = store.dataset(dataset, contract)
    schema = load_contract(contract).arrow_schema
    table = pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema)
    provenance = Provenance(
        run_id="r",
        pipeline="p",
        stage=dataset,
        fingerprint=f"{dataset}{next(numbers)}",
        code_version="0",
        parents=parents,
    )
    return target.commit([target.write(table)], provenance, {})


def videos(store, num_frames, prompt=None, width_px=32):
    """Rows that samples and clips share: one video per scene, 32 px high at 8 fps."""
    chosen = scenes()[::8]
    drawn = [draw(scene, num_frames, max(32, width_px), 8.0)[:, :32] for scene in chosen]
    clips = stored(store, [frames[:, :, :width_px] for frames in drawn], crf=18)
    for i, (scene, video) in enumerate(zip(chosen, clips, strict=True)):
        yield i, prompt or scene.prompt, video


def samples(store, num_frames, prompt=None):
    fixed = {
        "model_digest": "m",
        "tokenizer_digest": "t",
        "sampler_json": "{}",
        "steps": 1,
        "index": 0,
    }
    rows = [
        {"sample_id": f"{i:032x}", "prompt": text, "seed": i, **fixed, **video}
        for i, text, video in videos(store, num_frames, prompt)
    ]
    return commit(store, "samples", "samples@1", rows)


def reference(store, num_frames, width_px=32):
    return clips_of(store, [
        clip_row(str(i), caption=text, split="val" if i % 2 else "train", **video)
        for i, text, video in videos(store, num_frames, width_px=width_px)
    ])  # fmt: skip


def score(store, given, **config):
    (output,) = ScoreStage(ScoreConfig(**config)).reduce(given, StageContext(store))
    table = load_contract("scores@1").conform(output.rows, "test")
    return {row["metric"]: row for row in table.to_pylist()}


@pytest.mark.slow
def test_score_every_metric_has_a_row_and_only_fvd_is_named_fvd(store):
    given = {"samples": samples(store, 9), "reference": reference(store, 9)}
    rows = score(store, given, num_clips=2)
    for name in ("colour_acc", "motion_acc", "valid_frac"):
        assert rows[f"rendered/{name}"]["value"] == 1
        assert rows[f"rendered/{name}"]["ci_low"] < 1
    distance, floor = rows["frechet_random_i3d"], rows["frechet_random_i3d/floor"]
    assert distance["num_samples"] == distance["num_reference"] == 2
    assert distance["ci_low"] <= distance["value"] <= distance["ci_high"]
    assert floor["value"] > 0
    assert json.loads(distance["lock_json"])["network"]
    assert 0 < rows["temporal_flickering"]["value"] < 1
    absent = {name: row["reason"] for name, row in rows.items() if row["status"] != "ok"}
    assert "VIDEOAR_I3D_WEIGHTS" in absent["fvd"]
    assert "imaging_quality" in absent["vbench/total"]
    assert absent["recon/psnr"] == absent["rendered_recon/colour_acc"] == "no tokenizer"
    assert all(name == "fvd" or "fvd" not in name for name in rows)
    assert all(row["value"] is None for row in rows.values() if row["status"] != "ok")
    assert all(map(is_metric, rows))  # else a promotion rule could not name them


def test_score_unavailable_metrics_have_a_reason(store):
    given = {"samples": samples(store, 5, "a cat"), "reference": reference(store, 5)}
    rows = score(store, given)
    assert "no prompt is one of" in rows["rendered/all_acc"]["reason"]
    assert "needs 9 frames" in rows["frechet_random_i3d"]["reason"]
    assert "needs 9 frames" in rows["fvd"]["reason"]
    empty = commit(store, "none", "samples@1", [])
    with pytest.raises(ContractError, match="empty"):
        score(store, {**given, "samples": empty})


@pytest.fixture
def tokenizer(store):
    shape = {"num_bits": 8, "scales": ((1, 1), (4, 4)), "patch_px": 4, "base_width": 8}
    levels = {"multipliers": (1, 1), "num_res_blocks": 1, "space_downs": (0,), "time_downs": (0,)}
    network = VideoTokenizer(TokenizerConfig(**shape, **levels, norm_groups=1))
    made = publish_model(
        network, store, weights=network.state_dict(), step=0, metrics={}, history=[]
    )
    return commit(store, "tokenizer", "models@1", made.to_pylist())


def test_score_reconstructions_have_the_size_of_their_clips(store, tokenizer):
    wide = {"samples": samples(store, 5), "reference": reference(store, 5, 56)}
    rows = score(store, {**wide, "tokenizer": tokenizer}, num_reconstructions=2, num_examples=1)
    steps = json.loads(rows["recon/psnr"]["details_json"])["by_scale"]
    assert [step["grid"] for step in steps] == ["1 x 1", "2 x 2", "3 x 3", "4 x 7"]
    assert decode_clip(store.objects.get(steps[0]["recon_key"])).shape == (5, 32, 56, 3)
    odd = {"samples": samples(store, 5), "reference": reference(store, 5, 52)}
    with pytest.raises(ContractError, match=r"5x32x52.*32x52 px are not a multiple of 8"):
        score(store, {**odd, "tokenizer": tokenizer})


def test_score_clip_longer_than_a_chunk_is_reconstructed_whole(store, tokenizer):
    (video,) = stored(store, [np.resize(draw(scenes()[0], 9, 32, 8.0), (67, 32, 32, 3))])
    long = clips_of(store, [clip_row("0", split="val", **video)])
    given = {"samples": samples(store, 5), "reference": long, "tokenizer": tokenizer}
    details = json.loads(score(store, given)["recon/psnr"]["details_json"])
    keys = [details["examples"][0]["real_key"], *(s["recon_key"] for s in details["by_scale"])]
    assert [len(decode_clip(store.objects.get(key))) for key in keys] == [67, 67, 67]


def test_score_with_tokenizer_has_reconstruction_scores_and_examples(store, tokenizer):
    given = {
        "samples": samples(store, 5),
        "reference": reference(store, 5),
        "tokenizer": tokenizer,
    }
    rows = score(store, given, num_reconstructions=3, num_examples=2)
    assert 5 < rows["recon/psnr"]["value"] < 30
    assert rows["recon/psnr"]["num_samples"] == 3
    assert -1 < rows["recon/ssim"]["value"] < 1
    assert rows["rendered_recon/valid_frac"]["value"] == 0  # an untrained tokenizer shows nothing
    examples = json.loads(rows["recon/psnr"]["details_json"])["examples"]
    assert len(examples) == 2
    for example in examples:
        shapes = {
            decode_clip(store.objects.get(example[k])).shape for k in ("real_key", "recon_key")
        }
        assert shapes == {(5, 32, 32, 3)}
    steps = json.loads(rows["recon/psnr"]["details_json"])["by_scale"]
    assert [step["grid"] for step in steps] == ["1 x 1", "4 x 4"]
    assert {step["clip_id"] for step in steps} == {examples[0]["clip_id"]}
    assert steps[1]["recon_key"] == examples[0]["recon_key"]  # all scales: stored once
    assert decode_clip(store.objects.get(steps[0]["recon_key"])).shape == (5, 32, 32, 3)
