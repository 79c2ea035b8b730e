"""Find the bars around the picture of a source: above and below, at the sides, of any one colour.

A row from the edge belongs to a bar if most of its pixels have the colour of the bar in nearly all
sampled frames: subtitles and logos cover little of a row, title cards and an inserted full-size
advertisement only some frames. Dark scenes make every row look like a bar, but not in nearly all
frames. The bar must end at one row, where frames change from colour to picture: a vignette, or an
object on a plain ground, ends gradually.

Where this finds nothing the whole frame stays; `letterbox_frac` still tells.

Axes: H W pixels of a luma plane, as stored.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videoar.core.errors import MediaError
from videoar.media.color import luma_of
from videoar.media.orientation import Orientation
from videoar.media.source_decoder import SourceDecoder, open_source
from videoar.media.source_stream import DecodePlan

_NEAR = 10  # chosen: grey levels around the colour of a bar: coding noise beside a sharp edge
_COVERED = 0.6  # chosen: share of a row with the colour of the bar; subtitles leave 0.7
_MOST = 0.9  # chosen: share of the frames in which that must hold
_PICTURE = 0.5  # chosen: a row of the picture has less of the colour of the bar...
_EDGE = 0.3  # ... by at least so much less than the bar, within `_EDGE_ROWS`
_EDGE_ROWS = 3
_CLEAN = 0.95  # chosen: share of a row of a bar without text
_GAP = 0.05  # chosen: of the side; a line of text is thinner
_BLEND = 0.25  # chosen: of the step from bar to picture: coders and scalers smear it over a row
_MIN_BAR = 0.01  # chosen: of the side; narrower ones are left
_MIN_ACTIVE = 0.3  # chosen: of the side; less is a picture with a small object
_DARK = (
    32  # chosen: of 255; black is 16 in limited range. Brighter bars must be equal on both sides
)
_SAMPLES = 128  # chosen: pixels of a row that count
_FREE = 1  # chosen: frames without a bar that do not refute one, such as an advertisement
_PLACES = 12  # chosen: key frames, spread over the source
_ENOUGH = 4  # chosen: key frames
_FORWARD, _EVERY = 96, 8  # chosen: frames from the start, where key frames are few


class Box(NamedTuple):
    """A part of a frame, in px."""

    left: int
    top: int
    width: int
    height: int

    def shown(self, frame_size: tuple[int, int], orientation: Orientation, aspect: float) -> "Box":
        """Return where a part of a stored frame is in the displayed picture.

        Args:
            frame_size: width and height of the stored frame.
            orientation: of the source.
            aspect: width of a stored pixel over its height.
        """
        left, top, width, height = self
        left, right = round(left * aspect), round((left + width) * aspect)
        box, outer = (
            Box(left, top, right - left, height),
            (round(frame_size[0] * aspect), frame_size[1]),
        )
        for _ in range(orientation.rotation_deg // 90):
            box, outer = box._turned(outer), outer[::-1]
        return box._mirrored(outer) if orientation.is_mirrored else box

    def stored(self, frame_size: tuple[int, int], orientation: Orientation, aspect: float) -> "Box":
        """Undo `shown` for a box with even sides."""
        outer = (round(frame_size[0] * aspect), frame_size[1])
        outer = outer[::-1] if orientation.is_sideways else outer
        box = self._mirrored(outer) if orientation.is_mirrored else self
        for _ in range(-orientation.rotation_deg % 360 // 90):
            box, outer = box._turned(outer), outer[::-1]
        left, right = (2 * round(x / aspect / 2) for x in (box.left, box.left + box.width))
        return Box(left, box.top, right - left, box.height)

    def _turned(self, outer: tuple[int, int]) -> "Box":
        return Box(outer[1] - self.top - self.height, self.left, self.height, self.width)

    def _mirrored(self, outer: tuple[int, int]) -> "Box":
        return self._replace(left=outer[0] - self.left - self.width)


def find_active(path: Path, plan: DecodePlan) -> tuple[Box, tuple[int, int]] | None:
    """Look for bars in frames spread over a source.

    In a pass of its own, so that the frames of clips are decoded from the start without a seek.

    Args:
        path: the source.
        plan: of the scan; the frames are from all parts of the source.

    Returns:
        The part of a stored frame inside the bars, and the size of the frame; None for no bars, and
        for a source that cannot be decoded: the scan gives the reason.
    """
    found: list[np.ndarray] = []
    num_free = np.zeros(4, int)  # of frames without a bar above, below, at the left, at the right
    to_grey = VideoReformatter()
    try:
        with open_source(path, plan.model_copy(update={"part": 0, "parts": 1})) as decoder:
            for frame in _spread(decoder):
                luma_HW = luma_of(frame, to_grey)
                if found and found[0].shape != luma_HW.shape:
                    continue
                found.append(luma_HW.copy())
                num_free += ~edges_covered(luma_HW)
                if (num_free > _FREE).all():
                    return None
    except MediaError:
        return None
    if not found:
        return None
    height, width = found[0].shape
    box = active_box(found)
    is_whole = box == (0, 0, width, height) or min(box.width, box.height) < 2  # a line, a dot
    return None if is_whole else (box, (width, height))


def _spread(decoder: SourceDecoder) -> Iterator[av.VideoFrame]:
    """Yield key frames from all over a source; of one with few, frames from its start."""
    seen: set[int | None] = set()
    for place in range(_PLACES if decoder.announced_s else 0):
        decoder.seek_near(1e6 * decoder.announced_s * (place + 0.5) / _PLACES)
        frame = next((frame for frame, _ in decoder.frames()), None)
        if frame is None:
            break
        if frame.pts not in seen:
            seen.add(frame.pts)
            yield frame
        elif len(seen) < place - 1:
            break  # key frames are few
    if len(seen) < _ENOUGH:
        decoder.seek(None)
        for number, (frame, _) in zip(range(_FORWARD), decoder.frames(), strict=False):
            if number % _EVERY == 0:
                yield frame


def edges_covered(luma_HW: np.ndarray) -> np.ndarray:
    """Return of one frame whether there may be a bar above, below, at the left, at the right."""
    sides = [luma_HW, luma_HW[::-1], luma_HW.T, luma_HW.T[::-1]]
    edges = [side[None, : _min_bar(len(side))] for side in sides]
    colours = [_colour(edge) for edge in edges]
    is_covered = np.array([
        (_share(edge, c) >= _COVERED).all() for edge, c in zip(edges, colours, strict=True)
    ])
    opposite = [1, 0, 3, 2]
    may_be: list[bool] = [
        colour <= _DARK or bool(is_covered[i] and abs(colour - colours[i]) <= _NEAR)
        for colour, i in zip(colours, opposite, strict=True)
    ]
    is_covered &= may_be
    return is_covered


def active_box(frames: Sequence[np.ndarray]) -> Box:
    """Return the part of all frames that is inside the bars, with even sides.

    Args:
        frames: luma planes [H, W], uint8, of one size; spread over the source.
    """
    luma_THW = np.stack(frames)
    height, width = luma_THW.shape[1:]
    top, bottom, left, right = 0, height, 0, width
    for _ in range(2):  # again without the other bars, which hide how wide a row of a bar is
        top, bottom = _inside(luma_THW[:, :, left:right])
        left, right = _inside(luma_THW[:, top:bottom].swapaxes(1, 2))
    # to the inside: a chroma sample covers 2 px
    top, left, bottom, right = top + top % 2, left + left % 2, bottom // 2 * 2, right // 2 * 2
    return Box(left, top, right - left, bottom - top)


def _inside(luma_THW: np.ndarray) -> tuple[int, int]:
    """Return the first and one past the last row of the picture."""
    height = luma_THW.shape[1]
    first, first_colour = _bar(luma_THW)
    last, last_colour = _bar(luma_THW[:, ::-1])
    is_even = abs(first - last) <= max(2, _MIN_BAR * height)
    if max(first_colour, last_colour) > _DARK and not (
        is_even and abs(first_colour - last_colour) <= _NEAR
    ):
        return 0, height
    if height - first - last < _MIN_ACTIVE * height:
        return 0, height
    return first, height - last


def _bar(luma_THW: np.ndarray) -> tuple[int, float]:
    """Return how many rows from the first on are a bar, and its colour."""
    colour = _colour(luma_THW)
    share_TH = _share(luma_THW, colour)
    is_bar = (share_TH >= _COVERED).mean(axis=0) >= _MOST
    # rows of text that cover more: the bar goes on below them
    closed = np.flatnonzero(is_bar[1:] & is_bar[:-1] & (np.median(share_TH, axis=0) > _CLEAN)[1:])
    thickness = 0
    for row in closed.tolist():
        if row - thickness > _GAP * len(is_bar):
            break
        thickness = row + 2
    while thickness < len(is_bar) and is_bar[thickness]:
        thickness += 1
    if not _min_bar(len(is_bar)) <= thickness < len(is_bar) - _EDGE_ROWS:
        return 0, 0.0
    before, after = share_TH[:, thickness - _EDGE_ROWS], share_TH[:, thickness + _EDGE_ROWS]
    ends = (after < _PICTURE) & (before - after >= _EDGE)
    # text keeps its distance from the picture; an object before a black ground goes on into it
    beside = share_TH[:, thickness - _EDGE_ROWS - 1 : thickness - 1].min(axis=1)
    if ends.mean() <= 1 - _MOST or np.median(beside) < _CLEAN:
        return 0, 0.0
    return thickness + _is_blend(luma_THW[ends, thickness : thickness + 2], colour), colour


def _is_blend(rows_T2W: np.ndarray, colour: float) -> bool:
    """Return whether the first of two rows is between the colour of a bar and the second row."""
    edge, inner = rows_T2W.astype(np.int16).swapaxes(0, 1)
    apart = np.abs(inner - colour)
    is_seen = apart > 2 * _NEAR
    is_between = np.abs(edge - inner)[is_seen] > _BLEND * apart[is_seen]
    return bool(2 * is_between.sum() > is_between.size)


def _min_bar(length: int) -> int:
    return max(_EDGE_ROWS + 1, round(_MIN_BAR * length))


def _colour(luma_THW: np.ndarray) -> float:
    return float(np.median(luma_THW[:, :2]))


def _share(luma_THW: np.ndarray, colour: float) -> np.ndarray:
    """Return which share of each row has a colour: [T, H]."""
    some = luma_THW[:, :, :: max(1, luma_THW.shape[2] // _SAMPLES)]
    share: np.ndarray = (np.abs(some - np.int16(colour)) <= _NEAR).mean(axis=2)
    return share
