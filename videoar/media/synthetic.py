"""The synthetic corpus: tiny rendered videos whose content is known exactly.

A scene is three words (shape, colour, motion) plus nuisance parameters drawn from a seed (textured
background, camera shake, size, start, speed). The prompt describes all that matters, so a generated
video can be classified by arithmetic (`videoar.evaluation.synthetic`). Lengths are in frame sides
and speeds in sides per second: any size and frame rate shows the same scene.

The corpus `rendered://shapes?num_videos=N&seed=S` lists files of mixed containers, codecs, sizes
and rates, many with hard cuts, a few damaged on purpose. File i depends on (seed, i) alone, so a
larger corpus begins with the smaller one. Rendering a file costs about 0.3 CPU-seconds, most of
them in the encoder.
"""

import itertools
import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from videoar.core.errors import ConfigError
from videoar.core.ids import digest_json, seed_from
from videoar.media import transcode

Frames = NDArray[np.uint8]
SCHEME = "rendered://"

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (225, 45, 45),
    "yellow": (225, 215, 45),
    "green": (45, 185, 60),
    "cyan": (45, 210, 220),
    "blue": (55, 75, 230),
    "magenta": (220, 50, 205),
}  # chosen: hues about 60 degrees apart survive 4:2:0 chroma at 32 px
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y), y down

SCENE_S = 3.0
"""Longest scene: for this time the shape stays inside the frame."""
_RECIPE_VERSION = 2  # raise it when equal seeds give other pixels
_RADII = (0.20, 0.24)  # in frame sides; chosen: at 32 px, shapes of 4 px were lost
_REACH = 1.25  # farthest point of any shape from its centre, in radii: the triangle's corners
_SHAKE = 0.008
_WAVES = (8, 6, 4, 3, 2, 1)  # amplitudes of the texture, in levels of luma
_PATHS = (0.32, 0.38)  # distance that the shape moves in SCENE_S

_FORMATS = (
    ("libx264", "mp4"),
    ("libx265", "mp4"),
    ("libvpx-vp9", "webm"),
    ("mpeg4", "avi"),
    ("mjpeg", "mkv"),
)
_RATES_FPS = (8.0, 12.0, 15.0, 24.0, 25.0, 30.0)
_SIZES_PX = (64, 96, 128)
_BROKEN_EVERY = 24  # a multiple of _VAL_EVERY: see `Entry.broken`
_BROKEN = ("truncated", "empty", "text", "noise")
_VAL_EVERY = 6
_MAX_SCENES = 3  # of a file; a further scene costs a fifth of the CPU time of a further file


@dataclass(frozen=True)
class Scene:
    """What to draw: three words, and a seed for everything else."""

    shape: str
    colour: str
    motion: str
    seed: int = 0

    @property
    def prompt(self) -> str:
        """The text of the scene, e.g. `a red circle moving left`."""
        return f"a {self.colour} {self.shape} moving {self.motion}"


_PROMPT = re.compile(
    rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) moving ({'|'.join(MOTIONS)})", re.IGNORECASE
)


def parse_prompt(text: str) -> Scene | None:
    """Return the scene (seed 0) of a prompt, None if it is no prompt of the corpus."""
    match = _PROMPT.fullmatch(" ".join(text.split()).rstrip("."))
    if match is None:
        return None
    colour, shape, motion = match.group(1, 2, 3)
    return Scene(shape.lower(), colour.lower(), motion.lower())


def held_out() -> tuple[Scene, ...]:
    """Return the combinations, one per colour, that are not in the corpus."""
    motions = tuple(MOTIONS)
    return tuple(
        Scene(SHAPES[i % len(SHAPES)], colour, motions[i % len(motions)])
        for i, colour in enumerate(COLOURS)
    )


@lru_cache(maxsize=1)
def scenes() -> tuple[Scene, ...]:
    """Return the combinations in the corpus, in a fixed order, with seed 0."""
    excluded = set(held_out())
    every = (Scene(*words) for words in itertools.product(SHAPES, COLOURS, MOTIONS))
    return tuple(scene for scene in every if scene not in excluded)


def prompts() -> tuple[str, ...]:
    """Return the prompts of the corpus."""
    return tuple(scene.prompt for scene in scenes())


def coverage(
    shape: str, x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], radius: float
) -> NDArray[np.floating[Any]]:
    """Return how much of each pixel a shape centred at the origin covers.

    Args:
        shape: one of `SHAPES`.
        x: distance right of the centre, in pixels; broadcasts with `y`.
        y: distance below the centre, in pixels.
        radius: size of the shape, in pixels.

    Returns:
        Values in [0, 1]: one minus the signed distance to the edge, anti-aliased over one pixel.
    """
    if shape == "circle":
        outside = np.hypot(x, y) - radius
    elif shape == "square":
        outside = np.maximum(abs(x), abs(y)) - 0.886 * radius  # area of the circle
    else:  # equilateral triangle, pointing up, centroid at the origin, corners at _REACH radii
        slope = math.sqrt(0.75) * abs(x) - 0.5 * y
        outside = np.maximum(slope, y + 0 * x) - _REACH / 2 * radius
    return np.asarray(np.clip(0.5 - outside, 0.0, 1.0))


class _Nuisance:
    """Parameters of a scene that its prompt does not describe, drawn from its seed.

    The order of the draws is part of the recipe: append new ones at the end.
    """

    def __init__(self, scene: Scene) -> None:
        draw_from = np.random.default_rng(seed_from("rendered", _RECIPE_VERSION, scene.seed))
        uniform = draw_from.uniform
        self.radius = uniform(*_RADII)
        direction = np.array(MOTIONS[scene.motion], dtype=np.float64)
        self.speed_xy = direction * uniform(*_PATHS) / SCENE_S
        margin = _REACH * self.radius + _SHAKE
        path = self.speed_xy * SCENE_S
        self.start_xy = uniform(margin - np.minimum(path, 0), 1 - margin - np.maximum(path, 0))
        self.shake_rate_hz = uniform(0.5, 1.2, 2)
        self.shake_phase = uniform(0, 2 * math.pi, 2)
        self.luma = uniform(80, 150)
        self.tint_3 = uniform(-8, 8, 3)
        angle, cycles = uniform(0, 2 * math.pi, 6), np.array([0.5, 1, 1.5, 2.5, 4, 6])
        self.wave_xy = 2 * math.pi * cycles[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        self.wave_phase = uniform(0, 2 * math.pi, 6)
        self.wave_height = np.array(_WAVES) * uniform(0.5, 1, 6)

    def shake_xy(self, time_s: float) -> NDArray[np.float64]:
        """Return the camera's displacement."""
        turns = 2 * math.pi * self.shake_rate_hz * time_s + self.shake_phase
        return np.asarray(_SHAKE * np.sin(turns))

    def background(self, size_px: int, shift_xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the luma of the texture: plane waves, so that sub-pixel shifts are exact."""
        grid = (np.arange(size_px) + 0.5) / size_px
        x = self.wave_xy[:, :1] * (grid - shift_xy[0])
        y = self.wave_xy[:, 1:] * (grid - shift_xy[1]) + self.wave_phase[:, None]
        height = self.wave_height[:, None]
        cosines, sines = (height * np.cos(y)).T @ np.cos(x), (height * np.sin(y)).T @ np.sin(x)
        # cos(x + y) = cos x cos y - sin x sin y: two products instead of a cosine per pixel
        return np.asarray(self.luma + cosines - sines)


def draw(scene: Scene, num_frames: int, size_px: int, rate_fps: float) -> Frames:
    """Draw the first frames of a scene.

    Args:
        scene: what to draw.
        num_frames: frames; `(num_frames - 1) / rate_fps` must be at most `SCENE_S`.
        size_px: height and width.
        rate_fps: frames per second.

    Returns:
        RGB frames [T, H, W, 3], uint8; equal arguments give equal bytes.

    Raises:
        ValueError: the shape would leave the frame.
    """
    if (num_frames - 1) / rate_fps > SCENE_S:
        raise ValueError(f"{num_frames} frames at {rate_fps} fps last longer than {SCENE_S} s")
    nuisance = _Nuisance(scene)
    colour_3 = np.array(COLOURS[scene.colour], dtype=np.float64)
    pixel = np.arange(size_px) + 0.5
    frames = np.empty((num_frames, size_px, size_px, 3), dtype=np.uint8)
    for t in range(num_frames):
        shift_xy = nuisance.shake_xy(t / rate_fps)
        x, y = size_px * (nuisance.start_xy + nuisance.speed_xy * t / rate_fps + shift_xy)
        luma_hw = nuisance.background(size_px, shift_xy)
        alpha = coverage(
            scene.shape, pixel[None, :] - x, pixel[:, None] - y, nuisance.radius * size_px
        )[..., None]
        frame = luma_hw[..., None] + nuisance.tint_3
        frame += alpha * (colour_3 - frame)
        frames[t] = np.round(np.clip(frame, 0, 255))
    return frames


@dataclass(frozen=True)
class Entry:
    """One file of the corpus; everything follows from the corpus seed and the index."""

    seed: int
    index: int

    @property
    def broken(self) -> str | None:
        """How the file is damaged, None for a good one."""
        # val files have index 5 modulo 6, damaged ones 22 modulo 24: none is both
        if self.index % _BROKEN_EVERY != _BROKEN_EVERY - 2:
            return None
        return _BROKEN[self.index // _BROKEN_EVERY % len(_BROKEN)]

    @property
    def format(self) -> tuple[str, str]:
        """Codec and file suffix. Damaged files are MP4: truncation removes the index at the end."""
        choice = seed_from("format", self.seed, self.index) % len(_FORMATS)
        return _FORMATS[0 if self.broken else choice]

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.index:06d}.{self.format[1]}"

    @property
    def uri(self) -> str:
        """Address of the file."""
        return f"rendered://shapes/{self.name}?seed={self.seed}"

    @property
    def cuts(self) -> tuple[Scene, ...]:
        """The scenes of the file: one to three with one prompt, which the caption describes."""
        every = scenes()
        block, place = divmod(self.index, len(every))
        random = np.random.default_rng(seed_from("order", self.seed, block))
        scene = every[random.permutation(len(every))[place]]
        number = 1 + seed_from("cut", self.seed, self.index) % _MAX_SCENES
        seeds = (seed_from("scene", self.seed, self.index, part) for part in range(number))
        return tuple(replace(scene, seed=seed) for seed in seeds)

    def frames(self) -> tuple[Frames, float]:
        """Draw the file; return its frames and their rate in fps."""
        pick = np.random.default_rng(seed_from("file", self.seed, self.index))
        rate_fps, size_px = float(pick.choice(_RATES_FPS)), int(pick.choice(_SIZES_PX))
        spans_s = pick.uniform(2.5, SCENE_S, len(self.cuts))
        parts = [
            draw(scene, int(span_s * rate_fps), size_px, rate_fps)
            for scene, span_s in zip(self.cuts, spans_s, strict=True)
        ]
        return np.concatenate(parts), rate_fps

    def row(self) -> dict[str, Any]:
        """Return the row of `sources@1`; the size is 0, as it is unknown before encoding."""
        return {
            "uri": self.uri,
            "name": self.name,
            "etag": digest_json([_RECIPE_VERSION, self.seed, self.index])[:16],
            "size_bytes": 0,
            "label": self.cuts[0].shape,
            "caption": self.cuts[0].prompt,
            "caption_source": "rendered",
            "group": self.name,
            "split": "val" if self.index % _VAL_EVERY == _VAL_EVERY - 1 else "train",
            "licence": "Apache-2.0",
            # stored value: equal corpora give equal rows, also across versions of the code
            "origin": "videoar.media.rendered",
        }


def _parameters(url: str, allowed: dict[str, int]) -> dict[str, int]:
    """Return the integer parameters of a URL, with `allowed` as names and defaults."""
    parts = urlsplit(url)
    if parts.scheme != "rendered" or parts.netloc != "shapes":
        raise ConfigError(url, "no such synthetic corpus", "use rendered://shapes")
    values = dict(allowed)
    for key, text in parse_qsl(parts.query, keep_blank_values=True):
        if key not in allowed:
            raise ConfigError(url, f"unknown parameter {key}", f"allowed: {', '.join(allowed)}")
        if not text.isascii() or not text.isdigit():
            raise ConfigError(url, f"{key}={text} is not an integer >= 0")
        values[key] = int(text)
    return values


def list_synthetic(url: str) -> list[dict[str, Any]]:
    """Return the rows of `sources@1` of a synthetic corpus.

    Args:
        url: `rendered://shapes?num_videos=240&seed=0`; both parameters are optional.

    Returns:
        Rows in order of their names; a larger corpus begins with the rows of a smaller one.

    Raises:
        ConfigError: unknown corpus or parameter, or a value that is no integer.
    """
    given = _parameters(url, {"num_videos": 240, "seed": 0})
    if urlsplit(url).path not in {"", "/"} or given["num_videos"] == 0:
        raise ConfigError(url, "has no videos", "use rendered://shapes?num_videos=240&seed=0")
    return [Entry(given["seed"], index).row() for index in range(given["num_videos"])]


def entry(uri: str) -> Entry:
    """Return the entry of a file by its address: the ground truth.

    Raises:
        ConfigError: not the address of a file of the corpus.
    """
    seed = _parameters(uri, {"seed": 0})["seed"]
    stem = Path(urlsplit(uri).path).stem
    result = Entry(seed, int(stem)) if stem.isascii() and stem.isdigit() else None
    # an index determines its suffix: 000001.mp4 may exist where 000001.webm does not
    if result is None or urlsplit(uri).path != f"/{result.name}":
        raise ConfigError(uri, "no such file in the synthetic corpus")
    return result


def render_file(uri: str, into: Path) -> Path:
    """Render one file of the corpus; the same bytes each time.

    Args:
        uri: address from `list_synthetic`.
        into: existing folder.

    Returns:
        Path of the file.

    Raises:
        ConfigError: not the address of a file of the corpus.
    """
    file = entry(uri)
    path = into / file.name
    if file.broken == "empty":
        path.write_bytes(b"")
    elif file.broken == "text":
        path.write_text(f"{file.cuts[0].prompt}, they said, but this is no video.\n" * 20)
    elif file.broken == "noise":
        path.write_bytes(np.random.default_rng(file.index).bytes(20_000))
    else:
        frames, rate_fps = file.frames()
        transcode.encode(frames, path, rate_fps, codec=file.format[0])
        if file.broken == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path
