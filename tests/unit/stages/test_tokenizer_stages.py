"""Clips to a tokenizer to tokens, on a store with a handful of drawn clips."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save_file

from tests.support.clip_rows import clips_of, drawn_rows
from tests.support.loop_rank import MemoryRank, commit
from tests.support.token_runs import SHAPES, damaged, execute, prepare, shape_rows, untrained
from videoar.core.errors import (
    ConfigError,
    ContractError,
    GateError,
)
from videoar.engine.inline import InlineEngine
from videoar.media.decode import decode_clip
from videoar.media.synthetic import scenes
from videoar.model.schedule import SMALL_SQUARE
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer, video_from_frames
from videoar.pipeline.context import StageContext
from videoar.pipeline.spec import parse_pipeline
from videoar.pipeline.work.shard import ShardWorker
from videoar.stages.tokenize.stage import TokenizeConfig, TokenizeStage
from videoar.stages.train_tokenizer.stage import (
    TrainTokenizerConfig,
    TrainTokenizerStage,
)
from videoar.stages.train_tokenizer.worker import _inflate
from videoar.storage.store import open_store
from videoar.storage.token_codec import checksum, unpack_bits
from videoar.training.model_store import load_tokenizer, publish_model

TRAINING = {"steps": 4, "batch_clips": 2, "excerpt_frames": 5, "learning_rate": 1e-3}


@pytest.fixture
def clips(store):
    rows = [row | {"span_start_us": 500_000} for row in drawn_rows(store, scenes()[:3])]
    rows[0]["caption"], rows[2]["split"] = scenes()[0].prompt, "val"
    return clips_of(store, rows)


def train(store, clips, rank, **options):
    config = TrainTokenizerConfig(**{"preset": "tiny", "training": TRAINING, **options})
    return TrainTokenizerStage(config).run({"clips": clips}, StageContext(store), rank)


def test_training_publishes_the_average_and_resumes_exactly(store, clips, tmp_path):
    rank = MemoryRank(tmp_path / "a")
    output = train(store, clips, rank, checkpoint_every=2)
    (row,) = output.rows.to_pylist()
    assert (row["kind"], row["step"], rank.steps) == ("tokenizer", 4, [1, 2, 3, 4])
    measured = {"val/psnr_db", "val/ssim", "val/scale_3/bit_entropy"}
    assert {"psnr_db", "latent_norm", *measured} <= dict(row["metrics"]).keys()
    history = json.loads(row["history_json"])
    assert [point["step"] for point in history] == [0, 1, 2, 3]
    assert history[-1]["val/psnr_db"] == dict(row["metrics"])["val/psnr_db"]
    killed = MemoryRank(tmp_path / "b")
    killed.saved = {2: rank.saved[2]}
    again = train(store, clips, killed)
    assert killed.steps == [3, 4]
    assert not [*rank.scratch.iterdir(), *killed.scratch.iterdir()]  # no checkpoint stays there
    assert again.rows.equals(output.rows)


def test_published_weights_are_the_average_not_the_last(store, clips, tmp_path):
    rank = MemoryRank(tmp_path / "run")
    output = train(store, clips, rank, checkpoint_every=4)
    state = load(rank.saved[4]["state.safetensors"])
    keys = {file["path"]: file["key"] for file in output.rows["files"][0].as_py()}
    published = load(store.objects.get(keys["model.safetensors"]))
    assert published.keys() == {n.removeprefix("net/") for n in state if n.startswith("net/")}
    for name, weight in published.items():
        assert torch.equal(weight, state[f"average/{name}"]), name
    assert not all(torch.equal(weight, state[f"net/{name}"]) for name, weight in published.items())


def test_max_clips_below_the_input_is_logged(store, clips, tmp_path, caplog):
    train(store, clips, MemoryRank(tmp_path / "a"))
    assert "max_clips" not in caplog.text
    train(store, clips, MemoryRank(tmp_path / "b"), max_clips=1)
    assert "training on max_clips = 1 of " in caplog.text


def test_validations_are_spread_evenly_over_the_run(store, clips, tmp_path):
    output = train(store, clips, MemoryRank(tmp_path), validations=2)
    history = json.loads(output.rows["history_json"][0].as_py())
    assert [point["step"] for point in history if "val/psnr_db" in point] == [1, 3]
    stage = TrainTokenizerStage(
        TrainTokenizerConfig(preset="tiny", training={**TRAINING, "steps": 7}, validations=3)
    )
    assert [step for step in range(1, 8) if stage._is_due(step)] == [3, 5, 7]


def test_tokenizer_below_its_gate_is_not_published(store, clips, tmp_path):
    rank = MemoryRank(tmp_path / "a")
    with pytest.raises(GateError, match=r"min_psnr_db.*\d+\.\d\d dB PSNR, at least 60 dB required"):
        train(store, clips, rank, min_psnr_db=60, checkpoint_every=3)
    assert (rank.steps, [*rank.saved]) == ([1, 2, 3, 4], [3, 4])
    assert train(store, clips, rank, min_psnr_db=3).rows.num_rows == 1
    assert rank.steps == [1, 2, 3, 4]  # nothing trained again
    config = TrainTokenizerConfig(min_psnr_db=3)
    assert config.publish_gates() == {"min_psnr_db"} <= config.semantic().keys()


def test_training_starts_from_an_image_tokenizer(store, clips, tmp_path):
    both = {"patch_px": 2, "space_downs": (0, 1)}
    cfg = TOKENIZERS["tiny"].model_copy(update=both)
    image_net, path = VideoTokenizer(cfg.as_image()), tmp_path / "image.safetensors"
    weights = image_net.state_dict()
    save_file({n: w.squeeze(2) if w.ndim == 5 else w for n, w in weights.items()}, path)
    given = {"tokenizer": both, "image_weights": str(path), "image_fresh": ["decoder.conv_in"]}
    stage = TrainTokenizerStage(TrainTokenizerConfig(preset="tiny", training=TRAINING, **given))
    net = VideoTokenizer(cfg)
    fresh = net.decoder.conv_in.weight.clone()
    _inflate(net, path=str(path), fresh=("decoder.conv_in",))
    first = net.encoder.conv_in.weight
    assert torch.equal(first[:, :, -1], weights["encoder.conv_in.weight"][:, :, 0])
    assert torch.equal(net.decoder.conv_in.weight, fresh)
    assert len(stage.tools()["image_weights"]) == 64
    train(store, clips, MemoryRank(tmp_path / "run"), **given)
    path.write_bytes(b"?")
    with pytest.raises(ConfigError, match="no image tokenizer"):
        train(store, clips, MemoryRank(tmp_path / "other"), **given)


@pytest.mark.slow
def test_distance_option_adds_a_curve_to_the_history(store, clips, tmp_path):
    rows = clips.table().to_pylist()
    another = {**rows[2], "clip_id": "f" * 32, "span_start_us": 0}
    more = clips_of(store, [*rows, another])
    output = train(store, more, MemoryRank(tmp_path), distance=True, validations=1)
    assert dict(output.rows["metrics"][0].as_py())["val/frechet_random_i3d_n2"] > 0
    with pytest.raises(GateError, match="no distance on 1 val clips"):
        train(store, clips, MemoryRank(tmp_path / "few"), distance=True)


def test_unsuitable_clips_are_rejected(store, clips, tmp_path):
    with pytest.raises(ValidationError, match="none of the 3 scales"):
        TrainTokenizerConfig(preset="tiny", training={**TRAINING, "drop_scales": 3})
    with pytest.raises(ConfigError, match=r"\(32, 32\).*\(64, 64\)"):
        train(store, clips, MemoryRank(tmp_path), tokenizer={"patch_px": 8})
    table = clips.table()
    only_val = table.set_column(table.column_names.index("split"), "split", pa.array(["val"] * 3))
    with pytest.raises(GateError, match="no clips"):
        train(store, commit(store, "val", "clips@1", only_val), MemoryRank(tmp_path))


@pytest.mark.parametrize(
    ("type_name", "ports", "options", "match"),
    [
        (
            "train_tokenizer",
            {"clips": "x"},
            {"preset": "tiny", "tokenizer": {"scales": [[1, 1], [8, 8], [4, 4]]}},
            r"stages\.s\.tokenizer\.scales: scale \(4, 4\) is smaller",
        ),
        (
            "train_tokenizer",
            {"clips": "x"},
            {"preset": "nope", "tokenizer": {"scales": []}},
            r"stages\.s\.preset: unknown preset nope \(known: 512, demo",
        ),
        (
            "pretrain",
            {"tokens": "x", "tokenizer": "x"},
            {"preset": "tiny", "model": {"scales": [[2, 2], [1, 1]]}, "training": {"phases": []}},
            r"stages\.s\.model\.scales: scale \(1, 1\) is smaller than \(2, 2\)",
        ),
    ],
)
def test_mistakes_in_a_shape_are_rejected_with_the_pipeline_under_their_key(
    type_name, ports, options, match
):
    stage = {"stage": type_name, "from": ports, **options}
    document = {"pipeline": "p", "inputs": {"x": "x"}, "stages": {"s": stage}}
    with pytest.raises(ConfigError, match=match):
        parse_pipeline(document, "t")


def test_batch_that_workers_cannot_share_is_rejected_with_the_config():
    def config(workers, accumulate):
        training = {**TRAINING, "batch_clips": 4, "accumulate": accumulate}
        return TrainTokenizerConfig(training=training, resources={"workers": workers})

    assert config(2, 2).resources.workers == 2
    with pytest.raises(ValidationError, match=r"batch_clips=4 is not a multiple of 6: .*workers=3"):
        config(3, 2)


def test_too_short_clips_are_rejected_before_the_first_step(store, tmp_path):
    def refused(match, rows, **options):
        rank = MemoryRank(tmp_path / "run")
        with pytest.raises(ConfigError, match=match):
            train(store, clips_of(store, rows), rank, **options)
        assert rank.steps == []

    long, short, odd = shape_rows(store, [(9, 32, 32), (5, 32, 32), (7, 32, 32)])
    needs = {"training": {**TRAINING, "excerpt_frames": 9}}
    named = f"excerpt_frames: 9 frames are longer than 1 of 2 .*{short['clip_id']} of 5"
    refused(named, [long, short], **needs)
    refused(f"tokenizer: val clip {odd['clip_id']}.* 7 frames", [long, odd | {"split": "val"}])
    refused("min_psnr_db: there is no clip of the val split", [long, short], min_psnr_db=1)
    images = {"training": {**needs["training"], "image_steps": 4}}
    train(store, clips_of(store, [long, short]), MemoryRank(tmp_path / "images"), **images)


def test_clips_of_several_sizes_train_one_network(store, clips, tmp_path):
    shapes = [(9, 32, 56), (9, 56, 32), (9, 32, 56), (9, 32, 56)]
    others = shape_rows(store, shapes, "other")
    others[0]["split"] = "val"
    mixed = clips_of(store, [*clips.table().to_pylist(), *others])
    rank = MemoryRank(tmp_path / "a")
    output = train(store, mixed, rank, checkpoint_every=2, min_psnr_db=1)
    metrics = dict(output.rows["metrics"][0].as_py())
    assert {"val/psnr_db", "val/scale_4/bit_entropy"} <= metrics.keys()
    killed = MemoryRank(tmp_path / "b")
    killed.saved = {2: rank.saved[2]}
    assert train(store, mixed, killed).rows.equals(output.rows)
    net, _ = load_tokenizer(commit(store, "tok", "models@1", output.rows), store)
    assert net.cfg.size_px == (32, 32)
    with pytest.raises(ConfigError, match=r"\(32, 56\).*tokenizer for \(32, 32\)"):
        train(store, clips_of(store, others), MemoryRank(tmp_path / "c"))
    odd = clips_of(store, [*others, *shape_rows(store, [(9, 32, 32), (9, 32, 44)])])
    with pytest.raises(ConfigError, match="32x44 px are not a multiple of 8 px"):
        train(store, odd, MemoryRank(tmp_path / "d"))


def test_lpips_weights_are_in_the_fingerprint_and_must_exist(tmp_path):
    path = tmp_path / "lpips.safetensors"
    stage = TrainTokenizerStage(TrainTokenizerConfig(preset="tiny", lpips_weights=str(path)))
    with pytest.raises(ConfigError, match="No such file"):
        stage.tools()
    path.write_bytes(b"weights")
    assert len(stage.tools()["lpips_weights"]) == 64


def test_perceptual_net_is_used_and_refused_where_it_would_not_be(store, clips, tmp_path):
    weighted = {**TRAINING, "weights": {"perceptual": 1.0}}
    ours, random = (
        train(store, clips, MemoryRank(tmp_path / name), training=weighted, perceptual=name)
        for name in ("lite0", "random")
    )
    assert ours.rows["digest"] != random.rows["digest"]
    with pytest.raises(ValidationError, match=r"needs training\.weights\.perceptual above 0"):
        TrainTokenizerConfig(preset="tiny", perceptual="lite0")
    with pytest.raises(ValidationError, match="either perceptual: lite0 or lpips_weights"):
        TrainTokenizerConfig(perceptual="lite0", training=weighted, lpips_weights="a.safetensors")


def test_files_of_weights_that_hold_something_else_are_named(store, clips, tmp_path):
    def refused(key, what, **options):
        with pytest.raises(ConfigError, match=rf"train_tokenizer\.{key}: .*{what}"):
            train(store, clips, MemoryRank(tmp_path / "run"), **options)

    path = tmp_path / "w.safetensors"
    lpips = {"lpips_weights": str(path)}
    image = {"image_weights": str(path), "tokenizer": {"patch_px": 2, "space_downs": (0, 1)}}
    path.write_bytes(b"cut off")
    refused("lpips_weights", "w.safetensors holds no AlexNet", **lpips)
    refused("image_weights", "w.safetensors: holds no image tokenizer", **image)
    save_file({"other": torch.zeros(1)}, path)
    refused("lpips_weights", r"w.safetensors holds no AlexNet.*features\.0\.weight", **lpips)
    refused("image_weights", r"w.safetensors: .*has no encoder\.conv_in", **image)
    cfg = TOKENIZERS["tiny"].model_copy(update={**image["tokenizer"], "num_bits": 4})
    save_file(VideoTokenizer(cfg.as_image()).state_dict(), path)
    refused("image_weights", r"w.safetensors: encoder\.conv_out\.weight is \(4,", **image)
    typo = {"image_fresh": ["encodr.conv_in"]}
    refused("image_fresh", r"encodr\.conv_in.*did you mean encoder\.conv_in", **image, **typo)
    everything = {"image_fresh": ["encoder", "decoder"]}
    refused("image_fresh", "excludes every weight of .*w.safetensors", **image, **everything)


def test_training_skips_an_unreadable_clip_and_resumes_exactly(store, clips, tmp_path):
    first, *others = clips.table().to_pylist()
    broken = clips_of(store, [damaged(store, first), *others])
    rank, killed = MemoryRank(tmp_path / "a"), MemoryRank(tmp_path / "b")
    output = train(store, broken, rank, checkpoint_every=2)
    killed.saved = {2: rank.saved[2]}
    assert train(store, broken, killed).rows.equals(output.rows)
    assert not train(store, clips, MemoryRank(tmp_path / "c")).rows.equals(output.rows)


def test_tokens_hold_latents_and_bits_of_the_tokenizer(store, clips, tmp_path):
    models = commit(store, "tok", "models@1", train(store, clips, MemoryRank(tmp_path)).rows)
    net, digest = load_tokenizer(models, store)
    inputs = {"clips": clips, "tokenizer": models}
    mapper = TokenizeStage(TokenizeConfig(batch_clips=2)).open(inputs, StageContext(store))
    (output,), (again,) = mapper(clips.table()), mapper(clips.table())
    assert again.rows.equals(output.rows)
    tokens = commit(store, "tokens", "tokens@1", output.rows)
    rows, clip_rows = tokens.table().to_pylist(), clips.table().to_pylist()
    assert [row["caption"] for row in rows] == [scenes()[0].prompt, None, None]
    for row, clip in zip(rows, clip_rows, strict=True):
        shape = (row["t"], row["k"], row["h"], row["w"])
        assert shape == (3, 8, 4, 4)
        assert (row["start_s"], row["duration_s"]) == (0.5, 1.0)
        assert row["latent_xxh3"] == checksum(row["latent"])
        assert row["bits_xxh3"] == checksum(row["bits"])
        stored = torch.from_numpy(np.frombuffer(row["latent"], "<f2").reshape(shape).copy())
        frames = torch.from_numpy(decode_clip(store.objects.get(clip["video_key"])))
        with torch.no_grad():
            latent = net.encode(video_from_frames(frames[None]))[0].transpose(0, 1)
        torch.testing.assert_close(stored.float(), latent, atol=2e-3, rtol=2e-3)
        expected = net.quantizer.encode(stored.transpose(0, 1)[None])  # exactly, from fp16
        found = unpack_bits(row["bits"], 3, net.cfg.scales, 8)
        assert all(np.array_equal(f, e[0]) for f, e in zip(found, expected, strict=True))
    footer = pq.read_metadata(pa.BufferReader(store.objects.get(tokens.files[0].key))).metadata
    assert footer[b"tokenizer_digest"].decode() == digest
    assert json.loads(footer[b"scales"]) == [[1, 1], [2, 2], [4, 4]]


@pytest.fixture
def models(store):
    return untrained(store)


def open_mapper(store, models, rows, **options):
    clips = clips_of(store, rows)
    stage = TokenizeStage(TokenizeConfig(**options))
    return stage.open({"clips": clips, "tokenizer": models}, StageContext(store)), clips.table()


def test_tokenizer_below_its_gate_writes_no_tokens(store, models):
    rows = shape_rows(store, SHAPES[:1])
    mapper, table = open_mapper(store, models, rows, min_psnr_db=60)
    with pytest.raises(GateError, match=r"tokenize.min_psnr_db: reconstructions have .* 60 dB"):
        mapper(table)
    mapper, table = open_mapper(store, models, rows, min_psnr_db=1)
    assert len(mapper(table)) == 1


@pytest.mark.slow
def test_tokens_of_another_gate_are_encoded_again(store):
    document = prepare(store, num_files=1, clips_per_file=1)
    execute(store, document)
    document["stages"]["tokens"]["min_psnr_db"] = 60
    with pytest.raises(GateError, match="at least 60 dB required"):
        execute(store, document)


def commit_net(store, net):
    row = publish_model(net, store, weights=net.state_dict(), step=0, metrics={}, history=[])
    return commit(store, "tok", "models@1", row)


def test_non_finite_latents_stop_the_stage_before_anything_is_written(store):
    rows = shape_rows(store, SHAPES[:1] * 2)
    torch.manual_seed(0)
    net = VideoTokenizer(TOKENIZERS["tiny"]).eval()
    frames = [torch.from_numpy(decode_clip(store.objects.get(r["video_key"]))) for r in rows]
    with torch.no_grad():
        peaks = [net.encode(video_from_frames(clip[None])).abs().max() for clip in frames]
        small, large = np.argsort(peaks).tolist()
        factor = 65504 / (peaks[small] * peaks[large]).sqrt()  # between them is fp16's end
        for weight in net.encoder.conv_out.parameters():
            weight.mul_(factor)
    rows = [rows[small], rows[large]]
    mapper, table = open_mapper(store, commit_net(store, net), rows, batch_clips=1)
    assert len(mapper(table[:1])) == 1
    with pytest.raises(ContractError, match=f"clip {rows[1]['clip_id']}: latents are not finite"):
        mapper(table)  # the gate has seen the first clip alone


def test_gate_names_the_clip_with_non_finite_latents(store):
    rows = shape_rows(store, SHAPES[:1])
    net = VideoTokenizer(TOKENIZERS["tiny"])
    torch.nn.init.constant_(net.encoder.conv_out.bias, torch.nan)
    mapper, table = open_mapper(store, commit_net(store, net), rows)
    with pytest.raises(ContractError, match=f"clip {rows[0]['clip_id']}: latents are not finite"):
        mapper(table)


def test_each_shape_fills_a_file_of_its_own(store, models):
    long, short, large = SHAPES
    rows = shape_rows(store, [long, short, large, long, large])
    mapper, table = open_mapper(store, models, rows, batch_clips=1)
    outputs = mapper(table)
    small_scales = [[1, 1], [2, 2], [4, 4]]
    large_scales = [[side, side] for side in (1, 2, 3, 4, 6, 8)]
    found = [
        (output.rows["clip_id"].to_pylist(), json.loads(output.rows.schema.metadata[b"scales"]))
        for output in outputs
    ]
    ids = [row["clip_id"] for row in rows]
    assert found == [
        ([ids[0], ids[3]], small_scales),
        ([ids[1]], small_scales),
        ([ids[2], ids[4]], large_scales),
    ]
    assert [output.rows["t"].to_pylist() for output in outputs] == [[3, 3], [2], [3, 3]]
    dataset = store.dataset("tokens", "tokens@1")
    assert len({dataset.write(output.rows).key for output in outputs}) == 3

    row = outputs[2].rows.to_pylist()[0]
    net, _ = load_tokenizer(models, store)
    other = VideoTokenizer(net.cfg.model_copy(update={"scales": SMALL_SQUARE}))
    other.load_state_dict(net.state_dict())
    stored = torch.from_numpy(np.frombuffer(row["latent"], "<f2").reshape(3, 8, 8, 8).copy())
    frames = torch.from_numpy(decode_clip(store.objects.get(rows[2]["video_key"])))
    with torch.no_grad():
        latent = other.eval().encode(video_from_frames(frames[None]))[0].transpose(0, 1)
    torch.testing.assert_close(stored.float(), latent, atol=2e-3, rtol=2e-3)
    expected = other.quantizer.encode(stored.transpose(0, 1)[None])
    bits = unpack_bits(row["bits"], 3, SMALL_SQUARE, 8)
    assert all(np.array_equal(f, e[0]) for f, e in zip(bits, expected, strict=True))


@pytest.mark.parametrize(
    ("shape", "claimed", "message"),
    [
        ((9, 36, 36), (9, 36, 36), "clips of 9x36x36.*multiple of 8 px"),
        ((7, 32, 32), (7, 32, 32), "clips of 7x32x32.*7 frames"),
        ((9, 32, 32), (9, 64, 64), r"clip [0-9a-f]{32}: .*\(9, 32, 32, 3\).*\(9, 64, 64\)"),
    ],
)
def test_clips_that_do_not_fit_are_named(store, models, shape, claimed, message):
    (row,) = shape_rows(store, [shape])
    names = ("num_frames", "height_px", "width_px")
    mapper, table = open_mapper(store, models, [row | dict(zip(names, claimed, strict=True))])
    with pytest.raises(ContractError, match=message):
        mapper(table)


def test_rejected_clip_changes_no_other_and_busy_time_is_counted(store, models):
    rows = shape_rows(store, [SHAPES[0]] * 6)
    mapper, table = open_mapper(store, models, rows, batch_clips=2, resources={"cpus": 4})
    (whole,) = mapper(table)
    rows[2]["video_key"] = store.put_object(b"no clip", ".mp4").key
    (rest,) = mapper(pa.Table.from_pylist(rows, schema=table.schema))
    assert rest.rejects["item_id"].to_pylist() == [rows[2]["clip_id"]]
    assert rest.rows["clip_id"].to_pylist() == [r["clip_id"] for i, r in enumerate(rows) if i != 2]
    in_whole_batches = [0, 1, 4, 5]
    assert (
        rest.rows.take([0, 1, 3, 4])["latent"].to_pylist()
        == whole.rows.take(in_whole_batches)["latent"].to_pylist()
    )
    assert (whole.metrics["accelerator_items"], rest.metrics["accelerator_items"]) == (6, 5)


@pytest.mark.slow
def test_concurrent_shards_give_the_same_tokens(store, tmp_path):
    run = execute(store, prepare(store))
    other = open_store((tmp_path / "other").as_uri())
    assert execute(other, prepare(other), _OneByOne()).outputs == run.outputs
    metrics = run.stage("tokens").metrics
    assert metrics["accelerator_items"] == 18
    assert 0 < metrics["accelerator_busy_percent"] < 100
    assert metrics == pytest.approx(store.snapshot(run.outputs["tokens"]).commit.metrics)


def test_failed_shard_stops_the_other(store):
    document = prepare(store)
    bad = shape_rows(store, [(7, 32, 32)])
    good = [shape_rows(store, SHAPES, str(n)) for n in range(4)]
    clips = clips_of(store, good[0], bad, *good[1:])
    document["inputs"]["clips"] = f"snapshot://{clips.id}"
    with pytest.raises(ContractError, match="clips of 7x32x32"):
        execute(store, document)
    assert len(list(store.ledger.list("stages/tokens/shards/"))) < 4


class _OneByOne(InlineEngine):
    """Two shards never run at once."""

    def map(self, task, shards, done):
        worker = ShardWorker(task)
        for shard in shards:
            done(shard, worker(shard))
