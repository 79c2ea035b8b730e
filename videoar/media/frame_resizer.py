"""Resize decoded frames to the two sizes that a scan needs: luma for scores, RGB for clips.

Resizing is the most expensive step beside decoding. So the luma frame uses fast bilinear sampling
(it only serves statistics), and the part of a frame that no clip shows, bars and what the centre
crop discards, is cut off before the RGB resize.

RGB frames are made in planes (gbrp) and packed afterwards: swscale then computes chroma at full
width and rounds well, and is faster than where it writes packed pixels itself. Packed directly,
pictures are 0.6-0.8 levels darker, and colours have half the width.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import av
import numpy as np
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from videoar.core.types import Row
from videoar.media.active_area import Box
from videoar.media.clip_scores import LUMA_HEIGHT, LUMA_WIDTH
from videoar.media.color import matrix_of
from videoar.media.deinterlacing import DEINTERLACER, Deinterlacer
from videoar.media.orientation import Orientation
from videoar.media.pictures import Picture
from videoar.media.tone_mapping import Curve, ToneMapper, mapping_of

_CROP_BELOW = 0.9  # chosen: share of the frame; above it, the copy costs more than it saves
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
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
    """Makes the frames of one source: crops, deinterlaces, resizes, maps colours, turns.

    The first RGB frame chooses the size from `size_px`; all later frames keep it, so that a source
    gives clips of one size even if the stream changes its own.

    Args:
        size_px: side of a square, or sizes to choose from: the one nearest to the source's shape.
        deinterlace: `auto` replaces combed frames, `measure` counts them.
        tone_map: curve for high dynamic range; None leaves the colours of all sources.
    """

    def __init__(
        self,
        size_px: int | Sequence[Size],
        *,
        deinterlace: Literal["auto", "measure", "off"] = "off",
        tone_map: Curve | None = None,
    ) -> None:
        self._active: tuple[Box, tuple[int, int]] | None = None
        self._sizes = [(size_px, size_px)] if isinstance(size_px, int) else size_px
        self._size: Size | None = None
        self._deinterlace, self._curve = deinterlace, tone_map
        self._deinterlacer = Deinterlacer()
        # a reformatter caches its swscale context; a shared one would rebuild it at every frame
        self._to_luma, self._to_rgb, self._pack, self._unpack = (
            VideoReformatter() for _ in range(4)
        )
        self._buffers: dict[int, _CropBuffer] = {}
        self._mapper: ToneMapper | None = None
        self._mapped_as: tuple[object, ...] = ()
        self._layout: _Layout | None = None
        self._laid_out_for: tuple[object, ...] = ()

    def crop_to(self, active: Box, frame_size: tuple[int, int]) -> None:
        """Take only this part of stored frames of this width and height; of others, all."""
        self._active, self._layout = (active, frame_size), None

    @property
    def tone_map(self) -> str | None:
        """How the colours of the last frame are mapped, see `mapping_of`."""
        return self._mapper.mapping if self._mapper else None

    def luma(self, frame: av.VideoFrame) -> np.ndarray:
        """Return the luma of a frame inside the bars as uint8 [36, 64], full range."""
        source = frame
        if self._active and (active := self._active_in(frame)) != _box_of(frame):
            source = self._cropped(frame, active, 0)
        small = self._to_luma.reformat(
            source,
            LUMA_WIDTH,
            LUMA_HEIGHT,
            "gray",
            interpolation=Interpolation.FAST_BILINEAR,
            # named on both sides: scores must not differ between limited and full range sources
            src_color_range=frame.color_range,
            dst_color_range=ColorRange.JPEG,
            # one matrix on both sides: the luma of the source, whatever its tag. Otherwise swscale
            # makes RGB of it and then luma of BT.601, in more than twice the time.
            src_colorspace=Colorspace.ITU601,
            dst_colorspace=Colorspace.ITU601,
            threads=1,
        )
        luma_hw: np.ndarray = small.to_ndarray()
        mapper = self._mapper_for(frame)
        return luma_hw if mapper is None else mapper.mapped_luma[luma_hw]

    def rgb(self, picture: Picture) -> tuple[av.VideoFrame, Row]:
        """Return the centre of a frame inside the bars, resized, and how it was made.

        Returns:
            A frame for `pixels`, which is left for when its clip is known to be kept; and columns
            of `clips@1`: `combed_frac` and `deinterlacer` are those of this one frame.
        """
        frame = picture.frame
        is_measured = self._deinterlace != "off"
        is_top_first = self._deinterlacer.top_field_first(picture) if is_measured else None
        if is_top_first is not None and self._deinterlace == "auto":
            frame = self._deinterlacer.progressive(picture, top_field_first=is_top_first)
        layout = self._layout_of(frame, picture.orientation, picture.pixel_aspect)
        mapper = self._mapper_for(frame)
        source = frame if layout.part is None else self._cropped(frame, layout.part, 1)
        scaled = self._to_rgb.reformat(
            source,
            *layout.resized,
            "gbrp" if mapper is None else "gbrp16le",
            interpolation=layout.interpolation,
            threads=1,
            # of the whole frame: the crop buffer carries no colour tags and has another height
            src_colorspace=matrix_of(frame),
            src_color_range=frame.color_range,
        )
        if mapper is not None:
            scaled = mapper.rgb(scaled)
        elif frame.format.is_rgb and frame.format.components[0].bits < 8:
            scaled = _in_full_levels(self._packed(scaled), frame.format)
        elif scaled is source:  # it was planes of RGB of this size; the buffer is filled again
            scaled = self._packed(scaled)
        return scaled, {
            **layout.columns,
            "combed_frac": float(is_top_first is not None) if is_measured else None,
            "deinterlacer": None if frame is picture.frame else DEINTERLACER,
            "tone_map": mapper.mapping if mapper else None,
        }

    def pixels(self, scaled: av.VideoFrame, orientation: Orientation) -> np.ndarray:
        """Return what `rgb` has made as frame_HWC, uint8 RGB, upright."""
        upright = orientation.applied(self._packed(scaled).to_ndarray())
        height, width = self._size or upright.shape[:2]
        top, left = (upright.shape[0] - height) // 2, (upright.shape[1] - width) // 2
        # of turned views, NumPy would stack transposed clips
        return np.ascontiguousarray(upright[top : top + height, left : left + width])

    def _packed(self, scaled: av.VideoFrame) -> av.VideoFrame:
        return self._pack.reformat(scaled, format="rgb24", threads=1)

    def _layout_of(
        self, frame: av.VideoFrame, orientation: Orientation, aspect: float
    ) -> "_Layout":
        size = frame.width, frame.height
        kind = *size, frame.format.name, orientation, aspect
        if self._layout and self._laid_out_for == kind:
            return self._layout
        active = self._active_in(frame)
        width, height = active.width * aspect, active.height
        if self._size is None:
            displayed = (width, height) if orientation.is_sideways else (height, width)
            self._size = nearest_size(self._sizes, *displayed)
        # target size in the frame's own orientation: rotating the small result is cheaper
        crop_width, crop_height = self._size if orientation.is_sideways else self._size[::-1]
        scale = max(crop_width / width, crop_height / height)
        resized = max(crop_width, round(width * scale)), max(crop_height, round(height * scale))
        is_saving = crop_width * crop_height < _CROP_BELOW * resized[0] * resized[1]
        shown = _centre(active, crop_width, crop_height, aspect)
        part = None if active == _box_of(frame) else active
        if is_saving and _is_planar(frame) and min(active.width, active.height) >= 2:
            resized, part = (crop_width, crop_height), shown

        def shown_as(box: Box) -> list[int]:
            return list(box.shown(size, orientation, aspect))

        self._laid_out_for = kind
        # AREA averages all source pixels: any other filter aliases when it shrinks this much
        self._layout = _Layout(
            part,
            resized,
            _EXACT | (Interpolation.AREA if scale < 1 else Interpolation.BICUBIC),
            {
                "active_box": shown_as(active) if self._active else None,
                "crop_box": shown_as(shown),
                "resampling": "area" if scale < 1 else "bicubic",
            },
        )
        return self._layout

    def _active_in(self, frame: av.VideoFrame) -> Box:
        if self._active is None or self._active[1] != (frame.width, frame.height):
            return _box_of(frame)
        return self._active[0]

    def _cropped(self, frame: av.VideoFrame, box: Box, use: int) -> av.VideoFrame:
        """Return part of a frame; `use` numbers the buffers, as sizes differ between them."""
        if not _is_planar(frame):
            frame = self._unpack.reformat(frame, format="gbrp", src_colorspace=matrix_of(frame))
        buffer = self._buffers.get(use)
        if buffer is None or buffer.shape != (box.width, box.height, frame.format.name):
            buffer = self._buffers[use] = _CropBuffer(box.width, box.height, frame.format.name)
        return buffer.fill(frame, box.left, box.top)

    def _mapper_for(self, frame: av.VideoFrame) -> ToneMapper | None:
        kind = frame.color_trc, frame.color_primaries
        if kind != self._mapped_as:
            mapping = mapping_of(frame, self._curve)
            self._mapper = None if mapping is None else ToneMapper(frame, mapping)
            self._mapped_as = kind
        return self._mapper


class _Layout(NamedTuple):
    """How to make RGB frames of those of one size, format and orientation."""

    part: Box | None
    """Of the stored frame; None for all of it."""
    resized: tuple[int, int]
    interpolation: Interpolation
    columns: Row


class _CropBuffer:
    """A frame buffer that is filled again for every frame: new pages would cost more."""

    def __init__(self, width: int, height: int, form: str) -> None:
        self.shape = width, height, form
        self._frame = av.VideoFrame(width, height, form)
        self._bytes = (self._frame.format.components[0].bits + 7) // 8
        self._planes = [
            self._rows(plane)[:, : plane.width * self._bytes] for plane in self._frame.planes
        ]

    def fill(self, frame: av.VideoFrame, left: int, top: int) -> av.VideoFrame:
        """Copy part of a frame into the buffer and return it."""
        width, height, _ = self.shape
        for plane, own, target in zip(frame.planes, self._frame.planes, self._planes, strict=True):
            x = left // round(width / own.width) * self._bytes
            y = top // round(height / own.height)
            target[:] = self._rows(plane)[y : y + target.shape[0], x : x + target.shape[1]]
        return self._frame

    @staticmethod
    def _rows(plane: VideoPlane) -> np.ndarray:
        return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)


def _centre(outer: Box, width: int, height: int, aspect: float) -> Box:
    """Return the largest centre part of a box that displays in the shape width x height."""
    common = math.gcd(width, height)
    across, down = width // common, height // common
    crop_height = min(outer.height, outer.width * aspect * down / across)
    crop_width = crop_height * across / down / aspect  # this order rounds least
    # even, places too: a chroma sample covers 2x2 pixels and cannot be split
    width, height = (max(2, int(length) & ~1) for length in (crop_width, crop_height))
    left = outer.left + ((outer.width - width) // 2 & ~1)
    return Box(left, outer.top + ((outer.height - height) // 2 & ~1), width, height)


def _in_full_levels(rgb: av.VideoFrame, source: av.VideoFormat) -> av.VideoFrame:
    """Return pictures that had 5 or 6 bits of a colour with white at 255: swscale leaves 248."""
    white = [256 - (256 >> component.bits) for component in source.components[:3]]
    full_HWC = np.round(rgb.to_ndarray() * (255 / np.array(white))).astype(np.uint8)
    return av.VideoFrame.from_ndarray(full_HWC, format="rgb24")


def _box_of(frame: av.VideoFrame) -> Box:
    return Box(0, 0, frame.width, frame.height)


def _is_planar(frame: av.VideoFrame) -> bool:
    """Whether every colour has a plane of its own, halved or whole, as `_CropBuffer` needs it."""
    form = frame.format
    if form.components[0].bits < 8:  # eight pixels of a byte
        return False
    halves = form.chroma_width(8) in {4, 8} and form.chroma_height(8) in {4, 8}
    return halves and len(frame.planes) == len(form.components) and not form.is_big_endian
