"""Effects of `videoar.bench.films`: wipes, slides and pushes between shots; flashes inside them.

Each function maps pictures to one picture and draws nothing at random: what varies is in its
arguments. Axes: H W pixels of a frame.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
SHAPES = ("straight", "diagonal", "circle", "clock", "blinds")


@dataclass(frozen=True)
class Style:
    """How one picture replaces another."""

    shape: str
    """Of a wipe, one of `SHAPES`."""
    quarter_turns: int
    """Direction: of 0, to the right."""
    is_reversed: bool
    """A circle shrinks instead of growing; a slide uncovers the new shot instead of covering."""
    softness: float
    """Width of a wipe's edge, as a share of the way."""
    is_eased: bool
    """Whether it starts and ends slowly."""

    def progress(self, share: float) -> float:
        """Return how far the effect is at a share of its time."""
        return share * share * (3 - 2 * share) if self.is_eased else share


def draw_style(draw: np.random.Generator) -> Style:
    """Draw a style."""
    return Style(
        shape=SHAPES[draw.integers(len(SHAPES))],
        quarter_turns=int(draw.integers(4)),
        is_reversed=bool(draw.integers(2)),
        softness=float(draw.choice((0.0, 0.0, 0.05, 0.2))),
        is_eased=bool(draw.integers(2)),
    )


def combined(kind: str, style: Style, old: Image, new: Image, share: float) -> Image:
    """Return the picture at a share (0 to 1, exclusive) of a wipe, slide or push."""
    share = style.progress(share)
    if kind == "wipe":
        # a hard edge still is a pixel wide
        softness = max(style.softness, 1 / old.shape[1])
        place = _order(style, *old.shape[:2])
        alpha = np.clip((share * (1 + softness) - place) / softness, 0, 1)[..., None]
        return np.asarray((1 - alpha) * old + alpha * new)
    turned_old, turned_new = (np.rot90(image, style.quarter_turns) for image in (old, new))
    width = turned_old.shape[1]
    seam = round(share * width)
    does_old_move = kind == "push" or style.is_reversed
    does_new_move = kind == "push" or not style.is_reversed
    left = turned_new[:, width - seam :] if does_new_move else turned_new[:, :seam]
    right = turned_old[:, : width - seam] if does_old_move else turned_old[:, seam:]
    return np.asarray(np.rot90(np.concatenate([left, right], axis=1), -style.quarter_turns))


def _order(style: Style, height: int, width: int) -> Image:
    """Return the share of the wipe, 0 to 1, at which each pixel changes."""
    if style.shape in {"circle", "clock"}:
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        if style.shape == "clock":
            return np.asarray((np.arctan2(y, x) / (2 * math.pi) + style.quarter_turns / 4) % 1)
        place = np.hypot(x, y) / math.sqrt(2)
        return np.asarray(1 - place if style.is_reversed else place)
    sides = (width, height) if style.quarter_turns % 2 else (height, width)
    y, x = np.mgrid[0 : 1 : sides[0] * 1j, 0 : 1 : sides[1] * 1j].astype(np.float32)
    place = {"straight": x, "diagonal": (x + y) / 2, "blinds": 5 * x % 1}[style.shape]
    return np.asarray(np.rot90(place, -style.quarter_turns))


def rotated(canvas: Image, top: int, left: int, height: int, width: int, angle: float) -> Image:
    """Return a window of a canvas, turned about its centre by an angle in radians."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y - height / 2, x - width / 2
    rows = top + height / 2 + y * math.cos(angle) - x * math.sin(angle)
    columns = left + width / 2 + y * math.sin(angle) + x * math.cos(angle)
    rows = np.clip(rows, 0, canvas.shape[0] - 1).astype(int)
    columns = np.clip(columns, 0, canvas.shape[1] - 1).astype(int)
    return np.asarray(canvas[rows, columns])


def lit(kind: str, image: Image, after_s: float, colour: NDArray[np.float32]) -> Image:
    """Return a picture that many lights hit, `after_s` seconds after they went on.

    white    100 ms of white
    colour   80 ms of one colour
    strobe   white for 40 ms, every 120 ms
    lightning  the lights of the picture burn out, and fade within 250 ms
    muzzle   a burst of light in a third of the frame, for 50 ms
    """
    if kind == "white" and after_s < 0.099:
        return np.full_like(image, 255)
    if kind == "colour" and after_s < 0.079:
        return np.broadcast_to(colour, image.shape).astype(np.float32)
    if kind == "strobe" and after_s % 0.12 < 0.039:
        return np.full_like(image, 250)
    if kind == "lightning":
        gain = 1 + 4 * max(0.0, 1 - after_s / 0.25)
        return np.asarray(np.minimum(255, image * gain + 20 * (gain - 1)))
    if kind == "muzzle" and after_s < 0.049:
        height, width = image.shape[:2]
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        away = np.hypot(y / height - 0.5, x / width - 0.35)
        return np.asarray(np.minimum(255, image + 330 * np.exp(-((away / 0.25) ** 2))[..., None]))
    return image
