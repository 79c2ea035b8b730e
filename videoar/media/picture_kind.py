"""Which pictures are not what a viewer sees, though they decode like any other?

Source: enumerations of libavutil/stereo3d.h and libavutil/spherical.h.
"""

import av
import numpy as np

_PACKED = range(1, 8)  # AVStereo3DType: two views share a picture, or take turns
_RECTILINEAR = 4  # AVSphericalProjection: of an ordinary lens
_MAX_TRANSPARENT = 0.01  # chosen: share of pixels; recordings of windows have round corners


def picture_kind(first: av.VideoFrame, codec: str, *, has_alpha_layer: bool) -> str | None:
    """Return the column `picture_kind` of `clips@1`.

    Args:
        first: frame of the source, as decoded.
        codec: FFmpeg's name.
        has_alpha_layer: whether transparency is coded beside the picture, which decoders leave out.
    """
    if _number(first, "STEREO3D") in _PACKED:
        return "stereo"
    if _number(first, "SPHERICAL") not in {None, _RECTILINEAR}:
        return "spherical"
    if codec == "hevc" and first.interlaced_frame:  # other decoders join the fields of a frame
        return "field"
    if has_alpha_layer or _transparent_frac(first) > _MAX_TRANSPARENT:
        return "transparent"
    return None


def _number(frame: av.VideoFrame, name: str) -> int | None:
    """Return the first member of a structure of side data."""
    data = frame.side_data.get(name)
    if data is None:
        return None
    return int(np.frombuffer(memoryview(data), np.int32)[0])  # type: ignore[arg-type]


def _transparent_frac(frame: av.VideoFrame) -> float:
    if not (frame.format.has_palette or any(c.is_alpha for c in frame.format.components)):
        return 0.0
    return float((frame.to_ndarray(format="rgba")[..., 3] < 128).mean())
