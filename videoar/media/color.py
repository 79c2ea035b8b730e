"""What a frame says of its colours, and what is assumed where it says nothing.

Names are those of FFmpeg (`av_color_transfer_name` and its siblings); numbers are those of H.273.
"""

from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, ColorTrc, VideoReformatter

from videoar.core.errors import MediaError
from videoar.core.types import Row

_HD_WIDTH, _SD_HEIGHT = 1280, 576  # without a tag, players take what is larger for BT.709
_GBR, _BT709, _UNSPECIFIED, _BT601, _BT2020 = 0, 1, 2, 6, 9  # matrices
_TRANSFERS = {
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear",
    9: "log100", 10: "log316", 11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1",
    14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
_PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020",
    10: "smpte428", 11: "smpte431", 12: "smpte432", 22: "ebu3213",
}  # fmt: skip
_MATRICES = {
    0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco",
    9: "bt2020nc", 10: "bt2020c", 11: "smpte2085", 12: "chroma-derived-nc", 13: "chroma-derived-c",
    14: "ictcp", 15: "ipt-c2",
}  # fmt: skip
# of MP4: HEVC, H.264 and AV1 that only a decoder of Dolby Vision shows right
_DOLBY_TAGS = {"dvh1", "dvhe", "dva1", "dvav", "dav1"}
_CONVERTIBLE = {1, 2, 4, 5, 6, 7, 9}
_HDR = {ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67}


def matrix_of(frame: av.VideoFrame) -> int:
    """Return the matrix from the colours of a frame to RGB: announced, else by transfer or size."""
    if frame.colorspace != _UNSPECIFIED:
        return int(frame.colorspace)
    if frame.color_trc in _HDR:
        return _BT2020
    return _BT709 if frame.width >= _HD_WIDTH or frame.height > _SD_HEIGHT else _BT601


def settle_matrix(frame: av.VideoFrame, name: str) -> None:
    """Take a matrix that does not exist, or is one of RGB, for none, as players do.

    Raises:
        MediaError: `COLOR_DENIED`: swscale has no such matrix.
    """
    matrix = frame.colorspace
    if matrix in _CONVERTIBLE or (matrix == _GBR and frame.format.is_rgb):
        return
    if matrix != _GBR and matrix in _MATRICES and not frame.format.is_rgb:
        what = f"has colours of the matrix {_MATRICES[matrix]}, which cannot be converted"
        raise MediaError(name, "COLOR_DENIED", what)
    frame.colorspace = _UNSPECIFIED


def require_known_colors(first: av.VideoFrame, codec_tag: str, name: str) -> None:
    """Refuse Dolby Vision without a picture for other players (profile 5): it would be green.

    Raises:
        MediaError: `COLOR_DENIED`.
    """
    if codec_tag in _DOLBY_TAGS and first.colorspace == _UNSPECIFIED:
        what = "has the colours of Dolby Vision, which cannot be converted"
        raise MediaError(name, "COLOR_DENIED", what)


def color_columns(frame: av.VideoFrame) -> Row:
    """Return the columns `color_*` of `clips@1`."""
    is_rgb = frame.format.is_rgb or _has_palette(frame)
    return {
        "color_transfer": _TRANSFERS.get(int(frame.color_trc)),
        "color_primaries": _PRIMARIES.get(int(frame.color_primaries)),
        "color_matrix": "gbr" if is_rgb else _MATRICES.get(matrix_of(frame)),
        "color_range": "full" if is_full_range(frame) else "limited",
    }


def is_full_range(frame: av.VideoFrame) -> bool:
    """Return whether black is 0 in a frame, not 16."""
    name = frame.format.name
    is_rgb = frame.format.is_rgb or _has_palette(frame)
    return is_rgb or frame.color_range == ColorRange.JPEG or name.startswith("yuvj")


def _has_palette(frame: av.VideoFrame) -> bool:
    return frame.format.name.startswith(("pal", "mono"))


def has_luma(frame: av.VideoFrame) -> bool:
    """Return whether a plane of a frame is its luma in 8 bits."""
    return luma_bits(frame) == 8


def luma_bits(frame: av.VideoFrame) -> int:
    """Return the bits of the luma of a frame whose first plane it is; 0 of all others."""
    form = frame.format
    is_yuv = form.name.startswith(("yuv4", "yuvj4")) and not form.is_big_endian
    return form.components[0].bits if is_yuv else 0


def luma_of(frame: av.VideoFrame, to_grey: VideoReformatter) -> np.ndarray:
    """Return the luma of a frame at its own size: uint8 [height, width], mostly a view.

    Where a frame `has_luma`, in its own range, otherwise in full range.
    """
    if not has_luma(frame):
        frame = to_grey.reformat(frame, format="gray", threads=1)
    return plane_of(frame, np.uint8)


def plane_of(frame: av.VideoFrame, dtype: type[np.unsignedinteger[Any]]) -> np.ndarray:
    """Return the first plane of a frame as a view [height, width]."""
    plane = frame.planes[0]
    samples = np.frombuffer(memoryview(plane), dtype)
    rows = samples.reshape(-1, plane.line_size // samples.itemsize)
    plane_HW: np.ndarray = rows[: frame.height, : frame.width]
    return plane_HW
