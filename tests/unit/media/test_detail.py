"""Detail ranks copies of one picture by what they show, not by their pixels."""

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation

from videoar.media.detail import Lines

RESIZE = {"interpolation": Interpolation.BICUBIC}


def picture(height=480, width=640):
    """Edges and textures of all sizes, as an RGB frame."""
    draw = np.random.default_rng(3)
    image = np.zeros((height, width, 3))
    for cells in (4, 16, 64, 160):
        coarse = draw.uniform(0, 200 / cells**0.4, (cells * 3 // 4, cells, 3))
        image += coarse[np.arange(height)[:, None] * len(coarse) // height,
                        np.arange(width) * cells // width]  # fmt: skip
    return av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), "rgb24")


def padded(frame):
    rgb = frame.to_ndarray(format="rgb24")
    return av.VideoFrame.from_ndarray(np.pad(rgb, ((120, 120), (160, 160), (0, 0))), "rgb24")


def with_text(frame):
    half = frame.reformat(320, 240, **RESIZE)
    rgb = half.reformat(640, 480, **RESIZE).to_ndarray(format="rgb24")
    strokes = np.random.default_rng(4).integers(0, 2, (10, 110, 1))
    rgb[420:450, 100:540] = np.kron(255 * strokes, np.ones((3, 4, 1)))
    return av.VideoFrame.from_ndarray(rgb, "rgb24")


@pytest.mark.parametrize(
    ("copy", "most"),
    [
        (lambda f: f.reformat(160, 120, **RESIZE).reformat(1280, 960, **RESIZE), 0.6),
        (lambda f: f.reformat(320, 240, **RESIZE), 0.9),
        (lambda f: f.reformat(1280, 960, **RESIZE), 1.0),
        (padded, 1.01),
        (with_text, 1.0),
    ],
)
def test_copies_have_less_detail_than_the_sharp_original(copy, most):
    original = picture()
    assert Lines.of(copy(original)).detail() < most * Lines.of(original).detail()


def test_combs_are_no_detail():
    rgb = picture().to_ndarray(format="rgb24")
    woven = rgb.copy()
    woven[1::2] = np.roll(rgb[1::2], 12, axis=1)
    original, combed = (av.VideoFrame.from_ndarray(pixels, "rgb24") for pixels in (rgb, woven))
    assert Lines.of(combed).detail() > Lines.of(original).detail()
    assert Lines.of(combed, is_combed=True).detail() < Lines.of(original).detail()


def test_formats_agree_and_a_flat_frame_has_none():
    frame = picture()
    formats = [
        Lines.of(frame.reformat(format=f)).detail()
        for f in ("yuv420p", "yuv420p10le", "yuvj444p", "gray")
    ]
    assert np.allclose(formats, formats[-1], rtol=0.02)
    flat = av.VideoFrame.from_ndarray(np.full((36, 64), 90, np.uint8), "gray")
    assert Lines.of(flat).detail() == 0
