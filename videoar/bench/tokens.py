"""`bench tokenize`: the stage, from stored clips to a snapshot, compared with its network alone.

    encode loop    the network over the same clips, already decoded in memory, in equal batches: the
                   limit if reading and writing took no time
    simple loop    read, decode and encode one batch after the other; nothing is packed or stored

Wall time, because overlap is what is measured: a stage uses one core for the network and another
one for everything else. Weights are random; speed does not depend on them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videoar.bench.films import Film, copies
from videoar.bench.result import BenchResult, compare, in_turns
from videoar.bench.stores import commit_tokenizer, decoded, ingested, run_stages
from videoar.core.scratch import Scratch
from videoar.media.clip_reader import ClipReader
from videoar.media.transcode import encode
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer, video_from_frames
from videoar.storage.store import Store, open_store

_SIZES_PX = (64, 32)  # the first is the headline; at smaller sizes files cost more per clip
_PRESET = "demo"  # presets of the paper take half a minute per clip and core
_BATCH = 8  # the default of the stage
_NUM_SOURCES = 20  # of some 35 clips each
_FILM = Film(79, num_shots=22, height_px=240, width_px=426, rate_fps=24.0)
_ENCODE, _SIMPLE = "encode loop", "simple loop"
Rows = list[dict[str, Any]]


def run(
    rounds: int,
    film: Film = _FILM,
    num_sources: int = _NUM_SOURCES,
    sizes_px: Sequence[int] = _SIZES_PX,
) -> BenchResult:
    """Measure in turns; each source is a copy of the film."""
    figures: dict[str, list[float]] = {}
    table: dict[str, dict[str, float]] = {}
    with Scratch() as folder:
        path = folder / "film.mp4"
        encode(film.frames(), path, film.rate_fps, crf=23)
        copies(path, folder / "videos", num_sources)
        for size_px in sizes_px:
            store = open_store((folder / f"{size_px}px").as_uri())
            contest = _Contest(store, folder / "videos", size_px)
            runs = in_turns(contest.contestants, rounds)
            figures = figures or runs  # the first size only: see `_SIZES_PX`
            case = compare("tokenize", "", runs)
            table[f"{size_px}px"] = {
                **{f"x_{name}".replace(" ", "_"): x for name, x in case.ratios.items()},
                "clips_per_s": round(case.ours.median, 1),
                "busy_percent": round(float(np.median(contest.busy_percent)), 1),
            }
    unit = f"clips of 17 frames at {sizes_px[0]} px per second, tokenizer `{_PRESET}`"
    return compare("tokenize", unit, figures, cases=table)


class _Contest:
    """The clips of one size, in the store and in memory, and the contestants."""

    def __init__(self, store: Store, videos: Path, size_px: int) -> None:
        self.store = store
        self.clips = ingested(
            store, str(videos), size_px=size_px, rate_fps=8.0, find_shots=False,
            max_clips_per_source=64, sources_per_shard=4,
        )  # fmt: skip
        torch.manual_seed(0)  # equal tokens in every run
        self.net = VideoTokenizer(TOKENIZERS[_PRESET].for_size(size_px, size_px)).eval()
        self.tokenizer = commit_tokenizer(store, self.net)
        self.rows: Rows = self.clips.table().to_pylist()
        # decoded beforehand: `encode loop` is to measure the network alone
        self.frames = [clip.frames for clip in decoded(store, self.clips)]

        self.busy_percent: list[float] = []
        """Use of the device by the stage, a value per turn."""

    @property
    def contestants(self) -> dict[str, Callable[[int], float]]:
        """Functions that encode all clips once and return clips per second."""
        works = {"ours": self._stage, _ENCODE: self._encode, _SIMPLE: self._simple}
        return {name: partial(self._rate, work) for name, work in works.items()}

    def _rate(self, work: Callable[[int], None], turn: int) -> float:
        start = time.perf_counter()
        work(turn)
        return len(self.rows) / (time.perf_counter() - start)

    def _stage(self, turn: int) -> None:
        inputs = {"clips": self.clips, "tokenizer": self.tokenizer}
        stage = {"stage": "tokenize", "batch_clips": _BATCH}
        # Another stage name per turn: nothing is reused.
        run = run_stages(self.store, inputs, {f"tokens{turn}": stage})
        metrics = run.stage(f"tokens{turn}").metrics
        self.busy_percent.append(metrics["accelerator_busy_percent"])

    def _encode(self, _: int) -> None:
        self._encode_all(iter(self.frames))

    def _simple(self, _: int) -> None:
        self._encode_all(map(ClipReader(self.store.objects), self.rows))

    def _encode_all(self, frames: Iterator[np.ndarray]) -> None:
        torch.set_num_threads(1)  # as the stage does with one core
        with torch.no_grad():
            while clips := list(islice(frames, _BATCH)):
                video = video_from_frames(torch.from_numpy(np.stack(clips)))
                # fp16 and the bits, too: the stage computes both for each clip
                self.net.quantizer.encode(self.net.encode(video).half())
