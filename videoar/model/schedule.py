"""Scale schedules: the grids, coarse to fine, in which one latent frame is predicted.

One idea: a schedule is a list of (h, w) that ends at the latent grid, and the schedule of a larger
grid of the same aspect ratio continues the smaller one. So a later training phase at a higher
resolution keeps the scales that it has learned.

    scale_schedule(8, 8)     1x1 2x2 3x3 4x4 6x6 8x8
    scale_schedule(20, 20)   1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20

Source: FoundationVision/Infinity `infinity/utils/dynamic_resolution.py` (h >= w templates; the
first 7/10/12/13 scales are the 0.06M/0.25M/0.60M/1M pixel buckets); the six square scales of an
8x8 grid are ours, K=6 follows from the 30 steps of arXiv 2601.05966 table 3.
"""

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator

Scale = tuple[int, int]


MAX_SIDE = 1024
"""Chosen: 16 K pixels at stride 16. Configs come from files; their size must bound the memory."""


def _check(scales: tuple[Scale, ...]) -> tuple[Scale, ...]:
    if not scales:
        raise ValueError("scales must not be empty")
    for scale in scales:
        if min(scale) < 1:
            raise ValueError(f"scale {scale} has a side below 1")
        if max(scale) > MAX_SIDE:
            raise ValueError(f"scale {scale} has a side above {MAX_SIDE}")
    for before, scale in pairwise(scales):
        if scale[0] < before[0] or scale[1] < before[1]:
            raise ValueError(f"scale {scale} is smaller than {before}, the one before it")
    return scales


Scales = Annotated[tuple[Scale, ...], AfterValidator(_check)]
"""From coarse to fine: no scale is smaller than the one before it, in height or width. The last one
is the latent grid. Validated wherever a config holds them.

A scale that is listed several times is repeated: each time the residual that is left is quantized,
and a pass per latent frame draws its bits. Repeating early scales is InfinityStar's semantic scale
repetition (arXiv 2511.04675). Tokenizer and transformer must have been trained with it."""


def _square(*sides: int) -> Scales:
    return tuple((side, side) for side in sides)


SMALL_SQUARE = _square(1, 2, 3, 4, 6, 8)
"""Of grids up to 8 x 8. Infinity's square template would leave an 8 x 8 grid only five scales."""

# Keys: longer side over shorter side.
TEMPLATES: dict[float, Scales] = {
    1.000: _square(1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
    1.250: (
        *_square(1, 2, 3),
        *((5, 4), (10, 8), (15, 12), (20, 16), (25, 20), (30, 24)),
        *((35, 28), (45, 36), (55, 44), (70, 56)),
    ),
    1.333: (
        *_square(1, 2),
        *((4, 3), (8, 6), (12, 9), (16, 12), (20, 15), (24, 18), (28, 21)),
        *((36, 27), (48, 36), (60, 45), (72, 54)),
    ),
    1.500: (
        *_square(1, 2),
        *((3, 2), (6, 4), (9, 6), (15, 10), (21, 14), (27, 18), (33, 22)),
        *((39, 26), (48, 32), (63, 42), (78, 52)),
    ),
    1.750: (
        *_square(1, 2, 3),
        *((7, 4), (11, 6), (14, 8), (21, 12), (28, 16), (35, 20)),
        *((42, 24), (56, 32), (70, 40), (84, 48)),
    ),
    2.000: (
        *_square(1, 2),
        *((4, 2), (6, 3), (10, 5), (16, 8), (22, 11), (30, 15), (38, 19)),
        *((46, 23), (60, 30), (74, 37), (90, 45)),
    ),
}


def scale_schedule(grid_h: int, grid_w: int) -> Scales:
    """Return the schedule of a latent grid: its template's smaller scales, then the grid itself."""
    ratio = max(grid_h, grid_w) / min(grid_h, grid_w)
    template = TEMPLATES[min(TEMPLATES, key=lambda of_template: abs(of_template - ratio))]
    if grid_h == grid_w <= 8:
        template = SMALL_SQUARE
    if grid_h < grid_w:  # templates are upright
        template = tuple((w, h) for h, w in template)
    return (*(s for s in template if s[0] < grid_h and s[1] < grid_w), (grid_h, grid_w))


def tokens_per_frame(scales: Scales) -> int:
    """Return the number of tokens of all scales of one latent frame."""
    return sum(h * w for h, w in scales)


def latent_frames(num_frames: int, time_stride: int) -> int:
    """Return the number of latent frames of 1 + m * `time_stride` pixel frames: 1 + m.

    Raises:
        ValueError: the number has another form, which the causal tokenizer cannot encode.
    """
    if num_frames < 1 or (num_frames - 1) % time_stride:
        fits = 1 + time_stride * max(0, (num_frames - 1) // time_stride)
        hint = f"use {fits} or {fits + time_stride}"
        raise ValueError(f"{num_frames} frames are not 1 + a multiple of {time_stride} ({hint})")
    return 1 + (num_frames - 1) // time_stride
