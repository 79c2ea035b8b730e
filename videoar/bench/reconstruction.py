"""Reconstruction quality of tokenizer presets after a given CPU time: one table row per preset.

    python -m videoar.bench.reconstruction --presets tiny demo small --minutes 10 [--videos FOLDER]

Clips are made by the stages `ingest` and `filter` at the preset's size, from synthetic videos if no
folder is given. PSNR, SSIM and the use of bits are measured on val clips, whose sources are not
trained on. The number of steps is estimated from a few of them, because the learning rate schedule
needs it in advance. Time is CPU time of training only. Half of the steps are on single frames, as
in the demo.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videoar.bench.stores import run_stages
from videoar.core.hardware import hardware
from videoar.evaluation.reconstruction import Validation
from videoar.media.clip_reader import ClipReader
from videoar.model.tokenizer.config import TOKENIZERS, LossWeights, TokenizerTraining
from videoar.stages.train_tokenizer.stage import TrainTokenizerConfig, TrainTokenizerStage
from videoar.stages.train_tokenizer.worker import clip_table
from videoar.storage.store import open_store
from videoar.training.data.clip_cache import ClipCache
from videoar.training.tokenizer import TokenizerTrainer

Clip = np.ndarray
_SYNTHETIC = "rendered://shapes?num_videos=240&seed=0"
_WARM_UP, _TIMED = 3, 5  # steps of each kind, to estimate the time of a step
_HEADER = (
    "| preset | px | parameters | steps | CPU-s | PSNR dB | SSIM | bits/frame | of them used "
    "| used per scale |\n|---|---|---|---|---|---|---|---|---|---|"
)


def find_clips(videos: str, preset: str, folder: str) -> tuple[list[Clip], list[Clip]]:
    """Ingest and filter an input; return decoded clips to train on and to measure on."""
    stages: dict[str, dict[str, Any]] = {
        "clips": {"stage": "ingest", "size_px": [list(TOKENIZERS[preset].size_px)]},
        "good": {"stage": "filter", "from": {"clips": "clips"}, "policy": "permissive"},
    }
    store = open_store(Path(folder).as_uri())
    run = run_stages(store, {"sources": videos}, stages)
    if "good" not in run.outputs:
        sys.exit(
            f"{videos} has no usable clips: {[(s.name, s.status, s.error) for s in run.stages]}"
        )
    config = TrainTokenizerConfig(preset=preset, validation_clips=24, max_clips=1024)
    rows = TrainTokenizerStage(config).select_clips(clip_table(store.snapshot(run.outputs["good"])))
    train, val = (list(ClipCache(ClipReader(store.objects), of_split)) for of_split in rows)
    return train, val


def options(steps: int, image_steps: int, arguments: argparse.Namespace) -> TokenizerTraining:
    """Return the demo's training options for a number of steps."""
    return TokenizerTraining(
        steps=steps,
        image_steps=image_steps,
        batch_clips=arguments.batch_clips,
        excerpt_frames=5,
        learning_rate=arguments.learning_rate,
        ema=0.99,
        drop_scales=arguments.drop_scales,
        weights=LossWeights(l1=0, l2=2),
        seed=arguments.seed,
    )


def seconds_per_step(preset: str, clips: list[Clip], arguments: argparse.Namespace) -> float:
    """Return the mean CPU time of a step on images and one on excerpts."""
    total = 0.0
    # 0: all steps on excerpts, which cost more than those on single frames
    for image_steps in (0, _WARM_UP + _TIMED):
        trial = options(_WARM_UP + _TIMED, image_steps, arguments)
        trainer = TokenizerTrainer(TOKENIZERS[preset], trial, clips)
        # the first steps also allocate memory and fill caches
        for _ in range(_WARM_UP):
            trainer.train_step()
        before = time.process_time()
        for _ in range(_TIMED):
            trainer.train_step()
        total += (time.process_time() - before) / _TIMED
    # the mean of both kinds, because half of the steps are of each
    return total / 2


def measure_preset(preset: str, arguments: argparse.Namespace) -> str:
    """Train a preset; return its row of the Markdown table."""
    with tempfile.TemporaryDirectory(prefix="videoar-bench-") as folder:
        train, val = find_clips(arguments.videos, preset, folder)
        steps = max(2, int(60 * arguments.minutes / seconds_per_step(preset, train, arguments)))
        trainer = TokenizerTrainer(TOKENIZERS[preset], options(steps, steps // 2, arguments), train)
        before = time.process_time()
        while trainer.step < steps:
            trainer.train_step()
        spent = time.process_time() - before
        measured = Validation(val, {}).measure(trainer.averaged())
    if not measured:
        sys.exit(f"{arguments.videos} has no clips of the val split")
    scales = range(1, len(TOKENIZERS[preset].scales) + 1)
    used = " ".join(f"{measured[f'scale_{scale}/bit_entropy']:.2f}" for scale in scales)
    cells = (
        preset,
        "x".join(map(str, TOKENIZERS[preset].size_px)),
        f"{trainer.net.num_parameters / 1e6:.2f} M",
        steps,
        f"{spent:.0f}",
        f"{measured['psnr_db']:.2f}",
        f"{measured['ssim']:.4f}",
        f"{measured['capacity/bits_per_frame']:.0f}",
        f"{measured['entropy/bits_per_frame'] / measured['capacity/bits_per_frame']:.0%}",
        used,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--presets", nargs="+", default=["tiny", "demo"], choices=TOKENIZERS)
    parser.add_argument("--minutes", type=float, default=1.0, help="CPU time per preset")
    parser.add_argument("--videos", default=_SYNTHETIC, help="folder or URL; default: synthetic")
    parser.add_argument("--batch-clips", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--drop-scales", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print_now(f"{arguments.videos}, seed {arguments.seed}, {hardware()}\n\n{_HEADER}")
    for preset in arguments.presets:
        print_now(measure_preset(preset, arguments))


def print_now(text: str) -> None:
    """Print and flush, because the next row may take minutes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
