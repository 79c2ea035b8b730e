"""Scores of sampler settings, and of ways to make long videos, on the synthetic corpus.

    python -m videoar.bench.sampling settings OUT.jsonl STORE [STORE ...]
    python -m videoar.bench.sampling long OUT.jsonl STORE [STORE ...]

A store is one that `make demo` has written: its `champion` is sampled, val clips of its corpus are
the reference. Clips of all stores are pooled, because champions of equal settings differ as much as
settings do. A line of OUT is a finished row: the same call makes those that are missing. Frames are
scored before they are encoded. Times are CPU time of sampling and decoding to pixels.

Axes: N clips, T frames, C colours, D features.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videoar.admin.loaded_model import load_stored
from videoar.core.hardware import hardware
from videoar.core.types import Row
from videoar.evaluation.frechet import frechet_interval, frechet_of_vectors
from videoar.evaluation.i3d import random_i3d
from videoar.evaluation.measure import DISTANCE_FRAMES, Clip, features_ND
from videoar.evaluation.scorecard import mean_interval
from videoar.evaluation.synthetic import ATTRIBUTES, classify, wilson
from videoar.media.clip_reader import ClipReader
from videoar.media.clip_scores import score_span
from videoar.media.synthetic import parse_prompt, prompts
from videoar.model.tokenizer.network import frames_from_video
from videoar.model.transformer.sampling import APG, SamplerSettings, SlidingWindow, sample
from videoar.storage.store import open_store
from videoar.training.prompts import Prompt

Frames = NDArray[np.uint8]
Array = NDArray[np.float64]

_DEMO = "demo: guidance `ucf`, temperature 0.7"
SETTINGS: dict[str, dict[str, Any]] = {
    _DEMO: {},
    "temperature 1": {"temperature": 1.0},
    "temperature 0.5": {"temperature": 0.5},
    "greedy": {"greedy": True},
    "temperature 1, 0.7, 0.4 by scale": {"temperature": (1.0, 0.7, 0.4)},
    "temperature 0.4, 0.7, 1 by scale": {"temperature": (0.4, 0.7, 1.0)},
    "guidance 1": {"guidance": 1.0},
    "guidance 3": {"guidance": 3.0},
    "guidance `t2v`": {"guidance": "t2v"},
    "guidance interval 0 to 0.5": {"guidance_interval": (0.0, 0.5)},
    "guidance interval 0.5 to 1": {"guidance_interval": (0.5, 1.0)},
    "APG 0.05, guidance 34": {"apg": APG(), "guidance": 34.0},
    "APG 0.2, guidance 34": {"apg": APG(norm_threshold=0.2), "guidance": 34.0},
}
"""What differs from the demo's settings, by name."""
LONG: dict[str, tuple[bool, dict[str, Any]]] = {
    "bits, 3 of 5 kept": (False, {}),
    "encoded again, 3 of 5 kept": (True, {}),
    "bits, greedy": (False, {"greedy": True}),
    "bits, guidance 3": (False, {"guidance": 3.0}),
}
"""Ways to make long videos, by name: whether frames are encoded again, and what differs from the
demo's settings."""
_KEPT = 3  # latent frames
_PLACES = (0.0, 1 / 3, 2 / 3, 1.0)  # of windows that are scored, as shares of a long video
_LUMA = np.array([0.299, 0.587, 0.114])  # BT.601
_BATCH = 11


class _Champion:
    """The promoted model of a store, and real clips."""

    def __init__(self, url: str) -> None:
        self._store = open_store(url)
        self.model = load_stored(self._store, "champion")
        card, stride = self.model.card, self.model.model.cfg.time_stride
        self.longest, self.rate_fps, self.stride = card.num_frames or 0, card.rate_fps or 0, stride
        self.cpu_s, self.steps = 0.0, 0

    def requested(self, per_prompt: int) -> list[Row]:
        """Return a prompt and a seed per sample: each prompt once in random order, then again."""
        rows = [Prompt(prompt=text).row(text) for text in prompts()]
        samples = self.model.templates.samples(rows, 0, per_prompt)
        return sorted(samples, key=lambda row: (row["index"], row["seed"]))

    def real_clips(self, count: int) -> tuple[list[Frames], list[Frames]]:
        """Return val clips, and as many others for the distance that perfect samples have."""
        snapshot = self._store.snapshot("champion")
        for port in ("tokens", "clips"):
            snapshot = self._store.snapshot(snapshot.commit.provenance.parents[port])
        rows = sorted(snapshot.table().to_pylist(), key=_clip_id)
        val = [row for row in rows if row["split"] == "val"]
        others = [*val[count:], *(row for row in rows if row["split"] != "val")]
        read = ClipReader(self._store.objects)
        clips = [[read(row) for row in chosen[:count]] for chosen in (val, others)]
        read.close()
        return clips[0], clips[1]

    def videos(
        self,
        rows: Sequence[Row],
        num_frames: int,
        settings: SamplerSettings,
        window: SlidingWindow | None = None,
    ) -> Iterator[Frames]:
        """Yield frames_THWC per row; count CPU seconds and passes."""
        for first in range(0, len(rows), _BATCH):
            batch, start = rows[first : first + _BATCH], time.process_time()
            made = sample(
                self.model.model, self.model.tokenizer, [row["prompt"] for row in batch],
                num_frames, seeds=[row["seed"] for row in batch], settings=settings, window=window,
            )  # fmt: skip
            yield from frames_from_video(made.video_B3THW).cpu().numpy()
            self.cpu_s, self.steps = self.cpu_s + time.process_time() - start, made.steps


def _clip_id(row: Row) -> str:
    return str(row["clip_id"])


class _Distance:
    """Frechet distance to the reference, in the features that the demo is scored with."""

    def __init__(self, champions: Sequence[_Champion], num_clips: int) -> None:
        self.per_champion = num_clips // len(champions)
        self._network = random_i3d(0)
        real = [champion.real_clips(self.per_champion) for champion in champions]
        reference, others = (
            [clip for clips in of for clip in clips] for of in zip(*real, strict=True)
        )
        self._reference_ND = self._features(reference)
        self.sharpness, self.floor = _sharpness(reference), self(others)

    def _features(self, clips: Sequence[Frames]) -> Array:
        return features_ND(self._network, [Clip("", frames, 0, "") for frames in clips])

    def __call__(self, clips: Sequence[Frames]) -> list[float]:
        """Return the distance and its 95 % interval."""
        own_ND = self._features(clips)
        value = frechet_of_vectors(own_ND, self._reference_ND)
        return [value, *frechet_interval(own_ND, self._reference_ND, seed=0)]


def _sharpness(clips: Sequence[Frames]) -> float:
    return float(np.mean([score_span(frames @ _LUMA)["blur_p10"] for frames in clips]))


def _hits(frames: Frames, row: Row, rate_fps: float) -> dict[str, bool]:
    """Return which attributes of the prompt a clip shows."""
    seen, scene = classify(frames, rate_fps), parse_prompt(row["prompt"])
    return {name: getattr(seen, name) == getattr(scene, name) for name in ATTRIBUTES}


def _settings(changes: Mapping[str, Any]) -> SamplerSettings:
    return SamplerSettings(**{"guidance": "ucf", "temperature": 0.7, **changes})


def settings_row(champions: Sequence[_Champion], distance: _Distance, name: str, num: int) -> Row:
    """Return the scores of one setting, `num` samples of each prompt and champion."""
    settings = _settings(SETTINGS[name])
    hits, clips, sharpness = [], list[Frames](), []
    for champion in champions:
        rows, champion.cpu_s = champion.requested(num), 0.0
        own = list(champion.videos(rows, champion.longest, settings))
        hits += [_hits(*pair, champion.rate_fps) for pair in zip(own, rows, strict=True)]
        sharpness.append(_sharpness(own))
        clips += own[: distance.per_champion]
    return {
        **{name: [int(hit[name]) for hit in hits] for name in ATTRIBUTES},
        "distance": distance(clips),
        "sharpness": float(np.mean(sharpness)) / distance.sharpness,
        "steps": champions[0].steps,
        "cpu_s": sum(champion.cpu_s for champion in champions) / len(hits),
    }


def long_row(champions: Sequence[_Champion], distance: _Distance, name: str, seconds: float) -> Row:
    """Return scores of long videos: of joins of windows, and of places over their length."""
    first = champions[0]  # all have clips of one length
    longest, stride, (reencode, options) = first.longest, first.stride, LONG[name]
    window, settings = SlidingWindow(longest, _KEPT, reencode), _settings(options)
    total = 1 + stride * round(seconds * first.rate_fps / stride)
    starts = [round(place * (total - longest)) for place in _PLACES]
    colours = []
    clips: list[list[Frames]] = [[] for _ in starts]
    hits: list[list[bool]] = [[] for _ in starts]
    for champion in champions:
        rows, champion.cpu_s = champion.requested(1)[: distance.per_champion], 0.0
        made = champion.videos(rows, total, settings, window)
        for frames, row in zip(made, rows, strict=True):
            colours.append(frames.mean(axis=(1, 2)))
            for start, of_place, right in zip(starts, clips, hits, strict=True):
                of_place.append(frames[start : start + DISTANCE_FRAMES])
                seen = _hits(of_place[-1], row, champion.rate_fps)
                right.append(seen["colour"] and seen["shape"])
    colour_NTC = np.stack(colours)
    means = [colour_NTC[:, start : start + DISTANCE_FRAMES].mean(axis=1) for start in starts]
    new = stride * (1 + longest // stride - _KEPT)  # frames of a window
    return {
        "shifts": _shifts(colour_NTC, longest, new, stride),
        "drift": [float(np.linalg.norm(mean - means[0], axis=1).mean()) for mean in means],
        "sharpness": [_sharpness(of_place) / distance.sharpness for of_place in clips],
        "right": [float(np.mean(right)) for right in hits],
        "distance": [distance(of_place) for of_place in clips],
        "cpu_s": sum(champion.cpu_s for champion in champions) / len(colours),
    }


def _shifts(colour_NTC: Array, longest: int, new: int, stride: int) -> list[list[float]]:
    """Return the mean shift of a frame's mean colour from the frame before, with 95 % intervals.

    At joins of windows, at other first frames of a latent frame, and elsewhere; all behind the
    first window, in levels of 255.
    """
    shift_NT = np.linalg.norm(np.diff(colour_NTC, axis=1), axis=2)[:, longest - 1 :]
    frame = np.arange(shift_NT.shape[1])
    is_join, is_latent = frame % new == 0, frame % stride == 0
    chosen = (is_join, is_latent & ~is_join, ~is_latent)
    of_video = [shift_NT[:, which].mean(axis=1) for which in chosen]
    return [[float(mean.mean()), *mean_interval(list(mean), 0)] for mean in of_video]


def _settings_table(rows: Mapping[str, Row], floor: Sequence[float]) -> Iterator[str]:
    yield (
        "| | shape | all three, difference | colour | motion | distance | sharpness | passes"
        " | CPU s |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        shares = [_share(row[attribute]) for attribute in ("shape", "colour", "motion")]
        gains = list(_all(row) - _all(rows[_DEMO]))
        low, high = mean_interval(gains, 0)
        gain = f"{np.mean(gains):+.3f} [{low:+.3f}, {high:+.3f}]"
        yield (
            f"| {name} | {shares[0]} | {gain} | {shares[1]} | {shares[2]} | "
            f"{_interval(row['distance'])} | {row['sharpness']:.2f} | {row['steps']} | "
            f"{row['cpu_s']:.3f} |"
        )
    yield f"| other real clips | | | | | {_interval(floor)} | | | |"


def _all(row: Row) -> Array:
    """Return 1 for samples with all attributes of their prompts, else 0."""
    hits: Array = np.prod([row[name] for name in ATTRIBUTES], axis=0, dtype=np.float64)
    return hits


def _share(hits: Sequence[int]) -> str:
    return _interval([float(np.mean(hits)), *wilson(sum(hits), len(hits))])


def _interval(values: Sequence[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def _long_tables(rows: Mapping[str, Row], floor: Sequence[float]) -> Iterator[str]:
    yield "| | at joins | at other latent frames | elsewhere | CPU s |\n|---|---|---|---|---|"
    for name, row in rows.items():
        shifts = " | ".join(map(_interval, row["shifts"]))
        yield f"| {name} | {shifts} | {row['cpu_s']:.2f} |"
    places = " | ".join(f"at {place:.0%}" for place in _PLACES)
    yield f"\n| | | {places} |\n|---|---|{'---|' * len(_PLACES)}"
    for name, row in rows.items():
        for what, format_ in (("drift", "{:.1f}"), ("sharpness", "{:.2f}"), ("right", "{:.2f}")):
            yield f"| {name} | {what} | " + " | ".join(map(format_.format, row[what])) + " |"
        yield f"| {name} | distance | " + " | ".join(map(_interval, row["distance"])) + " |"
    yield f"| other real clips | distance | {_interval(floor)} |"


def main() -> None:
    """Make the rows that OUT does not have; print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("settings", "long"))
    parser.add_argument("out", type=Path)
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--per-prompt", type=int, default=1, help="samples of each, per store")
    parser.add_argument("--seconds", type=float, default=60, help="length of long videos")
    parser.add_argument("--clips", type=int, default=32, help="per side of a distance")
    arguments = parser.parse_args()
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    rows: dict[str, Row] = {row["name"]: row for row in map(json.loads, lines)}
    champions = [_Champion(url) for url in arguments.stores]
    distance = _Distance(champions, arguments.clips)
    is_long = arguments.what == "long"
    for name in LONG if is_long else SETTINGS:
        if name in rows:
            continue
        rows[name] = (
            long_row(champions, distance, name, arguments.seconds)
            if is_long
            else settings_row(champions, distance, name, arguments.per_prompt)
        )
        with arguments.out.open("a") as out:
            out.write(json.dumps({"name": name, **rows[name]}) + "\n")
        sys.stderr.write(f"{name}\n")
    table = _long_tables if is_long else _settings_table
    print(hardware(), *table(rows, distance.floor), sep="\n")


if __name__ == "__main__":
    main()
