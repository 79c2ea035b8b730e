"""Clips to a tokenizer to tokens, on a store with a handful of drawn clips."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.clip_rows import clips_of, drawn_rows
from videoar.core.errors import ConfigError, GateError
from videoar.core.types import Provenance
from videoar.media.decode import decode_clip
from videoar.media.rendered import scenes
from videoar.model.tokenizer import video_from_frames
from videoar.stages.tokenize import TokenizeConfig, TokenizeStage
from videoar.stages.train_tokenizer import (
    StoredClips,
    TrainTokenizerConfig,
    TrainTokenizerStage,
)
from videoar.storage.store import open_store
from videoar.storage.token_codec import checksum, unpack_bits
from videoar.training.checkpoint import load_tokenizer

TRAINING = {"steps": 4, "batch_clips": 2, "excerpt_frames": 5, "learning_rate": 1e-3}


class MemoryRank:
    """A rank whose checkpoints stay in its folder."""

    index, world_size = 0, 1

    def __init__(self, scratch):
        self.scratch, self.saved, self.steps = scratch, {}, []

    def report(self, step, total, metrics):
        self.steps.append(step)

    def save_checkpoint(self, step, folder):
        self.saved[step] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def load_checkpoint(self, into):
        if not self.saved:
            return None
        for name, data in self.saved[max(self.saved)].items():
            (into / name).write_bytes(data)
        return max(self.saved)


def commit(store, dataset, contract, table):
    target = store.dataset(dataset, contract)
    provenance = Provenance(
        run_id="r", pipeline="p", stage=dataset, fingerprint=dataset, code_version="0"
    )
    return target.commit([target.write(table)], provenance, {})


@pytest.fixture
def store(tmp_path):
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def clips(store):
    rows = [row | {"span_start_us": 500_000} for row in drawn_rows(store, scenes()[:3])]
    rows[0]["caption"], rows[2]["split"] = scenes()[0].prompt, "val"
    return clips_of(store, rows)


def train(store, clips, rank, **options):
    config = TrainTokenizerConfig(preset="tiny", training=TRAINING, **options)
    return TrainTokenizerStage(config).run({"clips": clips}, store, rank)


def test_training_publishes_the_average_and_resumes_exactly(store, clips, tmp_path):
    rank = MemoryRank(tmp_path / "a")
    output = train(store, clips, rank, checkpoint_every=2)
    (row,) = output.rows.to_pylist()
    assert (row["kind"], row["step"], rank.steps) == ("tokenizer", 4, [1, 2, 3, 4])
    assert {"psnr_db", "val_psnr_db", "latent_norm"} <= dict(row["metrics"]).keys()
    assert [point["step"] for point in json.loads(row["history_json"])] == [0, 1, 2, 3]
    killed = MemoryRank(tmp_path / "b")
    killed.saved = {2: rank.saved[2]}
    again = train(store, clips, killed)
    assert killed.steps == [3, 4]
    assert again.rows.equals(output.rows)


def test_clips_that_cannot_train_it_are_refused(store, clips, tmp_path):
    with pytest.raises(ConfigError, match=r"\(32, 32\).*\(64, 64\)"):
        train(store, clips, MemoryRank(tmp_path), tokenizer={"patch_px": 8})
    table = clips.table()
    only_val = table.set_column(table.column_names.index("split"), "split", pa.array(["val"] * 3))
    with pytest.raises(GateError, match="no clips"):
        train(store, commit(store, "val", "clips@1", only_val), MemoryRank(tmp_path))


def test_lpips_weights_count_and_must_be_there(tmp_path):
    path = tmp_path / "lpips.safetensors"
    stage = TrainTokenizerStage(TrainTokenizerConfig(preset="tiny", lpips_weights=str(path)))
    with pytest.raises(ConfigError, match="No such file"):
        stage.tools()
    path.write_bytes(b"weights")
    assert len(stage.tools()["lpips"]) == 64


def test_decoded_clips_are_kept_up_to_the_limit(store, clips):
    rows = clips.table().to_pylist()
    stored = StoredClips(store, rows, num_cached=1)
    assert stored[0] is stored[0]
    assert stored[1] is not stored[1]
    assert np.array_equal(stored[1], decode_clip(store.objects.get(rows[1]["video_key"])))


def test_tokens_hold_what_the_tokenizer_says(store, clips, tmp_path):
    models = commit(store, "tok", "models@1", train(store, clips, MemoryRank(tmp_path)).rows)
    net, digest = load_tokenizer(models, store)
    inputs = {"clips": clips, "tokenizer": models}
    mapper = TokenizeStage(TokenizeConfig(batch_clips=2)).open(inputs, store)
    output = mapper(clips.table())
    assert mapper(clips.table()).rows.equals(output.rows)
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
