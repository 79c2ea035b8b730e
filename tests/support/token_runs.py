"""Runs of `tokenize` alone on drawn clips, in a process that may be told when to die.

A module of its own, so that a fork server can import it once for all of them.
"""

import os
import signal
from multiprocessing import get_context

import torch

from tests.support.clip_rows import clip_row, clips_of, stored
from tests.support.stage_chain import commit
from videoar.engine.inline import InlineEngine
from videoar.media.synthetic import draw, scenes
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.pipeline.spec import parse_pipeline
from videoar.pipeline.stage import Output
from videoar.runner.execute import Execution
from videoar.stages import tokenize
from videoar.storage.store import open_store
from videoar.training.model_store import publish_model

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "pytest", "deltalake", "pandas"])
SHAPES = ((9, 32, 32), (5, 32, 32), (9, 64, 64))


def shape_rows(store, shapes, prefix=""):
    """Return a row per shape (frames, height, width), with a drawn clip in the store behind it."""
    rows = []
    for i, (frames, height, width) in enumerate(shapes):
        picture = draw(scenes()[i % len(scenes())], frames, max(height, width), 8.0)
        (video,) = stored(store, [picture[:, :height, :width]])
        rows.append(clip_row(f"{prefix}{i}", **video))
    return rows


def untrained(store, preset="tiny"):
    """Commit a tokenizer with drawn weights."""
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


def _run(url: str, document: dict, crash_at: str, batch: int) -> None:
    os.environ["VIDEOAR_CRASH_AT"] = crash_at  # nothing has read the environment before
    count = 0

    def die_at(name: str) -> None:
        nonlocal count
        count += 1
        if count == batch:
            os.kill(os.getpid(), signal.SIGKILL)

    tokenize.crash_point = die_at
    execute(open_store(url), document)


def run_in_child(url: str, document: dict, crash_at: str = "", batch: int = 0) -> int | None:
    """Run in a process that dies at a crash point, or after so many batches; return its code."""
    child = _CONTEXT.Process(target=_run, args=(url, document, crash_at, batch))
    child.start()
    child.join(120)
    return child.exitcode


def damaged(store, row):
    """Return a row of `clips@1` whose stored object is no video."""
    return row | {"video_key": store.put_object(b"no clip", ".mp4").key}
