"""Tokens to a model to samples, on a store with tokens drawn by the test."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from tests.support.compaction import compact
from tests.support.loop_rank import MemoryRank, commit, commit_all
from tests.support.token_tables import CAPTIONS, pretrain_inputs, reference_clips
from videoar.contracts.contract import load_contract
from videoar.core.errors import ConfigError, ContractError, GateError
from videoar.media.decode import decode_clip
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.pipeline.context import StageContext
from videoar.pipeline.fingerprint import ShardFingerprints, compute_parts
from videoar.stages.generate.config import GenerateConfig
from videoar.stages.generate.stage import GenerateStage
from videoar.stages.pretrain.data import open_stores, split_by_seen
from videoar.stages.pretrain.stage import PretrainConfig, PretrainStage
from videoar.storage.store import open_store
from videoar.storage.token_codec import checksum
from videoar.training.model_store import load_tokenizer, load_transformer, publish_model
from videoar.training.prompts import Prompt

# Each test runs a whole stage or model.
pytestmark = pytest.mark.slow

DEVICE = {"accelerator_items", "accelerator_busy_s", "accelerator_idle_s"}
TRAINING = {"phases": [{"steps": 4, "batch_size": 2}], "optimizer": {"learning_rate": 1e-3}}


@pytest.fixture
def store(tmp_path):
    torch.set_num_threads(1)
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def inputs(store):
    return pretrain_inputs(store)


@pytest.fixture
def reference(store):
    return reference_clips(store)


def pretrain(store, inputs, rank, **options):
    return PretrainStage(PretrainConfig(training=TRAINING, **options)).run(
        inputs, StageContext(store), rank
    )


def test_killed_training_equals_the_uninterrupted_one(store, inputs, tmp_path):
    rank = MemoryRank(tmp_path / "a")
    output = pretrain(store, inputs, rank, checkpoint_every=3)
    (row,) = output.rows.to_pylist()
    assert (row["kind"], row["step"], rank.steps) == ("transformer", 4, [1, 2, 3, 4])
    assert (row["rate_fps"], row["num_frames"]) == (8.0, 5)
    assert json.loads(row["config_json"])["scales"] == [[1, 1], [2, 2], [4, 4]]
    assert {"loss", "bit_accuracy"} <= dict(row["metrics"]).keys()
    killed = MemoryRank(tmp_path / "b")
    killed.saved = {3: rank.saved[3]}
    assert pretrain(store, inputs, killed).rows.equals(output.rows)
    assert (killed.steps, [*killed.saved]) == ([4], [3, 4])
    assert not [*rank.scratch.iterdir(), *killed.scratch.iterdir()]  # no checkpoint stays there


def test_start_port_initializes_from_an_earlier_phase(store, inputs, tmp_path):
    first = pretrain(store, inputs, MemoryRank(tmp_path / "a")).rows
    start = commit(store, "first", "models@1", first)
    still = {**TRAINING, "optimizer": {"learning_rate": 1e-12}}
    config = PretrainConfig(training=still)
    output = PretrainStage(config).run(
        {**inputs, "start": start}, StageContext(store), MemoryRank(tmp_path / "b")
    )
    second = commit(store, "second", "models@1", output.rows)
    old, new = (load_transformer(model, store)[0].state_dict() for model in (start, second))
    assert all(torch.allclose(old[name], new[name], atol=1e-8) for name in old)


def test_compacted_tokens_keep_their_tokenizer(store, inputs, tmp_path):
    _, packed = compact(store, inputs["tokens"].id)
    assert "tokenizer" not in packed.commit.provenance.parents
    config = load_tokenizer(inputs["tokenizer"], store)[0].cfg
    digest = inputs["tokenizer"].table(["digest"])["digest"][0].as_py()
    open_stores({**inputs, "tokens": packed}, config, digest)
    assert pretrain(store, {**inputs, "tokens": packed}, MemoryRank(tmp_path)) is not None
    other = commit(store, "other", "models@1", _model_row(store, base_width=8))
    with pytest.raises(ContractError, match="tokenize the clips again"):
        pretrain(store, {"tokens": packed, "tokenizer": other}, MemoryRank(tmp_path / "b"))


def _model_row(store, **changes):
    net = VideoTokenizer(TOKENIZERS["tiny"].model_copy(update=changes))
    return publish_model(net, store, weights=net.state_dict(), step=0, metrics={}, history=[])


def _tokens(store, inputs, name, shapes, split="train"):
    """Commit a token store of one row per shape (t, h, w)."""
    draw = np.random.default_rng(1)
    rows = []
    for i, (t, h, w) in enumerate(shapes):
        latent = (2 * draw.standard_normal((t, 8, h, w))).astype("<f2").tobytes()
        rows.append({
            "clip_id": f"{i:032x}", "source_id": f"{i:064x}", "split": split, "label": None,
            "caption": CAPTIONS[0], "rate_fps": 8.0, "start_s": 0.0, "duration_s": 0.5,
            "t": t, "k": 8, "h": h, "w": w, "bits": b"\0" * t, "latent": latent,
            "bits_xxh3": 0, "latent_xxh3": checksum(latent),
        })  # fmt: skip
    schema = load_contract("tokens@1").arrow_schema
    digest = inputs["tokenizer"].table(["digest"])["digest"][0].as_py()
    groups = {shape: [row for row, own in zip(rows, shapes, strict=True) if own == shape]
              for shape in set(shapes)}  # fmt: skip
    tables = [
        pa.Table.from_pylist(own, schema=schema).replace_schema_metadata({
            "tokenizer_digest": digest,
            "layout_version": "1",
        })
        for own in groups.values()
    ]
    return commit_all(store, name, "tokens@1", tables)


def test_phases_mix_sizes_images_and_stores_in_one_model(store, inputs, tmp_path):
    further = _tokens(store, inputs, "further", [(1, 4, 4)] * 4 + [(3, 4, 8)] * 4 + [(3, 8, 4)] * 4)
    val = _tokens(store, inputs, "val", [(2, 4, 4)] * 3, split="val")
    both = store.dataset("both", "tokens@1")
    both = both.commit([*further.files, *val.files], further.commit.provenance, {})
    phases = [
        {"steps": 3, "batch_size": 2},
        {
            "tokens": 400, "batch_size": 2, "accumulate": 2, "p_mask": 0.5, "num_frames": 1,
            "stores": {"wide": {"num_frames": 9, "grids": [[4, 8], [8, 4]], "weight": 3},
                       "tokens": {"weight": 1, "batch_size": 3}},
        },
    ]  # fmt: skip
    stage = PretrainStage(PretrainConfig(training={"phases": phases}, model={"max_scales": 6}))
    ports = {**inputs, "tokens.wide": both}
    rank = MemoryRank(tmp_path)
    output = stage.run(ports, StageContext(store), rank)
    (row,) = output.rows.to_pylist()
    assert row["step"] == len(rank.steps) > 4
    assert np.isfinite(dict(row["metrics"])["loss"])
    history = json.loads(row["history_json"])
    # the val rows are 4 x 4: the second phase reads other grids only, so it has none
    assert {point["step"] for point in history if "val/loss" in point} <= {1, 2, 3}


def test_seen_tokens_are_the_old_part_of_a_mixture(store, inputs, tmp_path):
    shapes = [(2, 4, 4)] * 3 + [(2, 4, 8)] * 2 + [(2, 8, 4)] * 4
    now = _tokens(store, inputs, "now", shapes)
    # by content and by clips, in whatever files: of the second file one clip is new
    seen = _tokens(store, inputs, "seen", shapes[:4])
    parts = split_by_seen(now, _tokens(store, inputs, "one_file", [(2, 4, 4)] * 4))
    assert [file.rows for file in parts["old"].files] == [3]
    assert sorted(file.rows for file in parts["new"].files) == [2, 4]
    assert split_by_seen(now, seen) == parts
    start = commit(store, "start", "models@1", pretrain(store, inputs, MemoryRank(tmp_path)).rows)
    ports = {**inputs, "tokens": now, "seen": seen, "start": start}
    training = {"phases": [{"steps": 4, "stores": {"old": {"weight": 1}, "new": {"weight": 3}}}]}
    stage = PretrainStage(PretrainConfig(training=training))
    assert stage.run(ports, StageContext(store), MemoryRank(tmp_path / "b")) is not None


def test_start_may_have_another_window(store, inputs, tmp_path):
    start = commit(store, "start", "models@1", pretrain(store, inputs, MemoryRank(tmp_path)).rows)
    ports = {**inputs, "start": start}
    assert pretrain(store, ports, MemoryRank(tmp_path / "c"), model={"window": 1}) is not None


def test_gate_on_the_val_loss_needs_a_low_one(store, inputs, tmp_path):
    rank = MemoryRank(tmp_path)
    with pytest.raises(GateError, match="was not measured"):
        pretrain(store, inputs, rank, max_val_nats=0.5)
    val = _tokens(store, inputs, "val", [(2, 4, 4)] * 3, split="val")
    both = store.dataset("both", "tokens@1").commit(
        [*inputs["tokens"].files, *val.files], val.commit.provenance, {}
    )
    ports = {**inputs, "tokens": both}
    with pytest.raises(GateError, match=r"the val loss is 0\.\d+ nats per bit, the maximum 0.01"):
        pretrain(store, ports, MemoryRank(tmp_path / "b"), max_val_nats=0.01)
    output = pretrain(store, ports, MemoryRank(tmp_path / "c"), max_val_nats=5.0)
    assert 0 < output.metrics["val/loss"] <= 5.0
    assert not any("block" in name for name in output.metrics)


@pytest.mark.fault(22, "a notice in the middle of a training")
def test_notice_of_preemption_leads_to_one_checkpoint(store, inputs, tmp_path):
    rank = MemoryRank(tmp_path)
    rank.is_preempted = lambda: len(rank.steps) >= 1
    pretrain(store, inputs, rank, checkpoint_every=100)
    # Noticed in step 2, read after step 3; the last one is that of the end.
    assert list(rank.saved) == [3, 4]


def test_mistakes_in_the_config_are_rejected_before_a_run():
    for options in (
        {"preset": "huge", "training": TRAINING},
        {"training": TRAINING, "model": {"depht": 3}},
        {"training": TRAINING, "model": {"heads": 3}},
        {"training": {"phases": []}},
        {"training": {"phases": [{"batch_size": 2}]}},
        {"training": {"phases": [{"steps": 2, "tokens": 10}]}},
    ):
        with pytest.raises(ValidationError):
            PretrainConfig(**options)


def test_samples_are_planned_and_reproducible(store, inputs, reference, tmp_path):
    model = commit(store, "model", "models@1", pretrain(store, inputs, MemoryRank(tmp_path)).rows)
    ports = {"model": model, "tokenizer": inputs["tokenizer"], "reference": reference}
    stage = GenerateStage(GenerateConfig(num_per_prompt=2, shard_samples=3, num_frames=5))
    shards = stage.shards(ports)
    rows = [row for shard in shards for row in shard.rows]
    assert [shard.num_rows for shard in shards] == [3, 3]
    of_class = "Generate a video of circle"  # a clip has no caption
    assert {row["prompt"] for row in rows} == {*CAPTIONS[:2], of_class}
    assert len({row["seed"] for row in rows}) == 6
    mapper = stage.open(ports, StageContext(store))
    batch = pa.Table.from_pylist([dict(row) for row in shards[0].rows])
    made = load_contract("samples@1").conform(mapper(batch).rows, "samples")
    assert made.equals(load_contract("samples@1").conform(mapper(batch).rows, "samples"))
    first = made.to_pylist()[0]
    assert (first["steps"], first["num_frames"], first["label"]) == (6, 5, "circle")
    assert decode_clip(store.objects.get(first["video_key"])).shape == (5, 32, 32, 3)
    stranger = commit(store, "other", "models@1", _model_row(store, base_width=8))
    with pytest.raises(ConfigError, match="trained on tokenizer"):
        stage.open({**ports, "tokenizer": stranger}, StageContext(store))
    odd = GenerateStage(GenerateConfig(num_frames=6))
    with pytest.raises(ConfigError, match=r"generate: 6 frames .*use 5 or 9"):
        odd.open(ports, StageContext(store))


def test_unknown_guidance_is_rejected_before_a_run():
    assert GenerateConfig(guidance=3).guidance == 3
    with pytest.raises(ValidationError, match="'ucf' or 't2v'"):
        GenerateConfig(guidance="strong")


def test_prompts_are_read_from_a_file(reference, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\na dog\na cat\n")
    stage = GenerateStage(GenerateConfig(prompts=str(path)))
    ports = {"reference": reference}
    rows = [row for shard in stage.shards(ports) for row in shard.rows]
    assert [(row["prompt"], row["label"]) for row in rows] == [("a cat", None), ("a dog", None)]
    before = stage.tools()
    path.write_text("a bird\n")
    assert stage.tools() != before
    with pytest.raises(ConfigError, match="no such file"):
        GenerateStage(GenerateConfig(prompts="missing.txt")).shards(ports)


def prompts_of(store, name, *rows):
    table = pa.Table.from_pylist([Prompt(**row).row("row") for row in rows])
    return commit(store, name, "prompts@1", load_contract("prompts@1").conform(table, name))


def test_snapshot_of_prompts_needs_no_reference_and_no_tokenizer(
    store, inputs, reference, tmp_path
):
    model = commit(store, "model", "models@1", pretrain(store, inputs, MemoryRank(tmp_path)).rows)
    fixed = {"prompt": "a frozen one", "prompt_id": "x1", "index": 2, "seed": 7}
    prompts = prompts_of(store, "prompts", {"prompt": "a cat"}, {"label": "PlayChess"}, fixed)
    stage = GenerateStage(GenerateConfig(num_per_prompt=2, num_frames=5, shard_samples=2))
    ports = {"model": model, "prompts": prompts}
    shards = stage.shards(ports)
    rows = [row for shard in shards for row in shard.rows]
    of_class = "Generate a video of play chess"
    assert [(row["prompt"], row["index"]) for row in rows] == [
        ("a cat", 0), ("a cat", 1), (of_class, 0), (of_class, 1), ("a frozen one", 2),
    ]  # fmt: skip
    assert (rows[4]["seed"], rows[4]["prompt_id"], rows[2]["label"]) == (7, "x1", "PlayChess")
    in_file = tmp_path / "prompts.txt"
    in_file.write_text("a cat")
    of_file = GenerateStage(GenerateConfig(num_per_prompt=2, prompts=str(in_file)))
    (shard,) = of_file.shards({"reference": reference})
    assert [row["seed"] for row in shard.rows] == [row["seed"] for row in rows[:2]]
    output = stage.open(ports, StageContext(store))(pa.Table.from_pylist(list(shards[0].rows)))
    made = load_contract("samples@1").conform(output.rows, "samples").to_pylist()
    assert [row["rate_fps"] for row in made] == [8.0, 8.0]
    assert output.metrics.keys() == {"decode_s", "encode_s", "upload_s", *DEVICE}
    more = prompts_of(
        store, "more", {"prompt": "a cat"}, {"label": "PlayChess"}, fixed, {"prompt": "b"}
    )
    names = [
        [ShardFingerprints(compute_parts(stage, given), stage.sharded).of(s)
         for s in stage.shards(given)]
        for given in (ports, {**ports, "prompts": more})
    ]  # fmt: skip
    assert names[0][:2] == names[1][:2]


def test_stage_without_prompts_or_frame_rate_is_rejected(store, inputs, reference):
    stage = GenerateStage(GenerateConfig())
    model = commit(store, "model", "models@1", _model_row(store))  # trained on no clips
    with pytest.raises(ConfigError, match="does not say the frame rate"):
        stage.shards({"model": model, "prompts": prompts_of(store, "p", {"prompt": "x"})})
    with pytest.raises(ConfigError, match="leave one out"):
        GenerateStage(GenerateConfig(prompts="x.txt")).shards({
            "reference": reference,
            "prompts": prompts_of(store, "q", {"prompt": "x"}),
        })
    rated = {"model": model, "reference": reference}
    assert stage.shards(rated)


def test_samples_are_scored_during_a_training_and_the_same_after_a_kill(store, inputs, tmp_path):
    val = _tokens(store, inputs, "val", [(2, 4, 4)] * 3, split="val")
    files, without = [*inputs["tokens"].files, *val.files], dict(inputs)
    inputs["tokens"] = store.dataset("both", "tokens@1").commit(files, val.commit.provenance, {})
    training = {**TRAINING, "sampling": {"every": 2, "num": 3, "temperature": 0.7}}
    config = PretrainConfig(training=training, checkpoint_every=3)
    stage, rank = PretrainStage(config), MemoryRank(tmp_path / "a")
    whole = stage.run(inputs, StageContext(store), rank)
    (row,) = whole.rows.to_pylist()
    scored = {point["step"]: point for point in json.loads(row["history_json"])
              if "samples/frechet_lite0" in point}  # fmt: skip
    assert [*scored] == [2, 4]
    assert scored[2]["samples/frechet_lite0"] > 0
    assert 0 <= scored[4]["samples/rendered/valid_frac"] <= 1
    killed = MemoryRank(tmp_path / "b")
    killed.saved = {3: rank.saved[3]}
    assert stage.run(inputs, StageContext(store), killed).rows.equals(whole.rows)
    plain = PretrainStage(PretrainConfig(training=TRAINING, checkpoint_every=3))
    unscored = plain.run(inputs, StageContext(store), MemoryRank(tmp_path / "c")).rows
    assert unscored["digest"] == whole.rows["digest"]  # sampling changes no weight
    with pytest.raises(ConfigError, match=r"training.sampling: .* 2 are needed"):
        stage.run(without, StageContext(store), MemoryRank(tmp_path / "d"))


def test_code_of_scores_is_part_of_the_fingerprint_only_where_samples_are_scored(inputs):
    plain, scored = (
        compute_parts(PretrainStage(PretrainConfig(training={**TRAINING, **extra})), inputs)
        for extra in ({}, {"sampling": {"every": 2}})
    )
    assert not any("evaluation" in module for module in plain["code"])
    assert plain["code"] == scored["code"]
    assert "code_of_scores" in scored["tools"].keys() - plain["tools"].keys()
