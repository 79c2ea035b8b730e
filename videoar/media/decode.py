"""Decode stored clips: small H.264 MP4 files that `videoar.media.transcode` has written.

They are trusted, so they are decoded in this process, without the sandbox.
"""

import io
from fractions import Fraction
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from videoar.core.errors import DiskError, MediaError


def decode_clip(data: bytes | Path) -> np.ndarray:
    """Return the frames of a clip.

    Args:
        data: the file, or its path.

    Returns:
        frames_THWC, uint8 RGB.

    Raises:
        MediaError: the bytes are no such clip (`CORRUPT`), or it has no frames (`TOO_SHORT`).
    """
    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    # swscale's defaults are a level too dark and give each pair of pixels in a row one chroma;
    # in two steps, by way of planes, the exact conversion takes half the time
    exact = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
    where = str(data) if isinstance(data, Path) else f"{len(data)} bytes"
    source = f"file:{data.resolve()}" if isinstance(data, Path) else io.BytesIO(data)
    try:
        with av.open(source, mode="r", format="mov") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            # shared by all frames: `frame.to_ndarray` would create one each, half of the total time
            to_rgb, pack = VideoReformatter().reformat, VideoReformatter().reformat
            planes = (
                to_rgb(frame, format="gbrp", interpolation=exact, threads=1)
                for frame in container.decode(stream)
            )
            frames = [pack(p, format="rgb24", threads=1).to_ndarray() for p in planes]
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(where, "CORRUPT", f"cannot be decoded: {error}") from error
    if not frames:
        raise MediaError(where, "TOO_SHORT", "has no frames")
    return np.stack(frames)


def decodable_frames(data: bytes) -> int:
    """Return how many frames of a clip can be decoded, one in memory at a time; 0 of no clip."""
    import av

    try:
        with av.open(io.BytesIO(data), mode="r", format="mov") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            return sum(1 for _ in container.decode(stream))
    except (av.FFmpegError, IndexError):
        return 0


def require_frames(data: bytes, count: int) -> None:
    """Check that a file that was just encoded has all of its frames.

    Raises:
        DiskError: it has fewer, or cannot be decoded.
    """
    if (found := decodable_frames(data)) != count:
        what = f"{found} of {count} frames of an encoded clip can be decoded"
        raise DiskError(gettempdir(), what, "check the disk and its free space")


def thumbnail_jpeg(frames_THWC: np.ndarray, side_px: int = 112) -> bytes:
    """Return the middle frame of a clip as a JPEG, at most `side_px` wide and high."""
    import av

    middle = av.VideoFrame.from_ndarray(frames_THWC[len(frames_THWC) // 2], format="rgb24")
    scale = min(1.0, side_px / max(middle.width, middle.height))
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width = max(2, round(middle.width * scale))
    codec.height = max(2, round(middle.height * scale))
    codec.pix_fmt, codec.time_base = "yuvj420p", Fraction(1)
    codec.options = {"qmin": "2", "qmax": "3"}  # chosen: a few kB, 41 dB PSNR on a synthetic clip
    small = middle.reformat(codec.width, codec.height, "yuvj420p")
    return b"".join(bytes(packet) for packet in [*codec.encode(small), *codec.encode(None)])
