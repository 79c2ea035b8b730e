"""A published transformer with random weights, and all that its card is made of."""

import pyarrow as pa
import torch

from tests.support.clip_rows import clip_row, clips_of
from tests.support.loop_rank import commit
from tests.support.token_files import commit_tables, token_rows
from videoar.contracts.contract import load_contract
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.transformer.config import PRESETS
from videoar.model.transformer.network import VideoAR
from videoar.pipeline.presets import with_overrides
from videoar.training.model_store import ClipShape, publish_model

SCALES = [(1, 1), (2, 2), (4, 4)]
SAMPLER = {"guidance": 2.0, "temperature": 0.7}


def tokenizer(store, name="tokenizer", **parents):
    torch.manual_seed(0)
    net = VideoTokenizer(TOKENIZERS["tiny"])
    row = publish_model(net, store, weights=net.state_dict(), step=7, metrics={}, history=[])
    return commit(store, name, "models@1", row, **parents)


def transformer(store, tokenizer_digest, name="model", parents=(), clips=None, **changes):
    torch.manual_seed(1)
    shape = {"scales": SCALES, "time_stride": TOKENIZERS["tiny"].time_stride} | changes
    net = VideoAR(with_overrides(PRESETS["tiny"], shape))
    net.head.weight.data.mul_(50)  # else every bit is a coin, whatever the model is
    row = publish_model(
        net, store, weights=net.state_dict(), step=9, metrics={"loss": 0.5}, history=[],
        tokenizer_digest=tokenizer_digest, clips=clips,
    )  # fmt: skip
    return commit(store, name, "models@1", row, **dict(parents))


def digest_of(snapshot):
    return snapshot.table(["digest"])["digest"][0].as_py()


def published(store):
    """Commit clips, tokenizer, tokens and a transformer on them; return the transformer."""
    clips = clips_of(store, [
        clip_row("a", licence="CC-BY-4.0", origin="camera"),
        clip_row("b", licence="CC0-1.0"),
        clip_row("c"),
    ])  # fmt: skip
    coder = tokenizer(store, clips=clips.id)
    tables = [token_rows(0, 2, (3, 8, 4, 4), SCALES), token_rows(2, 1, (1, 8, 4, 4), SCALES)]
    tokens = commit_tables(store, *tables, clips=clips.id, tokenizer=coder.id)
    parents = {"tokens": tokens.id, "tokenizer": coder.id}
    return transformer(store, digest_of(coder), parents=parents, clips=ClipShape(8.0, 9))


def scored(store, model):
    """Commit samples, scores and a passed decision on a model; return the decision."""
    sample = {
        "sample_id": "0" * 32, "prompt": "p", "label": None, "index": 0, "seed": 0,
        "model_digest": "0" * 64, "tokenizer_digest": "0" * 64, "steps": 9, "num_frames": 9,
        "sampler_json": '{"guidance": 2.0, "temperature": 0.7}', "rate_fps": 8.0, "width_px": 32,
        "height_px": 32, "video_key": "k", "video_sha256": "0" * 64, "video_size_bytes": 1,
    }  # fmt: skip
    score = {
        "metric": "recon/psnr", "status": "ok", "reason": None, "value": 21.5, "ci_low": 21.0,
        "ci_high": 22.0, "chance": None, "higher_is_better": True, "num_samples": 64,
        "num_reference": 64, "lock_digest": "0" * 64, "lock_json": "{}", "details_json": "{}",
    }  # fmt: skip
    missing = score | {"metric": "fvd", "status": "not_evaluated", "value": None, "reason": "r"}
    rule = {
        "rule": "recon/psnr >= 20", "metric": "recon/psnr", "value": 21.5, "bound": 20.0,
        "passed": True, "reason": "", "candidate": model.id, "ref": "champion",
    }  # fmt: skip
    samples = _rows(store, "samples", [sample], model=model.id)
    scores = _rows(store, "scores", [score, missing], samples=samples.id)
    return _rows(store, "releases", [rule], model=model.id, scores=scores.id)


def _rows(store, dataset, rows, **parents):
    contract = f"{dataset}@1"
    table = pa.Table.from_pylist(rows, schema=load_contract(contract).arrow_schema)
    return commit(store, dataset, contract, table, **parents)
