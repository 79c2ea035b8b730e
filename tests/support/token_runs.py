"""Runs of `tokenize` or `features` on drawn clips, here or in a process that is killed somewhere.

A module of its own, so that the fork server imports it once for all of them.
"""

from functools import cache

import torch

from tests.support.child_process import exit_code, preload
from tests.support.clip_rows import clip_row, clips_of, video_columns
from tests.support.stage_chain import commit
from videoar.engine.inline import InlineEngine
from videoar.media.synthetic import draw, scenes
from videoar.media.transcode import encode_clips
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.pipeline.spec import parse_pipeline
from videoar.pipeline.stage import Output
from videoar.runner.execute import Execution
from videoar.storage.store import open_store
from videoar.training.model_store import publish_model

preload(__name__)
SHAPES = ((9, 32, 32), (5, 32, 32), (9, 64, 64))


def shape_rows(store, shapes, prefix=""):
    """Return a row per shape (frames, height, width), with a drawn clip in the store."""
    rows = []
    for i, shape in enumerate(shapes):
        video = video_columns(store, _drawn(i % len(scenes()), *shape), *shape)
        rows.append(clip_row(f"{prefix}{i}", **video))
    return rows


@cache  # every clip costs a run of ffmpeg, and most tests draw the same ones
def _drawn(scene, num_frames, height_px, width_px):
    frames = draw(scenes()[scene], num_frames, max(height_px, width_px), 8.0)
    (data,) = encode_clips([frames[:, :height_px, :width_px]], 8.0, 12)
    return data


def untrained(store, preset="tiny"):
    """Commit a tokenizer with random weights."""
    torch.manual_seed(0)
    net = VideoTokenizer(TOKENIZERS[preset])
    row = publish_model(net, store, weights=net.state_dict(), step=0, metrics={}, history=[])
    return commit(store, "tok", "models@1", [Output(row)])


def prepare(store, num_files=3, clips_per_file=6):
    """Commit clips of several shapes in several files, and a tokenizer; return the pipeline."""
    shapes = [SHAPES[i % len(SHAPES)] for i in range(clips_per_file)]
    clips = clips_of(store, *(shape_rows(store, shapes, f"{n}-") for n in range(num_files)))
    return {
        "pipeline": "p",
        "inputs": {
            "clips": f"snapshot://{clips.id}",
            "tokenizer": f"snapshot://{untrained(store).id}",
        },
        "stages": {
            "tokens": {
                "stage": "tokenize",
                "from": {"clips": "clips", "tokenizer": "tokenizer"},
                "batch_clips": 2,
            }
        },
    }


def execute(store, document, engine=None):
    return Execution(parse_pipeline(document, "t"), store, engine or InlineEngine()).run()


def _run(url: str, document: dict) -> None:
    execute(open_store(url), document)


def run_in_child(url: str, document: dict, crash_at: str = "") -> int | None:
    """Run in a process that is killed at a crash point; return its exit code."""
    return exit_code(_run, url, document, VIDEOAR_CRASH_AT=crash_at)


def damaged(store, row):
    """Return a row of `clips@1` whose stored object is no video."""
    return row | {"video_key": store.put_object(b"no clip", ".mp4").key}
