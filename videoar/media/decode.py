"""Our own clips back to frames: small H.264 MP4 files that this package has written."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np

from videoar.core.errors import MediaError


def decode_clip(data: bytes | Path) -> np.ndarray:
    """Decode a clip written by `videoar.media.transcode`.

    Args:
        data: the file, or its path.

    Returns:
        frames_THWC, uint8 RGB.

    Raises:
        MediaError: the bytes are no such clip.
    """
    import av
    from av.video.reformatter import VideoReformatter

    where = str(data) if isinstance(data, Path) else f"{len(data)} bytes"
    source = f"file:{data.resolve()}" if isinstance(data, Path) else io.BytesIO(data)
    try:
        with av.open(source, mode="r", format="mov") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            # one for all frames: each frame by itself would make its own, for half of the time
            painter = VideoReformatter()
            frames = [
                painter.reformat(frame, format="rgb24").to_ndarray()
                for frame in container.decode(stream)
            ]
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(where, "CORRUPT", f"not a clip: {error}") from error
    if not frames:
        raise MediaError(where, "TOO_SHORT", "clip without frames")
    return np.stack(frames)


def thumbnail_jpeg(frames_THWC: np.ndarray, side_px: int = 112) -> bytes:
    """Return the middle frame of a clip as a small JPEG, at most `side_px` wide and high."""
    import av

    middle = av.VideoFrame.from_ndarray(frames_THWC[len(frames_THWC) // 2], format="rgb24")
    scale = min(1.0, side_px / max(middle.width, middle.height))
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width = max(2, round(middle.width * scale))
    codec.height = max(2, round(middle.height * scale))
    codec.pix_fmt, codec.time_base = "yuvj420p", Fraction(1)
    codec.options = {"qmin": "2", "qmax": "3"}  # chosen: a few kB, 41 dB on a drawn clip
    small = middle.reformat(codec.width, codec.height, "yuvj420p")
    return b"".join(bytes(packet) for packet in [*codec.encode(small), *codec.encode(None)])
