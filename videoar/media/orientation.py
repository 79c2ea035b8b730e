"""Orientation of a frame: the display matrix of a container or a stream, as players apply it.

A display matrix maps places of the stored picture to places of the shown one; y points down:

    [x' y' 1] = [x y 1] | a b u |      a, b, c, d: turn, mirror and scale (16.16 fixed point)
                        | c d v |      x, y: shift, which only keeps the picture in view
                        | x y w |

Only the eight orientations that move pixels as they are can be applied; any other is refused, as
turning by 45 degrees would need a picture of another shape.
Source: ISO/IEC 14496-12, `matrix` of `tkhd`; libavutil/display.h; `test_orientation.py` compares
with the autorotation of ffmpeg.
"""

from typing import NamedTuple

import av
import numpy as np

from videoar.core.errors import MediaError

_TOLERANCE = 0.02  # of the unit vector: about 1 degree, the tolerance of ffmpeg
_TURNS = {(1, 0): 0, (0, 1): 90, (-1, 0): 180, (0, -1): 270}


class Orientation(NamedTuple):
    """What must be done to a stored picture to show it: turn it, then mirror it."""

    rotation_deg: int = 0
    """Clockwise: 0, 90, 180 or 270."""
    is_mirrored: bool = False
    """From left to right."""

    @property
    def is_sideways(self) -> bool:
        """Whether width and height change places."""
        return self.rotation_deg % 180 == 90

    def applied(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Return a view of a stored picture as it is shown."""
        turned = np.rot90(frame_HWC, -self.rotation_deg // 90)
        return turned[:, ::-1] if self.is_mirrored else turned


UPRIGHT = Orientation()


def orientation_of(frame: av.VideoFrame, before: Orientation | None, name: str) -> Orientation:
    """Return the orientation that the side data of a frame gives.

    A container's matrix is in the data of every frame. A stream's own is in that of a key frame and
    holds until the next one. So other frames are asked only if they say that they are turned: to
    ask costs more than all else beside decoding.

    Args:
        frame: decoded frame.
        before: orientation of the frame shown before it; None for the first one.
        name: of the source, for the error.

    Raises:
        MediaError: `ORIENTATION_DENIED`, see `from_matrix`.
    """
    if before is not None and not frame.key_frame and not frame.rotation:
        return before
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return before if before and not frame.key_frame else UPRIGHT
    return from_matrix(np.frombuffer(memoryview(data), np.int32), name)  # type: ignore[arg-type]


def from_matrix(matrix: np.ndarray, name: str) -> Orientation:
    """Return the orientation of a display matrix.

    The scale is not looked at: demuxers have made it the shape of a pixel.

    Args:
        matrix: int32 [9], row by row as stored.
        name: of the source, for the error.

    Raises:
        MediaError: `ORIENTATION_DENIED`: the matrix turns by another angle, shears or has no area.
    """
    axes = matrix.reshape(3, 3)[:2, :2].astype(float)  # images of the x axis and of the y axis
    if not axes.any():
        return UPRIGHT  # not filled in; players show such files as they are stored
    lengths = np.hypot(*axes.T)
    unit = axes / np.maximum(lengths, 1)[:, None]
    (a, b), (c, d) = nearest = np.rint(unit).astype(int).tolist()
    is_mirrored = a * d - b * c < 0
    turn = _TURNS.get((-a, b) if is_mirrored else (a, b))
    if turn is None or abs(a * d - b * c) != 1 or np.abs(unit - nearest).max() > _TOLERANCE:
        values = ", ".join(f"{value / 65536:g}" for value in axes.ravel())
        what = f"is shown with the matrix {values}, which is no quarter turn and no mirroring"
        raise MediaError(name, "ORIENTATION_DENIED", what)
    return Orientation(turn, is_mirrored)
