"""What a tokenizer preset reconstructs after a given CPU time: one row of a table per preset.

    python -m videoar.bench.reconstruction --presets tiny demo small --minutes 10 [--videos FOLDER]

Clips come through the stages `ingest` and `filter` at the preset's size, drawn ones without a
folder; PSNR, SSIM and the use of bits are of val clips, whose sources are not trained on. The
number of steps follows from the time of the first few, as the learning rate needs it beforehand.
Time is CPU time of training alone. Half of the steps are on single frames (as in the demo).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from videoar.core.hardware import hardware
from videoar.engine.inline import InlineEngine
from videoar.evaluation.reconstruction import Validation
from videoar.media.clip_reader import ClipReader
from videoar.model.tokenizer.config import TOKENIZERS, LossWeights, TokenizerTraining
from videoar.pipeline.spec import parse_pipeline
from videoar.runner.execute import Execution
from videoar.stages.train_tokenizer import TrainTokenizerConfig, TrainTokenizerStage
from videoar.stages.train_tokenizer_worker import clip_table
from videoar.storage.store import open_store
from videoar.training.data.clip_cache import ClipCache
from videoar.training.tokenizer import TokenizerTrainer

Clip = np.ndarray
_DRAWN = "rendered://shapes?num_videos=240&seed=0"
_WARM_UP, _TIMED = 3, 5  # steps of either kind before the number of steps is known
_HEADER = (
    "| preset | px | parameters | steps | CPU-s | PSNR dB | SSIM | bits/frame | of them used "
    "| used per scale |\n|---|---|---|---|---|---|---|---|---|---|"
)


def find_clips(videos: str, preset: str, folder: str) -> tuple[list[Clip], list[Clip]]:
    """Ingest and filter an input; return clips to train on and clips to measure on, decoded."""
    sizes = [list(TOKENIZERS[preset].size_px)]
    document = {
        "pipeline": "reconstruction",
        "inputs": {"videos": videos},
        "stages": {
            "clips": {"stage": "ingest", "from": {"sources": "videos"}, "size_px": sizes},
            "good": {"stage": "filter", "from": {"clips": "clips"}, "policy": "permissive"},
        },
    }
    store = open_store(Path(folder).as_uri())
    run = Execution(parse_pipeline(document, "reconstruction"), store, InlineEngine()).run()
    if "good" not in run.outputs:
        sys.exit(f"{videos} gave no clips: {[(s.name, s.status, s.error) for s in run.stages]}")
    config = TrainTokenizerConfig(preset=preset, validation_clips=24, max_clips=1024)
    rows = TrainTokenizerStage(config).select_clips(clip_table(store.snapshot(run.outputs["good"])))
    train, val = (list(ClipCache(ClipReader(store.objects), of_split)) for of_split in rows)
    return train, val


def options(steps: int, image_steps: int, given: argparse.Namespace) -> TokenizerTraining:
    """Return the demo's way of training, for so many steps."""
    return TokenizerTraining(
        steps=steps,
        image_steps=image_steps,
        batch_clips=given.batch_clips,
        excerpt_frames=5,
        learning_rate=given.learning_rate,
        ema=0.99,
        drop_scales=given.drop_scales,
        weights=LossWeights(l1=0, l2=2),
        seed=given.seed,
    )


def seconds_per_step(preset: str, clips: list[Clip], given: argparse.Namespace) -> float:
    """Return the CPU time of a step on images and one on excerpts, on average."""
    total = 0.0
    for image_steps in (0, _WARM_UP + _TIMED):
        tried = options(_WARM_UP + _TIMED, image_steps, given)
        trainer = TokenizerTrainer(TOKENIZERS[preset], tried, clips)
        for _ in range(_WARM_UP):
            trainer.train_step()
        before = time.process_time()
        for _ in range(_TIMED):
            trainer.train_step()
        total += (time.process_time() - before) / _TIMED
    return total / 2


def row(preset: str, given: argparse.Namespace) -> str:
    """Train a preset and return its row."""
    with tempfile.TemporaryDirectory(prefix="videoar-bench-") as folder:
        train, val = find_clips(given.videos, preset, folder)
        steps = max(2, int(60 * given.minutes / seconds_per_step(preset, train, given)))
        trainer = TokenizerTrainer(TOKENIZERS[preset], options(steps, steps // 2, given), train)
        before = time.process_time()
        while trainer.step < steps:
            trainer.train_step()
        spent = time.process_time() - before
        found = Validation(val, {}).measure(trainer.averaged())
    if not found:
        sys.exit(f"{given.videos} gave no clips of the val split")
    scales = range(1, len(TOKENIZERS[preset].scales) + 1)
    used = " ".join(f"{found[f'scale_{scale}/bit_entropy']:.2f}" for scale in scales)
    cells = (
        preset,
        "x".join(map(str, TOKENIZERS[preset].size_px)),
        f"{trainer.net.num_parameters / 1e6:.2f} M",
        steps,
        f"{spent:.0f}",
        f"{found['psnr_db']:.2f}",
        f"{found['ssim']:.4f}",
        f"{found['capacity/bits_per_frame']:.0f}",
        f"{found['entropy/bits_per_frame'] / found['capacity/bits_per_frame']:.0%}",
        used,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Measure and say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--presets", nargs="+", default=["tiny", "demo"], choices=TOKENIZERS)
    parser.add_argument("--minutes", type=float, default=1.0, help="CPU time per preset")
    parser.add_argument("--videos", default=_DRAWN, help="folder or URL; default: drawn clips")
    parser.add_argument("--batch-clips", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--drop-scales", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    say(f"{given.videos}, seed {given.seed}, {hardware()}\n\n{_HEADER}")
    for preset in given.presets:
        say(row(preset, given))


def say(text: str) -> None:
    """Print at once, as the next row may take long."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
