"""The two small pictures that are made of a decoded frame.

Resizing costs more than anything else that is done beside decoding, so the luma one is sampled
(it serves statistics) and the RGB one averages over the clip's part alone: what the crop throws
away is not resized first, which halves the cost of wide pictures.
"""

import math
from collections.abc import Sequence

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from videoar.media.clip_scores import LUMA_HEIGHT, LUMA_WIDTH

_HD_HEIGHT = 720  # untagged video at or above it is BT.709, else BT.601, as players assume
_PLANAR = {"yuv420p", "yuvj420p"}
_WORTH_CUTTING = 0.9  # of the picture; larger rectangles are cut out afterwards
Size = tuple[int, int]
"""Height and width, px."""


def nearest_size(sizes: Sequence[Size], height: float, width: float) -> Size:
    """Return the size whose aspect ratio is nearest to a picture's, in log ratio; ties: the first.

    Args:
        sizes: what there is to choose from.
        height: of the picture as it is shown.
        width: of the picture as it is shown, in the same unit.
    """

    def distance(size: Size) -> float:  # its exp, so that equal distances are equal floats
        across, down = width * size[0], height * size[1]
        return max(across, down) / min(across, down)

    return min(sizes, key=distance)


class FrameResizer:
    """Makes the pictures of one source's frames.

    The first RGB picture chooses their size. It holds for all that follow, so that a source gives
    clips of one size, whatever its frames change to later.

    Args:
        size_px: side of a square, or sizes to choose from: the one nearest to the source's shape.
        pixel_aspect: width of a source pixel over its height.
    """

    def __init__(self, size_px: int | Sequence[Size], pixel_aspect: float) -> None:
        self.pixel_aspect = pixel_aspect
        self._sizes = [(size_px, size_px)] if isinstance(size_px, int) else size_px
        self._size: Size | None = None
        self._luma_reformatter, self._rgb = VideoReformatter(), VideoReformatter()
        self._cutout: _Cutout | None = None

    def luma(self, frame: av.VideoFrame) -> np.ndarray:
        """Return luma as uint8 [36, 64], full range."""
        small = self._luma_reformatter.reformat(
            frame,
            LUMA_WIDTH,
            LUMA_HEIGHT,
            "gray",
            interpolation=Interpolation.FAST_BILINEAR,
            src_color_range=frame.color_range,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        luma: np.ndarray = small.to_ndarray()
        return luma

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        """Return the middle of a frame, resized and upright: uint8 [height, width, 3]."""
        turns = round(frame.rotation / 90)
        width, height = frame.width * self.pixel_aspect, frame.height
        if self._size is None:
            shown = (width, height) if turns % 2 else (height, width)
            self._size = nearest_size(self._sizes, *shown)
        wide, high = self._size if turns % 2 else self._size[::-1]  # before the frame is turned
        scale = max(wide / width, high / height)
        colours = {"src_colorspace": _colorspace(frame), "src_color_range": frame.color_range}
        interpolation = Interpolation.AREA if scale < 1 else Interpolation.BICUBIC
        whole = max(wide, round(width * scale)), max(high, round(height * scale))
        is_large = min(frame.width, frame.height) >= 2
        is_worth = wide * high < _WORTH_CUTTING * whole[0] * whole[1]
        if is_large and is_worth and frame.format.name in _PLANAR:
            frame, whole = self._cut(frame, wide, high), (wide, high)
        scaled = self._rgb.reformat(
            frame, *whole, "rgb24", interpolation=interpolation, threads=1, **colours
        )
        upright = np.rot90(scaled.to_ndarray(), turns)
        height, width = self._size
        top, left = (upright.shape[0] - height) // 2, (upright.shape[1] - width) // 2
        return np.ascontiguousarray(upright[top : top + height, left : left + width])

    def _cut(self, frame: av.VideoFrame, wide: int, high: int) -> av.VideoFrame:
        """Return the largest middle part of a frame that is shown in the shape wide x high."""
        common = math.gcd(wide, high)
        across, down = wide // common, high // common
        tall = min(frame.height, frame.width * self.pixel_aspect * down / across)
        broad = tall * across / down / self.pixel_aspect  # in this order, which rounds least
        width, height = (max(2, int(n) & ~1) for n in (broad, tall))
        if self._cutout is None or self._cutout.shape != (width, height):
            self._cutout = _Cutout(width, height)
        return self._cutout.cut(frame)


class _Cutout:
    """A frame in one buffer that is filled again and again: fresh pages would cost more."""

    def __init__(self, width: int, height: int) -> None:
        self.shape = width, height
        self._frame = av.VideoFrame(width, height, "yuv420p")
        self._planes = [
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
                :, : plane.width
            ]
            for plane in self._frame.planes
        ]

    def cut(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Fill the buffer with the middle of a frame; chroma is not split."""
        width, height = self.shape
        left, top = (frame.width - width) // 2 & ~1, (frame.height - height) // 2 & ~1
        for plane, mine in zip(frame.planes, self._planes, strict=True):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            shift = 0 if mine is self._planes[0] else 1
            y, x = top >> shift, left >> shift
            mine[:] = rows[y : y + mine.shape[0], x : x + mine.shape[1]]
        return self._frame


def _colorspace(frame: av.VideoFrame) -> int | Colorspace:
    if frame.colorspace != 2:  # 2: unspecified
        return int(frame.colorspace)
    return Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
