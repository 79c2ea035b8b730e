"""Resize decoded frames to the two sizes that a scan needs: luma for scores, RGB for clips.

Resizing is the most expensive step beside decoding. So the luma frame uses fast bilinear sampling
(it only serves statistics), and of a wide frame the part that the centre crop discards is cut off
before the RGB resize. That halves the cost of wide frames.
"""

import math
from collections.abc import Sequence

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from videoar.media.clip_scores import LUMA_HEIGHT, LUMA_WIDTH
from videoar.media.orientation import UPRIGHT, Orientation

_HD_WIDTH, _SD_HEIGHT = 1280, 576  # untagged video of that width, or higher, is BT.709, else BT.601
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED of libavutil
_PLANAR = {"yuv420p", "yuvj420p"}  # formats that can be cropped plane by plane without conversion
_CROP_BELOW = 0.9  # chosen: share of the frame; above it, the copy costs more than it saves
Size = tuple[int, int]
"""Height and width, px."""


def nearest_size(sizes: Sequence[Size], height: float, width: float) -> Size:
    """Return the size whose aspect ratio is nearest in log ratio; of equal ones the first.

    Args:
        sizes: sizes to choose from.
        height: of the frame as displayed.
        width: of the frame as displayed, in the same unit.
    """

    def distance(size: Size) -> float:
        # exp of the log ratio: a log would round equal distances to different floats
        across, down = width * size[0], height * size[1]
        return max(across, down) / min(across, down)

    return min(sizes, key=distance)


class FrameResizer:
    """Resizes the frames of one source.

    The first RGB frame chooses the size from `size_px`; all later frames keep it, so that a source
    gives clips of one size even if the stream changes its own.

    Args:
        size_px: side of a square, or sizes to choose from: the one nearest to the source's shape.
        pixel_aspect: width of a source pixel over its height.
    """

    def __init__(self, size_px: int | Sequence[Size], pixel_aspect: float) -> None:
        self.pixel_aspect = pixel_aspect
        self._sizes = [(size_px, size_px)] if isinstance(size_px, int) else size_px
        self._size: Size | None = None
        # a reformatter caches its swscale context; a shared one would rebuild it at every frame
        self._to_luma, self._to_rgb = VideoReformatter(), VideoReformatter()
        self._crop: _CropBuffer | None = None

    def luma(self, frame: av.VideoFrame) -> np.ndarray:
        """Return the luma of a frame as uint8 [36, 64], full range."""
        small = self._to_luma.reformat(
            frame,
            LUMA_WIDTH,
            LUMA_HEIGHT,
            "gray",
            interpolation=Interpolation.FAST_BILINEAR,
            # named on both sides: scores must not differ between limited and full range sources
            src_color_range=frame.color_range,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        luma_hw: np.ndarray = small.to_ndarray()
        return luma_hw

    def rgb(self, frame: av.VideoFrame, orientation: Orientation = UPRIGHT) -> np.ndarray:
        """Return the centre of a frame, resized and as shown: uint8 [height, width, 3]."""
        width, height = frame.width * self.pixel_aspect, frame.height
        if self._size is None:
            displayed = (width, height) if orientation.is_sideways else (height, width)
            self._size = nearest_size(self._sizes, *displayed)
        # target size in the frame's own orientation: rotating the small result is cheaper
        crop_width, crop_height = self._size if orientation.is_sideways else self._size[::-1]
        scale = max(crop_width / width, crop_height / height)
        covering = max(crop_width, round(width * scale)), max(crop_height, round(height * scale))
        is_saving = crop_width * crop_height < _CROP_BELOW * covering[0] * covering[1]
        is_splittable = min(frame.width, frame.height) >= 2 and frame.format.name in _PLANAR
        source, resized = frame, covering
        if is_saving and is_splittable:
            resized = crop_width, crop_height
            source = self._cropped(frame, *resized)
        scaled = self._to_rgb.reformat(
            source,
            *resized,
            "rgb24",
            # AREA averages all source pixels: any other filter aliases when it shrinks this much
            interpolation=Interpolation.AREA if scale < 1 else Interpolation.BICUBIC,
            threads=1,
            # of the whole frame: the crop buffer carries no colour tags and has another height
            src_colorspace=_colorspace(frame),
            src_color_range=frame.color_range,
        )
        upright = orientation.applied(scaled.to_ndarray())
        height, width = self._size
        top, left = (upright.shape[0] - height) // 2, (upright.shape[1] - width) // 2
        return np.ascontiguousarray(upright[top : top + height, left : left + width])

    def _cropped(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        """Return the largest centre part of a frame that displays in the shape width x height."""
        common = math.gcd(width, height)
        across, down = width // common, height // common
        crop_height = min(frame.height, frame.width * self.pixel_aspect * down / across)
        crop_width = crop_height * across / down / self.pixel_aspect  # this order rounds least
        even = tuple(max(2, int(length) & ~1) for length in (crop_width, crop_height))
        if self._crop is None or self._crop.shape != even:
            self._crop = _CropBuffer(*even)
        return self._crop.fill(frame)


class _CropBuffer:
    """A frame buffer that is filled again for every frame: new pages would cost more."""

    def __init__(self, width: int, height: int) -> None:
        self.shape = width, height
        self._frame = av.VideoFrame(width, height, "yuv420p")
        self._planes = [
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
                :, : plane.width
            ]
            for plane in self._frame.planes
        ]

    def fill(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Copy the centre of a frame into the buffer and return it."""
        width, height = self.shape
        # even offsets: a chroma sample covers 2x2 pixels and cannot be split
        left, top = (frame.width - width) // 2 & ~1, (frame.height - height) // 2 & ~1
        for plane, target in zip(frame.planes, self._planes, strict=True):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            shift = 0 if target is self._planes[0] else 1
            y, x = top >> shift, left >> shift
            target[:] = rows[y : y + target.shape[0], x : x + target.shape[1]]
        return self._frame


def _colorspace(frame: av.VideoFrame) -> int | Colorspace:
    if frame.colorspace != _UNSPECIFIED:
        return int(frame.colorspace)
    is_hd = frame.width >= _HD_WIDTH or frame.height > _SD_HEIGHT  # as players assume
    return Colorspace.ITU709 if is_hd else Colorspace.ITU601
