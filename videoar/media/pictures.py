"""Decoded frames with what is known of them, each beside its neighbours."""

from collections.abc import Iterator
from typing import NamedTuple

import av

from videoar.media.orientation import UPRIGHT, Orientation
from videoar.media.source_decoder import SourceDecoder


class Picture(NamedTuple):
    """A decoded frame; at an end of the source it is its own neighbour."""

    frame: av.VideoFrame
    before: av.VideoFrame
    after: av.VideoFrame
    orientation: Orientation = UPRIGHT
    errors: int = 0
    number: int = 0
    time_us: int = 0
    pixel_aspect: float = 1.0
    """Width of a pixel over its height."""


def pictures(decoder: SourceDecoder, *, with_neighbours: bool) -> Iterator[Picture]:
    """Yield the frames of a source, each once its successor is decoded.

    Without neighbours each is its own: a frame that is used at once is still in the caches.
    """
    if not with_neighbours:
        for frame, errors in decoder.frames():
            yield Picture(frame, frame, frame, *_columns(decoder, errors))
        return
    before: av.VideoFrame | None = None
    held: av.VideoFrame | None = None
    columns: tuple[Orientation, int, int, int, float] | None = None
    for frame, errors in decoder.frames():
        if held is not None and columns is not None:
            yield Picture(held, before or held, frame, *columns)
        before, held = held, frame
        columns = _columns(decoder, errors)
    if held is not None and columns is not None:
        yield Picture(held, before or held, held, *columns)


def _columns(decoder: SourceDecoder, errors: int) -> tuple[Orientation, int, int, int, float]:
    number = len(decoder.times_us) - 1
    return decoder.orientation, errors, number, decoder.last_us, decoder.pixel_aspect
