"""Rows of `score`, from the vectors of samples and of an evaluation set."""

import itertools
import json
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.support.clip_rows import clip_row, clips_of, stored
from videoar.contracts.contract import load_contract
from videoar.core.errors import ConfigError, ContractError
from videoar.core.types import Provenance
from videoar.evaluation.evalset import clip_rows, prompt_rows
from videoar.evaluation.metric_names import metric_of
from videoar.evaluation.protocols import PROTOCOLS
from videoar.evaluation.scorecard import protocol_of, score_row
from videoar.media.decode import decode_clip
from videoar.media.synthetic import draw, scenes
from videoar.model.pretrained.lite0 import WEIGHTS_SHA256
from videoar.model.tokenizer.config import TokenizerConfig
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.pipeline.context import StageContext
from videoar.stages.evalset import EvalsetConfig, EvalsetStage
from videoar.stages.features.stage import FeaturesConfig, FeaturesStage
from videoar.stages.score.stage import ScoreConfig, ScoreStage, score_inputs
from videoar.storage.store import open_store
from videoar.training.model_store import publish_model

LIGHT = ("pixels", "synthetic")
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


def samples(store, num_frames, prompt=None, **changes):
    fixed = {
        "model_digest": "m",
        "tokenizer_digest": "t",
        "sampler_json": "{}",
        "steps": 1,
        "index": 0,
    }
    rows = [
        {"sample_id": f"{i:032x}", "prompt": text, "seed": i, **fixed, **video, **changes}
        for i, text, video in videos(store, num_frames, prompt)
    ]
    return commit(store, "samples", "samples@1", rows)


def evalset(store, num_frames, width_px=32, prompts=(), **options):
    rows = [
        clip_row(str(i), caption=text, split="val" if i % 2 else "train", **video)
        for i, text, video in videos(store, num_frames, width_px=width_px)
    ]
    given = {"clips": clips_of(store, rows)}
    if prompts:
        given["prompts"] = commit(store, "prompts", "prompts@1", prompts)
    else:
        options["num_prompts"] = 0
    (output,) = EvalsetStage(EvalsetConfig(**options)).reduce(given, StageContext(store))
    return commit(store, "evalset", "evalsets@1", output.rows.to_pylist())


def features(store, rows, networks):
    mapper = FeaturesStage(FeaturesConfig(networks=networks)).open({}, StageContext(store))
    found = mapper(pa.Table.from_pylist(rows)).rows.to_pylist()
    return commit(store, "features", "features@1", found)


def inputs(store, made, chosen, networks=LIGHT):
    return {
        "samples": made,
        "sample_features": features(store, made.table().to_pylist(), networks),
        "evalset": chosen,
        "reference_features": features(store, clip_rows(chosen), networks),
    }


def score(store, given, **config):
    (output,) = ScoreStage(ScoreConfig(**config)).reduce(given, StageContext(store))
    table = load_contract("scores@1").conform(output.rows, "test")
    return {row["metric"]: row for row in table.to_pylist()}


ALL = ("lite0", "lite0:windows", "lite0:consistency", "pixels", "synthetic")


@pytest.mark.slow
def test_score_every_metric_of_the_vectors_has_a_row(store):
    given = inputs(store, samples(store, 9), evalset(store, 9, num_reference=4), ALL)
    rows = score(store, given)
    for name in ("colour_acc", "motion_acc", "valid_frac"):
        assert rows[f"rendered/{name}"]["value"] == 1
        assert rows[f"rendered/{name}"]["ci_low"] < 1
    for metric in ("frechet_lite0", "frechet_lite0_change", "kvd_lite0"):
        distance, floor = rows[metric], rows[f"{metric}/floor"]
        assert distance["num_samples"] == distance["num_reference"] == 4
        assert distance["ci_low"] <= distance["value"] <= distance["ci_high"]
        assert floor["value"] > 0 or metric == "kvd_lite0"
        assert distance["lock_digest"] != floor["lock_digest"]
    lock = json.loads(rows["frechet_lite0"]["lock_json"])
    assert lock["network_digest"] == WEIGHTS_SHA256
    assert (lock["preset"], lock["num_clips"]) == ("mean4", 4)
    assert (lock["protocol"], lock["covariance"]) == ("default", "1/(N-1)")
    assert len(json.loads(rows["frechet_lite0"]["details_json"])["windows"]) == 4
    sharpness = json.loads(rows["proxy/laplacian_var"]["details_json"])["windows"]
    assert {side: len(values) for side, values in sharpness.items()} == {
        "samples": 4, "reference": 4}  # fmt: skip
    assert 0 < rows["temporal_flickering"]["value"] < 1
    assert rows["proxy/laplacian_var"]["higher_is_better"]
    assert not rows["proxy/linear_interp_residual"]["higher_is_better"]
    assert 0 < rows["proxy/lite0_consistency"]["value"] <= 1
    absent = {name: row["reason"] for name, row in rows.items() if row["status"] != "ok"}
    assert absent.keys() == {"fvd", "vbench/total", "vbench/quality", "vbench/semantic"}
    assert "VIDEOAR_I3D_WEIGHTS" in absent["fvd"]
    assert all(name == "fvd" or "fvd" not in name for name in rows)
    assert all(row["value"] is None for row in rows.values() if row["status"] != "ok")
    assert all(map(metric_of, rows))  # else a promotion rule could not name them


def test_score_requested_metrics_without_vectors_have_a_reason(store):
    given = inputs(store, samples(store, 5, "a cat"), evalset(store, 5))
    rows = score(store, given, metrics=["rendered", "frechet_lite0", "recon", "memorisation"])
    assert {row["status"] for row in rows.values()} == {"not_evaluated"}
    assert "no prompt is one of" in rows["rendered/all_acc"]["reason"]
    assert "add lite0:mean4 to the networks" in rows["frechet_lite0"]["reason"]
    assert rows["recon/psnr"]["reason"] == rows["rendered_recon/colour_acc"]["reason"]
    assert rows["recon/psnr"]["reason"] == "no tokenizer"
    assert "connect port train_features" in rows["memorisation"]["reason"]
    with pytest.raises(ValueError, match=r"unknown metric.*did you mean rendered"):
        ScoreConfig(metrics=["renderd"])


def test_score_sample_without_a_vector_is_missing_and_never_left_out(store):
    given = inputs(store, samples(store, 5), evalset(store, 5))
    rows = given["sample_features"].table().to_pylist()
    lost = rows[0]["clip_id"]
    kept = [row for row in rows if row["clip_id"] != lost]
    given["sample_features"] = commit(store, "features", "features@1", kept)
    found = score(store, given, metrics=["temporal_flickering", "rendered"])
    assert {row["status"] for row in found.values()} == {"not_evaluated"}
    assert all(lost in row["reason"] for row in found.values())


def vector_inputs(store, chosen, made, vectors, spaces=(("lite0", "mean4"),)):
    """Return inputs with given vectors in place of those of networks: {id: vector}."""

    def rows(ids):
        return [
            {"clip_id": id_, "network": network, "network_digest": "d", "preset": preset,
             "num_frames": 9, "vector": vectors[id_]}
            for id_ in ids for network, preset in spaces
        ]  # fmt: skip

    ids = made.table(["sample_id"])["sample_id"].to_pylist()
    real = [row["clip_id"] for row in clip_rows(chosen)]
    return {
        "samples": made,
        "sample_features": commit(store, "features", "features@1", rows(ids)),
        "evalset": chosen,
        "reference_features": commit(store, "features", "features@1", rows(real)),
    }


def toy(store, num=32, protocol="default", num_reference=16, **changes):
    """Return inputs of clips that are never decoded; samples are shifted by 1 in 6 features."""
    form = {"num_frames": 9, "rate_fps": 8.0, "width_px": 8, "height_px": 8}
    clips = clips_of(
        store, [clip_row(str(i), caption="c", split="val", **form) for i in range(2 * num)]
    )
    options = {"num_reference": num_reference, "num_prompts": 0, "protocol": protocol}
    (output,) = EvalsetStage(EvalsetConfig(**options)).reduce({"clips": clips}, StageContext(store))
    chosen = commit(store, "evalset", "evalsets@1", output.rows.to_pylist())
    fixed = {"model_digest": "m", "tokenizer_digest": "t", "sampler_json": "{}", "steps": 1,
             "index": 0, "video_key": "k", "video_sha256": "0" * 64, "video_size_bytes": 1,
             **form}  # fmt: skip
    rows = [
        {"sample_id": f"{i:032x}", "prompt": f"p{i}", "seed": i, **fixed, **changes}
        for i in range(num)
    ]
    made = commit(store, "samples", "samples@1", rows)
    draw_from = np.random.default_rng(0)
    vectors = {row["sample_id"]: draw_from.normal(1, 1, 6) for row in rows}
    vectors |= {row["clip_id"]: draw_from.normal(0, 1, 6) for row in clip_rows(chosen)}
    spaces = (("lite0", "mean4"), ("i3d", "stylegan-v"), ("domain", "penultimate"))
    return vector_inputs(store, chosen, made, vectors, spaces)


def test_distance_has_limit_and_curve_over_n_and_the_domain_its_digest(store):
    rows = score(store, toy(store), metrics=["frechet_lite0", "frechet_domain"])
    value, limit = rows["frechet_lite0"], rows["frechet_lite0/inf"]
    assert 3 < limit["value"] < value["value"] < 12  # 6 in truth; the bias is positive
    assert limit["ci_low"] < limit["value"] < limit["ci_high"]
    by_count = json.loads(value["details_json"])["by_num_clips"]
    assert [n for n, _ in by_count] == [4, 5, 7, 9, 10, 12, 14, 16]
    assert rows["frechet_lite0/floor"]["value"] < value["value"] / 2
    assert {f"frechet_domain{suffix}@d" for suffix in ("", "/inf", "/floor")} < rows.keys()
    assert all(map(metric_of, rows))


def test_distances_follow_the_protocol_of_the_set(store):
    given = toy(store, protocol="fvd2048_16f")
    assert "needs 2048 clips on each side" in score(store, given, metrics=["fvd"])["fvd"]["reason"]
    with patch.dict(PROTOCOLS, {"small": replace(PROTOCOLS["fvd2048_16f"], num_clips=16)}):
        row = score(store, toy(store, protocol="small"), metrics=["fvd"])["fvd"]
    lock = json.loads(row["lock_json"])
    assert (lock["preset"], lock["covariance"], lock["protocol"]) == ("stylegan-v", "1/N", "small")
    assert protocol_of(row) == "stylegan-v, N = 16"
    with pytest.raises(ConfigError, match=r"protocol smal: unknown .known: default, fvd2048"):
        score(store, toy(store, protocol="smal"))


def test_samples_that_cannot_be_compared_with_the_set_are_named(store):
    few = score(store, toy(store, num=8, num_reference=12), metrics=["frechet_lite0"])
    assert "8 samples, 12 reference clips" in few["frechet_lite0"]["reason"]
    other = score(store, toy(store, rate_fps=12.0), metrics=["frechet_lite0"])
    assert "9 frames of 8 x 8 px at 12 fps, 16 reference" in other["frechet_lite0"]["reason"]
    large = score(store, toy(store, width_px=16), metrics=["frechet_lite0"])
    assert "9 frames of 16 x 8 px at 8 fps, 16 reference" in large["frechet_lite0"]["reason"]
    alone = toy(store)
    del alone["reference_features"]
    rows = score(store, alone, metrics=["frechet_lite0"])
    assert "connect port reference_features" in rows["frechet_lite0"]["reason"]
    given = toy(store)
    rows = given["samples"].table().to_pylist()
    for change, message in (
        ({"num_frames": 5}, r"several forms: 5 frames of 8 x 8 px at 8 fps, 9 frames"),
        ({"width_px": 16}, r"several forms: 9 frames of 8 x 8 px at 8 fps, 9 frames of 16 x 8"),
        ({"sampler_json": '{"a":1}'}, "several settings of the sampler"),
    ):
        mixed = commit(store, "samples", "samples@1", [{**rows[0], **change}, *rows[1:]])
        with pytest.raises(ContractError, match=message):
            score(store, {**given, "samples": mixed})
    empty = commit(store, "none", "samples@1", [])
    with pytest.raises(ContractError, match="empty"):
        score(store, {**given, "samples": empty})


def test_samples_of_a_set_with_prompts_are_all_of_them(store):
    prompts = [{"prompt_id": f"p{i}", "prompt": f"p{i}", "index": 0, "seed": i} for i in range(2)]
    chosen = evalset(store, 5, prompts=prompts)
    wanted = prompt_rows(chosen)
    (first, *_) = samples(store, 5).table().to_pylist()
    columns = ("prompt_id", "prompt", "index", "seed")
    rows = [
        {**first, **{k: row[k] for k in columns}, "sample_id": f"{i:032x}"}
        for i, row in enumerate(wanted)
    ]
    for given, problem in ((rows, None), (rows[:1], "1 of 2 are missing: 'p1' 0")):
        made = commit(store, "samples", "samples@1", given)
        row = score(store, inputs(store, made, chosen))["temporal_flickering"]
        assert row["reason"] == problem
    other = commit(store, "samples", "samples@1", [*rows, {**first, "sample_id": "f" * 32}])
    with pytest.raises(ContractError, match="1 of 3 samples are of no prompt and seed of the set"):
        score(store, inputs(store, other, chosen))


def test_memorisation_is_the_share_of_samples_nearer_to_training_clips_than_real_ones(store):
    given = toy(store)
    chosen = clip_rows(given["evalset"])
    # real clips lie 1 to 16 from their nearest training clip, 8 of 32 samples at 0
    ids = [row["clip_id"] for row in chosen if row["split"] == "val"]
    real = {id_: [100.0 * i + i + 1] for i, id_ in enumerate(sorted(ids))}
    made = given["samples"].table(["sample_id"])["sample_id"].to_pylist()
    vectors = real | {id_: [100.0 * (i % 8) + (0 if i < 8 else 50)] for i, id_ in enumerate(made)}
    toys = vector_inputs(store, given["evalset"], given["samples"], vectors)
    trained = [
        {"clip_id": f"a{i:031x}", "network": "lite0", "network_digest": "d", "preset": "mean4",
         "num_frames": 9, "vector": [100.0 * i]}
        for i in range(40)
    ]  # fmt: skip
    toys["train_features"] = commit(store, "features", "features@1", trained)
    row = score(store, toys, metrics=["memorisation"])["memorisation"]
    assert row["value"] == 8 / 32
    assert row["ci_low"] < 0.25 < row["ci_high"]
    assert json.loads(row["details_json"])["nearest"][0]["distance"] == 0


def test_rows_of_stage_vbench_are_copied(store):
    given = toy(store)
    row = score_row("vbench/total", 80.0, lock={"a": 1}, num_samples=4720)
    given["vbench"] = commit(store, "vbench", "scores@1", [row])
    rows = score(store, given)
    assert rows["vbench/total"]["value"] == 80
    assert rows["vbench/quality"]["reason"] == "no scores of stage vbench"


@pytest.fixture
def tokenizer(store):
    shape = {"num_bits": 8, "scales": ((1, 1), (4, 4)), "patch_px": 4, "base_width": 8}
    levels = {"multipliers": (1, 1), "num_res_blocks": 1, "space_downs": (0,), "time_downs": (0,)}
    network = VideoTokenizer(TokenizerConfig(**shape, **levels, norm_groups=1))
    made = publish_model(
        network, store, weights=network.state_dict(), step=0, metrics={}, history=[]
    )
    return commit(store, "tokenizer", "models@1", made.to_pylist())


@pytest.mark.slow
def test_score_reconstructions_have_the_size_of_their_clips(store, tokenizer):
    wide = inputs(store, samples(store, 5), evalset(store, 5, 56))
    rows = score(store, {**wide, "tokenizer": tokenizer}, num_reconstructions=2, num_examples=1)
    steps = json.loads(rows["recon/psnr"]["details_json"])["by_scale"]
    assert [step["grid"] for step in steps] == ["1 x 1", "2 x 2", "3 x 3", "4 x 7"]
    assert decode_clip(store.objects.get(steps[0]["recon_key"])).shape == (5, 32, 56, 3)
    odd = inputs(store, samples(store, 5), evalset(store, 5, 52))
    with pytest.raises(ContractError, match=r"5x32x52.*32x52 px are not a multiple of 8"):
        score(store, {**odd, "tokenizer": tokenizer})


def test_score_clip_longer_than_a_chunk_is_reconstructed_whole(store, tokenizer):
    (video,) = stored(store, [np.resize(draw(scenes()[0], 9, 32, 8.0), (67, 32, 32, 3))])
    rows = [clip_row(name, split="val", **video) for name in "ab"]
    config = EvalsetConfig(num_prompts=0)
    (output,) = EvalsetStage(config).reduce({"clips": clips_of(store, rows)}, StageContext(store))
    long = commit(store, "evalset", "evalsets@1", output.rows.to_pylist())
    given = {**inputs(store, samples(store, 5), long), "tokenizer": tokenizer}
    found = score(store, given, num_reconstructions=1)
    assert "2 reference clips others, such as 67 frames" in str(score_inputs(given))
    details = json.loads(found["recon/psnr"]["details_json"])
    keys = [details["examples"][0]["real_key"], *(s["recon_key"] for s in details["by_scale"])]
    assert [len(decode_clip(store.objects.get(key))) for key in keys] == [67, 67, 67]


def test_score_with_tokenizer_has_reconstruction_scores_and_examples(store, tokenizer):
    given = {**inputs(store, samples(store, 5), evalset(store, 5)), "tokenizer": tokenizer}
    rows = score(store, given, num_reconstructions=3, num_examples=2)
    assert 5 < rows["recon/psnr"]["value"] < 30
    assert rows["recon/psnr"]["num_samples"] == 3
    assert -1 < rows["recon/ssim"]["value"] < 1
    assert rows["rendered_recon/valid_frac"]["value"] < 0.5  # an untrained tokenizer shows nothing
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
