"""Films with uncommon pictures, made by the `ffmpeg` command from its own test pictures."""

from pathlib import Path

import numpy as np

from tests.support.video_files import ffmpeg

WIDE_LIGHT = "-color_primaries bt2020 -colorspace bt2020nc -color_trc"
_X264 = "-c:v libx264 -preset ultrafast"


def film(path: Path, picture: str, filters: str = "null", options: str = f"{_X264} -crf 8") -> Path:
    """Write a film: a source of lavfi, through filters; returns the path."""
    ffmpeg("-f", "lavfi", "-i", picture, "-vf", filters, *options.split(), path)
    return path


def shown(path: Path, filters: str, height: int, width: int) -> np.ndarray:
    """Return what ffmpeg shows of a film through filters: frames_THWC, int."""
    raw = ffmpeg("-i", path, "-vf", f"{filters},format=rgb24", "-f", "rawvideo", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3).astype(int)


def hdr(path: Path, sdr: Path, transfer: str, says: str = "") -> Path:
    """Write an SDR film of BT.709 as one of BT.2020 with another transfer function.

    Args:
        path: file to write.
        sdr: film to read.
        transfer: name of the transfer function.
        says: parameter of x264 that announces the light of the film or of its display.
    """
    to_wide = f"zscale=tin=bt709:min=bt709:pin=bt709:t={transfer}:m=bt2020nc:p=bt2020:agamma=0"
    options = f"{_X264} -crf 4 -pix_fmt yuv420p10le {WIDE_LIGHT} {transfer}"
    options += f" -x264-params {says}" * bool(says)
    ffmpeg("-i", sdr, "-vf", f"{to_wide},format=yuv420p10le", *options.split(), path)
    return path
