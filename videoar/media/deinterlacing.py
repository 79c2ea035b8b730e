"""Find combed frames by measuring them, and deinterlace those with libavfilter's `bwdif`.

Flags do not decide: combed pictures are often coded without them, and whole progressive films carry
them. A frame is combed if its two fields belong to different times. That shows where something
moves: its top field then fits the bottom field of the frame before (or after) as well as its own.

    weave of the fields  t of this frame, b of this one    energy `own`
                         t of this, b of the one before    energy `near` if the top field is first
                         t of the one before, b of this    energy `far`

Energy is by how much a row is above or below both of its neighbours, where something moves. Where
both fields are of one time, own is far below near (0.1 to 0.6 on 20 films); where they are not, it
is about the same, and far is twice near. Noise has the same energy in all three.

Each frame is judged and deinterlaced with its two neighbours alone, so a clip that is decoded again
by time stamps gets the same pixels.
"""

from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter

from videoar.media.color import luma_bits, luma_of, plane_of
from videoar.media.pictures import Picture

DEINTERLACER = "bwdif"
_STRIPS, _STRIP_PX = 16, 4  # chosen: columns that are measured, of one half each; more find no more
_MOVED = 8  # chosen: grey levels, above coding noise
_MIN_ENERGY = 256  # chosen: 32 px that moved
_MIN_HEIGHT = 200  # chosen: smaller pictures were scaled, which leaves no fields
# chosen on 40 films: energy own over near; far over near without a flag and with one; energy over
# the difference of rows two apart, which is the same for combed and progressive pictures
_MIN_OWN, _MIN_FAR, _MIN_FAR_TAGGED, _MIN_COMB = 0.6, 1.3, 1.07, 0.25


class Deinterlacer:
    """Replaces the combed frames of one source."""

    def __init__(self) -> None:
        self._to_grey = VideoReformatter()
        self._graphs: dict[tuple[object, ...], Graph] = {}

    def top_field_first(self, picture: Picture) -> bool | None:
        """Return the order of the fields of a combed frame, None for one that is not combed."""
        frames = picture.before, picture.frame, picture.after
        if picture.frame.height < _MIN_HEIGHT:
            return None
        if len({(f.width, f.height, f.format.name) for f in frames}) > 1:
            return None
        own, before = self._strips(picture.frame), self._strips(picture.before)
        # the first frame of a source is its own neighbour
        beside = self._strips(picture.after) if picture.before is picture.frame else before
        moving = _apart(own, beside)[1:-1] > _MOVED
        if not moving.any() or (energy := _energy(own, moving)) < _MIN_ENERGY:
            return None
        if energy < _MIN_COMB * _within(own, moving):
            return None  # what most frames of most sources come to
        after = self._strips(picture.after)
        moving |= _apart(own, after)[1:-1] > _MOVED
        energy = _energy(own, moving)
        if energy < _MIN_COMB * _within(own, moving):
            return None
        top_first = _energy(_weave(own, before), moving) + _energy(_weave(after, own), moving)
        bottom_first = _energy(_weave(before, own), moving) + _energy(_weave(own, after), moving)
        near, far = sorted((top_first, bottom_first))
        min_far = _MIN_FAR_TAGGED if picture.frame.interlaced_frame else _MIN_FAR
        is_combed = 2 * energy >= _MIN_OWN * near and far >= min_far * near
        return top_first <= bottom_first if is_combed else None

    def progressive(self, picture: Picture, *, top_field_first: bool) -> av.VideoFrame:
        """Return the frame with its second field interpolated."""
        frame = picture.frame
        key = frame.width, frame.height, frame.format.name, top_field_first
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = Graph()
            source = graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=Fraction(1, 25),
            )
            parity = "tff" if top_field_first else "bff"
            options = f"mode=send_frame:parity={parity}:deint=all:threads=1"
            graph.link_nodes(source, graph.add(DEINTERLACER, options), graph.add("buffersink"))
            graph.configure()
        for neighbour in (picture.before, frame, picture.after):
            graph.push(neighbour)
        return _last(graph)

    def _strips(self, frame: av.VideoFrame) -> np.ndarray:
        """Return some columns of the luma of a frame, its upper 8 bits: uint8 [height, columns]."""
        deeper = max(0, luma_bits(frame) - 8)
        luma = plane_of(frame, np.uint16) if deeper else luma_of(frame, self._to_grey)
        step, rows = frame.width // _STRIPS, frame.height // 4 * 2
        if step > _STRIP_PX:  # every other strip from the upper half, the others from the lower one
            blocks = luma[: 2 * rows, : step * _STRIPS].reshape(2, rows, _STRIPS, step)
            # a row of a strip is copied as one item: four times as fast
            strips = blocks[..., :_STRIP_PX].view(f"V{_STRIP_PX * luma.itemsize}")[..., 0]
            both = np.concatenate([strips[0, :, ::2], strips[1, :, 1::2]], axis=1)
            luma = both.view(luma.dtype)
        return (luma >> deeper).astype(np.uint8) if deeper else luma


def _weave(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    both = top.copy()
    both[1::2] = bottom[1::2]
    return both


def _apart(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the absolute difference: uint8 has no negative numbers, and is fast."""
    apart: np.ndarray = np.maximum(rows, others) - np.minimum(rows, others)
    return apart


def _energy(rows: np.ndarray, moving: np.ndarray) -> int:
    above, row, below = rows[:-2], rows[1:-1], rows[2:]
    high, low = np.maximum(above, below), np.minimum(above, below)
    over = np.maximum(row, high) - high  # one of both is 0
    over += low - np.minimum(row, low)
    return _sum(over, moving)


def _within(rows: np.ndarray, moving: np.ndarray) -> int:
    return _sum(_apart(rows[2:], rows[:-2]), moving)


def _sum(levels: np.ndarray, moving: np.ndarray) -> int:
    # `where`: four times as long if half of it moves
    return int((levels * moving.view(np.uint8)).sum(dtype=np.uint32))


def _last(graph: Graph) -> av.VideoFrame:
    """Return the newest frame that a graph has; the ones before belong to earlier pictures."""
    newest = graph.vpull()
    while True:
        try:
            newest = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return newest
