"""Our own clips back to frames: small H.264 MP4 files that this package has written."""

import io
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

    where = str(data) if isinstance(data, Path) else f"{len(data)} bytes"
    source = f"file:{data.resolve()}" if isinstance(data, Path) else io.BytesIO(data)
    try:
        with av.open(source, format="mov") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(where, "CORRUPT", f"not a clip: {error}") from error
    if not frames:
        raise MediaError(where, "TOO_SHORT", "clip without frames")
    return np.stack(frames)
