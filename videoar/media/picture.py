"""The two small pictures that are made of a decoded frame.

Resizing costs more than anything else that is done beside decoding, so the grey one is sampled
(it serves statistics) and the RGB one averages over the clip's square alone: what the crop throws
away is not resized first, which halves the cost of wide pictures.
"""

from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from videoar.media.quality import GREY_HEIGHT, GREY_WIDTH

_HD_HEIGHT = 720  # untagged video at or above it is BT.709, else BT.601, as players assume
_PLANAR = {"yuv420p", "yuvj420p"}
_WORTH_CUTTING = 0.9  # of the picture; larger squares are cut out afterwards


class Painter:
    """Makes the pictures of one source's frames.

    Args:
        size_px: side of the RGB picture.
        pixel_aspect: width of a source pixel over its height.
    """

    def __init__(self, size_px: int, pixel_aspect: float) -> None:
        self.size_px, self.pixel_aspect = size_px, pixel_aspect
        self._grey, self._rgb = VideoReformatter(), VideoReformatter()
        self._square: _Square | None = None

    def grey(self, frame: Any) -> np.ndarray:  # noqa: ANN401 - av frame
        """Return luma as uint8 [36, 64], full range."""
        small = self._grey.reformat(
            frame,
            GREY_WIDTH,
            GREY_HEIGHT,
            "gray",
            interpolation=Interpolation.FAST_BILINEAR,
            src_color_range=frame.color_range,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        grey: np.ndarray = small.to_ndarray()
        return grey

    def picture(self, frame: Any) -> np.ndarray:  # noqa: ANN401 - av frame
        """Return the middle square of a frame, resized and upright: uint8 [size, size, 3]."""
        size = self.size_px
        width, height = frame.width * self.pixel_aspect, frame.height
        scale = size / min(width, height)
        colours = {"src_colorspace": _colorspace(frame), "src_color_range": frame.color_range}
        interpolation = Interpolation.AREA if scale < 1 else Interpolation.BICUBIC
        turns = round(frame.rotation / 90)
        wide, high = max(size, round(width * scale)), max(size, round(height * scale))
        is_large = min(frame.width, frame.height) >= 2
        if is_large and frame.format.name in _PLANAR and size * size < _WORTH_CUTTING * wide * high:
            frame, wide, high = self._cut(frame), size, size
        scaled = self._rgb.reformat(
            frame, wide, high, "rgb24", interpolation=interpolation, threads=1, **colours
        )
        upright = np.rot90(scaled.to_ndarray(), turns)
        top, left = ((side - size) // 2 for side in upright.shape[:2])
        return np.ascontiguousarray(upright[top : top + size, left : left + size])

    def _cut(self, frame: Any) -> Any:  # noqa: ANN401 - av frame
        side = min(frame.width * self.pixel_aspect, frame.height)
        width, height = (max(2, int(n) & ~1) for n in (side / self.pixel_aspect, side))
        if self._square is None or self._square.shape != (width, height):
            self._square = _Square(width, height)
        return self._square.cut(frame)


class _Square:
    """A frame in one buffer that is filled again and again: fresh pages would cost more."""

    def __init__(self, width: int, height: int) -> None:
        self.shape = width, height
        self._frame = av.VideoFrame(width, height, "yuv420p")
        self._planes = [
            np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width]
            for plane in self._frame.planes
        ]

    def cut(self, frame: Any) -> Any:  # noqa: ANN401 - av frame
        """Fill the buffer with the middle of a frame; chroma is not split."""
        width, height = self.shape
        left, top = (frame.width - width) // 2 & ~1, (frame.height - height) // 2 & ~1
        for plane, mine in zip(frame.planes, self._planes, strict=True):
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            shift = 0 if mine is self._planes[0] else 1
            y, x = top >> shift, left >> shift
            mine[:] = rows[y : y + mine.shape[0], x : x + mine.shape[1]]
        return self._frame


def _colorspace(frame: Any) -> int | Colorspace:  # noqa: ANN401 - av frame
    if frame.colorspace != 2:  # 2: unspecified
        return int(frame.colorspace)
    return Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
