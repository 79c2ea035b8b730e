"""A tokenizer and a token store of random latents, committed for tests of `pretrain`."""

import json

import numpy as np
import pyarrow as pa
import torch

from tests.support.clip_rows import clip_row, clips_of
from tests.support.loop_rank import commit
from videoar.contracts.contract import load_contract
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.storage.token_codec import checksum, pack_bits
from videoar.training.model_store import publish_model

CAPTIONS = ("a red circle moving left", "a blue square moving up", None)


def token_rows(net, captions=CAPTIONS, label=None):
    """Rows of `tokens@1` with latents of 2 x 4 x 4, one per caption."""
    draw = np.random.default_rng(0)
    for i, caption in enumerate(captions):
        latent_TKHW = (2 * draw.standard_normal((2, 8, 4, 4))).astype("<f2")
        latent = torch.from_numpy(latent_TKHW.astype(np.float32)).transpose(0, 1)[None]
        bits = pack_bits([scale[0].numpy() for scale in net.quantizer.encode(latent)])
        yield {
            "clip_id": f"{i:032x}", "source_id": f"{i:064x}", "split": "train", "label": label,
            "caption": caption, "rate_fps": 8.0, "start_s": 0.0, "duration_s": 0.5,
            "t": 2, "k": 8, "h": 4, "w": 4, "bits": bits, "latent": latent_TKHW.tobytes(),
            "bits_xxh3": checksum(bits), "latent_xxh3": checksum(latent_TKHW.tobytes()),
        }  # fmt: skip


def pretrain_inputs(store, captions=CAPTIONS, label=None):
    """Commit a random tokenizer and its tokens; return the inputs of `pretrain`."""
    torch.manual_seed(0)
    net = VideoTokenizer(TOKENIZERS["tiny"])
    rows = publish_model(net, store, weights=net.state_dict(), step=0, metrics={}, history=[])
    tokenizer = commit(store, "tokenizer", "models@1", rows)
    schema = load_contract("tokens@1").arrow_schema
    table = pa.Table.from_pylist(list(token_rows(net, captions, label)), schema=schema)
    table = table.replace_schema_metadata({
        "tokenizer_digest": rows["digest"][0].as_py(),
        "scales": json.dumps(net.cfg.scales),
        "layout_version": "1",
    })
    tokens = commit(store, "tokens", "tokens@1", table, tokenizer=tokenizer.id)
    return {"tokens": tokens, "tokenizer": tokenizer}


def reference_clips(store, captions=(*CAPTIONS, CAPTIONS[0]), label="circle"):
    """Commit rows of clips without videos; return the input `reference` of `generate`."""
    return clips_of(store, [
        clip_row(str(i), caption=caption, label=label, num_frames=5)
        for i, caption in enumerate(captions)
    ])  # fmt: skip
