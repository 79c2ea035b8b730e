"""Pictures of frames: the middle of the whole, upright."""

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation, VideoReformatter

from videoar.media.picture import Painter


def smooth(height, width):
    """Draw waves, which a shift by a pixel hardly changes."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(5 * x + 2 * y), np.cos(4 * y - 2 * x), np.sin(4 * x * y + 2)]
    return np.round(127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def frame_of(height, width, form="yuv420p"):
    return av.VideoFrame.from_ndarray(smooth(height, width), format="rgb24").reformat(format=form)


@pytest.mark.parametrize("source", [(240, 426), (426, 240), (98, 121)])
def test_squares_are_those_of_the_even_middle_square(source):
    frame = frame_of(*source)
    side = min(source) // 2 * 2
    top, left = ((length - side) // 2 // 2 * 2 for length in source)
    luma, *chroma = (
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes
    )
    parts = [luma[top : top + side, left : left + side]] + [
        plane[top // 2 : (top + side) // 2, left // 2 : (left + side) // 2] for plane in chroma
    ]
    data = np.concatenate([part.ravel() for part in parts]).reshape(side * 3 // 2, side)
    square = av.VideoFrame.from_ndarray(data, format="yuv420p")
    how = {"interpolation": Interpolation.AREA, "src_colorspace": "ITU601"}
    wanted = VideoReformatter().reformat(square, 48, 48, "rgb24", **how).to_ndarray()
    assert np.array_equal(Painter(48, 1.0).picture(frame), wanted)
