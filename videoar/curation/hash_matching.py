"""Compare the frames of two clips by their hashes and colours.

Copies begin elsewhere, run faster, are cropped, or repeat inside a source. Two frames match the
better the fewer bits of their hashes differ; a frame may also match nine tenths of the other. Two
clips match on the line of frame numbers, j = rate i + shift, on which their frames match best.

How many bits may differ hangs on how many change in the clip itself within half a second. Frames of
a static shot look alike at any time, so they must agree closely; where the whole picture moves,
each frame is evidence of its own, and strong compression flips more. Inside a source nothing was
coded twice, and shots of one scene follow each other: less may differ. Colours that differ on the
line count against a copy, as hashes know none.

Axes: S = 2 scales, T frames, F frames with colours, P pairs of clips, L lines.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from videoar.contracts.names import CHROMA_EVERY

# chosen: rates of two clips, and how much an agreement counts in the choice of one of them; at half
# and double speed the frames of quiet shots agree by chance
_RATES = {1.0: 1.0, 1.25: 1.0, 0.8: 1.0, 1.5: 1.0, 2 / 3: 1.0, 2.0: 0.75, 0.5: 0.75}
_LAG = 4  # frames, half a second at 8 fps, after which a moving picture has changed
_USUAL = 8  # bits that change in half a second
_MOTION = (0, 4, _USUAL, 14, 24)
_BOUND = (0.65, 1.1, 1.0, 1.0, 2.2)  # chosen: by motion, the bound of bits relative to the option
_WITHIN = (0.2, 0.4, 0.6, 0.9, 1.3)  # chosen: that of a repeat inside a source, coded alike
_CHROMA = (3, 9)  # chosen: levels of colour up to which clips are equal, and from which on other
# of a picture coded by BT.709 and shown by BT.601: its Cb, Cr, by those that it has
_SHOWN_WRONG = np.array([[1.0186, 0.0750], [0.1146, 1.0253]])
_MATRICES = np.stack([np.eye(2), _SHOWN_WRONG, np.linalg.inv(_SHOWN_WRONG)])[:, None, None]
_ODDS = np.array([0, 2, 2])[:, None, None]  # chosen: levels added, as three ways fit by chance
_NO_MATCH = 64
FULL = 240
"""Agreement of two equal frames."""


@dataclass(frozen=True)
class Side:
    """One clip of each pair."""

    hashes: np.ndarray
    """uint64 [P, S, T]; 0 where there is none."""
    chroma: np.ndarray
    """uint8 [P, F, 8], of every fourth frame; 0 where it is unknown."""
    source: np.ndarray
    """uint64 [P]."""


def agreement(copy: Side, kept: Side, hamming: int, mask: np.uint64) -> np.ndarray:
    """Return how well each frame of each copy agrees with the kept clip: [P, T], 0 to `FULL`.

    Args:
        copy: one clip of each pair.
        kept: the other one.
        hamming: number of differing bits from which on two frames do not match, of a clip of usual
            motion.
        mask: bits in which hashes of a copy differ; not 0 for a mirrored one.
    """
    is_within = copy.source == kept.source
    motion = np.fmin(_motion(copy.hashes), _motion(kept.hashes))
    # three hashes, of an earlier version, say nothing of motion
    motion = np.where(np.isnan(motion), np.where(is_within, 0, _USUAL), motion)
    bounds = [np.interp(motion, _MOTION, relative) for relative in (_BOUND, _WITHIN)]
    bound = hamming * np.choose(is_within, bounds)
    if mask:
        bound[is_within] = 0
    bits = _differing_bits(copy.hashes, kept.hashes, mask)
    line = _best_line(np.maximum(0, bound[:, None, None] - bits).astype(np.float32))
    bound *= np.interp(_colour_difference(copy.chroma, kept.chroma, line, mask), _CHROMA, (1, 0))
    pair = np.arange(len(bits))[:, None]
    outside = line == bits.shape[2]
    on_line = np.where(outside, _NO_MATCH, bits[pair, np.arange(bits.shape[1]), line * ~outside])
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.where(on_line < bound[:, None], 1 - on_line / bound[:, None], 0)
    return np.round(FULL * near).astype(np.int16)


def _colour_difference(
    copy: np.ndarray, kept: np.ndarray, line: np.ndarray, mask: np.uint64
) -> np.ndarray:
    """Return the mean over the frames of a line of the largest difference of a quarter: [P].

    0 where colours are unknown. All colours of a copy are off alike if the tag of its matrix was
    lost, as in AVI: the least of three differences, in two the matrices BT.601 and BT.709 are mixed
    up.
    """
    if mask:
        copy = copy.reshape(*copy.shape[:2], 2, 2, 2)[:, :, :, ::-1].reshape(copy.shape)
    other = line[:, ::CHROMA_EVERY]
    nearest = np.minimum((other + CHROMA_EVERY // 2) // CHROMA_EVERY, kept.shape[1] - 1)
    of_kept = kept[np.arange(len(kept))[:, None], nearest]
    is_known = (other < line.shape[1]) & copy.any(axis=2) & of_kept.any(axis=2)
    as_shown = (copy.reshape(*copy.shape[:2], 4, 2) - np.float32(128)) @ _MATRICES
    off = np.abs(as_shown.reshape(-1, *copy.shape) + 128 - of_kept).max(axis=3) + _ODDS
    least: np.ndarray = (off * is_known).sum(axis=2).min(axis=0)
    least /= np.maximum(1, is_known.sum(axis=1))
    return least


def _motion(hashes: np.ndarray) -> np.ndarray:
    """Return the mean number of bits that change in half a second; no number for three hashes."""
    before, after = hashes[:, 0, :-_LAG], hashes[:, 0, _LAG:]
    both = (before != 0) & (after != 0)
    bits = np.where(both, np.bitwise_count(before ^ after), 0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        motion: np.ndarray = bits / both.sum(axis=1)
    return motion


@lru_cache(maxsize=2)
def _lines(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, per line and frame of a copy, the frame of the kept clip; `frames` outside of it.

    Second, what the agreement on a line counts.
    """
    own = np.arange(frames)
    lines, weights = [], []
    for rate, weight in _RATES.items():
        reach = round(rate * frames)
        for shift in range(1 - max(reach, frames), frames):
            line = np.round(rate * own + shift).astype(int)
            lines.append(np.where((line >= 0) & (line < frames), line, frames))
            weights.append(weight)
    return np.array(lines).reshape(-1, frames), np.array(weights, np.float32)


def _best_line(near: np.ndarray) -> np.ndarray:
    """Return, per pair and frame of the copy, the kept frame on the line of the largest sum."""
    padded = np.pad(near, ((0, 0), (0, 0), (0, 1)))  # outside of the kept clip nothing is near
    frames, (lines, weights) = np.arange(padded.shape[1]), _lines(padded.shape[1])
    best = (padded[:, frames, lines].sum(axis=2) * weights).argmax(axis=1)
    line: np.ndarray = lines[best]
    return line


def _differing_bits(copies: np.ndarray, kept: np.ndarray, mask: np.uint64) -> np.ndarray:
    """Return the bits in which the frames of two clips differ, at the best of three framings."""
    pairs, _, frames = copies.shape
    least = np.full((pairs, frames, frames), _NO_MATCH, np.int8)
    for scale, other in ((0, 0), (1, 0), (0, 1)):
        one, two = copies[:, scale, :, None], kept[:, other, None, :]
        bits = np.where((one != 0) & (two != 0), np.bitwise_count(one ^ two ^ mask), _NO_MATCH)
        np.minimum(least, bits.astype(np.int8), out=least)
    return least
