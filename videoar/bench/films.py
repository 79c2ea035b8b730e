"""Synthetic films, whose every cut, fade and dissolve is known exactly.

One idea: a shot is a window that moves over a large textured canvas, so drawing a frame costs
little more than copying it, at any size. Between the transitions that a detector must find are
disturbances that it must not report: flashes, whip pans, zooms, exposure ramps, flicker, large
objects that pass close to the lens. Films of `ALL_KINDS` and `ALL_DISTURBANCES` have wipes, slides,
pushes, rolls of the camera and flashes of all sorts as well.

Axes: H W pixels of a frame.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from videoar.bench.film_effects import combined, draw_style, lit, rotated
from videoar.core.ids import seed_from

Frame = NDArray[np.uint8]
Kind = Literal["cut", "fade", "dissolve", "wipe", "slide", "push"]
KINDS: tuple[Kind, ...] = ("cut", "fade", "dissolve")
ALL_KINDS: tuple[Kind, ...] = (*KINDS, "wipe", "slide", "push")
DISTURBANCES = ("none", "flash", "whip", "exposure", "flicker", "passer", "zoom")
_LIGHTS = ("white", "colour", "strobe", "lightning", "muzzle")
ALL_DISTURBANCES = (*DISTURBANCES, "roll", *_LIGHTS, "flash at the end")
_MARGIN = 2.0  # sides of a canvas, in sides of a frame: room for drifts and whip pans
_SHOT_S = (1.6, 5.0)
_FADE_S = (0.4, 1.2)
_SHARED_S = (0.4, 1.4)  # of a dissolve, wipe, slide or push
_GRAIN = 3.0  # luma levels, as of a camera; without it decoding would be unrealistically cheap


@dataclass(frozen=True)
class Transition:
    """One change of shot. A cut has `first == last`: the first frame of the new shot."""

    kind: Kind
    first: int
    """First frame that does not show the old shot only."""
    last: int
    """Last frame that does not show the new shot only; for a cut the new shot's first frame."""


@dataclass(frozen=True)
class Disturbance:
    """Something inside a shot that looks like a change of shot."""

    kind: str
    first: int
    last: int


@dataclass(frozen=True)
class Film:
    """A film; equal fields give equal frames."""

    seed: int
    num_shots: int = 12
    height_px: int = 240
    width_px: int = 320
    rate_fps: float = 25.0
    kinds: tuple[Kind, ...] = KINDS
    disturbances: tuple[str, ...] = DISTURBANCES

    def plan(self) -> tuple[list["_Shot"], list[Transition], list[Disturbance]]:
        """Return the shots, the transitions between them and the disturbances inside them."""
        draw = np.random.default_rng(seed_from("film", self.seed))
        shots, transitions, disturbances = [], [], []
        start, lead, kind_in = 0, 0, None
        for number in range(self.num_shots):
            is_last = number == self.num_shots - 1
            kind = None if is_last else self.kinds[draw.integers(len(self.kinds))]
            tail = self._length(draw, kind)
            # At least 24 frames: disturbances of half a second fit between two transitions.
            pure = max(24, round(draw.uniform(*_SHOT_S) * self.rate_fps))
            disturbance = self.disturbances[draw.integers(len(self.disturbances))]
            shot = _Shot(self, number, start, lead, pure, tail, kind_in, kind, disturbance)
            shots.append(shot)
            if disturbance != "none":
                disturbances.append(Disturbance(disturbance, *shot.disturbed))
            end = start + lead + pure
            if kind == "cut":
                transitions.append(Transition("cut", end, end))
            elif kind is not None:
                shared = 2 * tail if kind == "fade" else tail
                transitions.append(Transition(kind, end, end + shared - 1))
            start = end if kind != "fade" else end + tail
            lead, kind_in = tail, kind
        return shots, transitions, disturbances

    def _length(self, draw: np.random.Generator, kind: Kind | None) -> int:
        """Return the frames that two shots share, or of each half of a fade; 0 for a cut."""
        if kind is None or kind == "cut":
            return 0
        return round(draw.uniform(*(_FADE_S if kind == "fade" else _SHARED_S)) * self.rate_fps)

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order."""
        draw = np.random.default_rng(seed_from("grain", self.seed))
        # One field of noise, from which each frame takes a random window: cheaper than new noise.
        size = (2 * self.height_px, 2 * self.width_px, 1)
        grain = draw.normal(0, _GRAIN, size).astype(np.float32)
        for image in self._images():
            top, left = draw.integers(self.height_px), draw.integers(self.width_px)
            window = grain[top : top + self.height_px, left : left + self.width_px]
            yield np.clip(image + window, 0, 255).astype(np.uint8)

    def _images(self) -> Iterator[NDArray[np.float32]]:
        shots, _, _ = self.plan()
        for shot, following in zip(shots, [*shots[1:], None], strict=True):
            # what two shots share was drawn with the shot before
            skipped = 0 if shot.kind_in == "fade" else shot.lead
            for index in range(skipped, shot.lead + shot.pure):
                yield shot.picture(index)
            for index in range(shot.tail):
                place = shot.lead + shot.pure + index
                # never 0 or 1: each shared frame shows both shots
                share = (index + 1) / (shot.tail + 1)
                if shot.kind_out == "fade" or following is None:
                    yield shot.picture(place)
                elif shot.kind_out == "dissolve":
                    yield (1 - share) * shot.raw(place) + share * following.raw(index)
                else:
                    pictures = shot.raw(place), following.raw(index)
                    yield combined(str(shot.kind_out), shot.style, *pictures, share)
            shot.release()


@dataclass
class _Shot:
    """One shot; frames are counted from the first one that shows anything of it."""

    film: Film
    number: int
    start: int
    lead: int
    pure: int
    tail: int
    kind_in: Kind | None
    kind_out: Kind | None
    disturbance: str

    def __post_init__(self) -> None:
        # a generator per shot: its pictures do not depend on how many numbers earlier shots drew
        self._draw = np.random.default_rng(seed_from("shot", self.film.seed, self.number))
        self._canvas: NDArray[np.float32] | None = None
        rate = self.film.rate_fps
        self._drift = self._draw.uniform(-0.12, 0.12, 2) / rate
        self._origin = self._draw.uniform(0.3, 0.7, 2) * (_MARGIN - 1)
        middle = self.lead + self.pure // 2
        length = {"flash": 2, "whip": round(0.4 * rate), "exposure": round(0.8 * rate)}
        half = max(1, length.get(self.disturbance, round(0.5 * rate)) // 2)
        end = self.lead + self.pure - 1
        self._event = (max(self.lead, middle - half), min(end, middle + half))
        if self.disturbance == "flash at the end" and self.kind_out == "cut":
            self._event = (end - 1, end)
        self._passer = self._draw.uniform(0, 255, 3).astype(np.float32)
        self._fade_to = 0.0 if self._draw.random() < 0.75 else 255.0
        effects = np.random.default_rng(seed_from("effects", self.film.seed, self.number))
        self.style = draw_style(effects)
        self._roll = float(effects.uniform(0.5, 2.5))

    @property
    def disturbed(self) -> tuple[int, int]:
        """First and last disturbed frame, in frames of the film."""
        return self.start + self._event[0], self.start + self._event[1]

    def raw(self, index: int) -> NDArray[np.float32]:
        """Return frame `index` without fades."""
        return self._disturb(self._window(index), index)

    def picture(self, index: int) -> NDArray[np.float32]:
        """Return frame `index` with fades."""
        image = self.raw(index)
        share = 1.0
        if self.kind_in == "fade" and index < self.lead:
            share = index / self.lead
        if self.kind_out == "fade" and index >= self.lead + self.pure:
            share = 1 - (index - self.lead - self.pure + 1) / self.tail
        return share * image + (1 - share) * self._fade_to

    def release(self) -> None:
        """Free the canvas."""
        self._canvas = None

    def _window(self, index: int) -> NDArray[np.float32]:
        canvas = self._canvas if self._canvas is not None else self._paint()
        height, width = self.film.height_px, self.film.width_px
        place = self._origin + self._drift * index
        if self.disturbance == "whip":
            first, last = self._event
            along = np.clip((index - first) / max(1, last - first), 0, 1)
            place = place + np.array([0.0, 0.45]) * along
        top, left = (np.clip(place, 0, _MARGIN - 1) * (height, width)).astype(int)
        window = canvas[top : top + height, left : left + width]
        if self.disturbance == "roll":
            first, last = self._event
            along = float(np.clip((index - first) / max(1, last - first), 0, 1))
            return rotated(canvas, int(top), int(left), height, width, self._roll * along)
        if self.disturbance == "zoom" and index >= self._event[0]:
            grown = 1 + 0.5 * min(1.0, (index - self._event[0]) / self.film.rate_fps)
            rows = (np.arange(height) / grown + height * (1 - 1 / grown) / 2).astype(int)
            columns = (np.arange(width) / grown + width * (1 - 1 / grown) / 2).astype(int)
            window = window[rows[:, None], columns]
        return window

    def _disturb(self, image: NDArray[np.float32], index: int) -> NDArray[np.float32]:
        first, last = self._event
        along = (index - first) / max(1, last - first)
        if self.disturbance in _LIGHTS and first <= index <= last:
            after_s = (index - first) / self.film.rate_fps
            return lit(self.disturbance, image, after_s, self._passer)
        if self.disturbance.startswith("flash") and first <= index <= last:
            return 0.25 * image + 0.75 * 255
        if self.disturbance == "exposure" and index >= first:
            return image * (1 - 0.5 * min(1.0, along))
        if self.disturbance == "flicker" and first <= index <= last:
            return image * (0.7 + 0.3 * (index % 2))
        if self.disturbance == "passer" and first <= index <= last:
            width = self.film.width_px
            right = int((along * 1.7) * width)
            # a window is a view: painting into it would change the canvas for later frames
            image = image.copy()
            image[:, max(0, right - int(0.7 * width)) : max(0, right)] = self._passer
        return image

    def _paint(self) -> NDArray[np.float32]:
        """Paint the canvas: clouds of several sizes in two colours, and hard-edged rectangles."""
        draw = self._draw
        height, width = (int(_MARGIN * side) for side in (self.film.height_px, self.film.width_px))
        level = np.zeros((height, width), np.float32)
        # finer clouds are weaker, about as in natural pictures
        for cells in (2, 5, 12, 30, 70):
            coarse = draw.normal(size=(cells + 1, cells * 4 // 3 + 1)).astype(np.float32)
            level += _stretched(coarse, height, width) * cells**-0.7
        level -= level.min()
        level /= level.max()
        dark, light = draw.uniform(0, 140, 3), draw.uniform(90, 255, 3)
        canvas = (dark + level[..., None] * (light - dark)).astype(np.float32)
        for _ in range(draw.integers(8, 20)):
            top, left = draw.uniform(0, 1, 2) * (height, width)
            tall, wide = draw.uniform(0.05, 0.35, 2) * (self.film.height_px, self.film.width_px)
            rows, columns = slice(int(top), int(top + tall)), slice(int(left), int(left + wide))
            canvas[rows, columns] = 0.3 * canvas[rows, columns] + 0.7 * draw.uniform(0, 255, 3)
        self._canvas = canvas
        return canvas


def _stretched(coarse: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize bilinearly."""
    for axis, size in ((0, height), (1, width)):
        place = np.linspace(0, coarse.shape[axis] - 1, size, dtype=np.float32)
        low = np.minimum(place.astype(int), coarse.shape[axis] - 2)
        share = place - low
        share = share[:, None] if axis == 0 else share
        coarse = np.take(coarse, low, axis) * (1 - share) + np.take(coarse, low + 1, axis) * share
    return coarse


def copies(film: Path, into: Path, count: int) -> None:
    """Copy an MP4 file `count` times, each with an own `free` box at the end: another source."""
    into.mkdir()
    for number in range(count):
        own = f"{into.name} {number}".encode()
        # readers skip `free` boxes (ISO/IEC 14496-12): other bytes, the same video
        box = (8 + len(own)).to_bytes(4, "big") + b"free" + own
        (into / f"{number:03d}.mp4").write_bytes(film.read_bytes() + box)
