"""Encode frames to video files through ffmpeg, deterministically.

Equal frames give equal bytes with the same build of ffmpeg: one thread, bit-exact flags, no
metadata but the given tags. Clips are stored by the digest of their bytes, so this is what makes a
re-run idempotent.

Starting a process costs more than encoding a small clip, so `encode_clips` encodes many clips with
one process. Each has an encoder of its own: rate control must not carry over from other clips.
"""

import itertools
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from videoar.core.errors import ConfigError
from videoar.core.scratch import Scratch
from videoar.core.settings import child_environment
from videoar.media.decode import require_frames
from videoar.media.process import Limits, run_graph

if TYPE_CHECKING:
    from ffmpeg.nodes import FilterableStream

CODEC_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "libx264": {"preset": "fast"},
    "libx265": {"preset": "fast", "x265-params": "log-level=error:pools=none:frame-threads=1"},
    "libvpx-vp9": {"b:v": 0, "cpu-used": 4},
    "mpeg4": {},
    "mjpeg": {},
}
_QUANTIZER = {"mpeg4": "q:v", "mjpeg": "q:v"}  # encoders without the option crf
_EXACT = {
    "threads": 1,
    "sws_flags": "accurate_rnd+bitexact",
    "fflags": "+bitexact",
    "flags:v": "+bitexact",
    "map_metadata": -1,
}


def encode(
    frames_THWC: np.ndarray,
    path: Path,
    rate_fps: float,
    *,
    codec: str = "libx264",
    crf: int = 12,
    pix_fmt: str = "yuv420p",
) -> None:
    """Encode one clip; the suffix of the path chooses the container.

    Args:
        frames_THWC: uint8 RGB; even height and width unless `pix_fmt` is yuv444p.
        path: file to write.
        rate_fps: frame rate.
        codec: a key of `CODEC_OPTIONS`.
        crf: quality, smaller is better (the quantizer for mpeg4 and mjpeg).
        pix_fmt: pixel format of the file.
    """
    _write([frames_THWC], [path], rate_fps, _settings(codec, crf, pix_fmt))


def encode_clips(
    clips_NTHWC: Sequence[np.ndarray],
    rate_fps: float,
    crf: int,
    tags: Sequence[Mapping[str, str]] = (),
) -> list[bytes]:
    """Encode clips of one size as H.264 MP4 with a single process; return their bytes in order.

    The index (`moov`) comes first in each file, so that a player can start before the file ends.
    Each file is decoded once, because a disk that is full can cut a file without an error.

    Args:
        clips_NTHWC: uint8 RGB.
        rate_fps: frame rate.
        crf: quality, smaller is better.
        tags: of each clip `title` and `comment`; empty for none.
    """
    options = {**_settings("libx264", crf, "yuv420p"), "movflags": "+faststart"}
    # ffmpeg-python has no repeated options; both names mean the metadata of the whole file
    metadata = [
        {"metadata": f"title={tag['title']}", "metadata:g": f"comment={tag['comment']}"}
        for tag in tags
    ]
    with Scratch() as folder:
        paths = [folder / f"{i}.mp4" for i in range(len(clips_NTHWC))]
        _write(clips_NTHWC, paths, rate_fps, options, metadata)
        videos = [path.read_bytes() for path in paths]
    for video, clip in zip(videos, clips_NTHWC, strict=True):
        require_frames(video, len(clip))
    return videos


def encode_stream(
    frames: Iterable[np.ndarray], path: Path, rate_fps: float, codec: str, quality: int
) -> None:
    """Encode any number of frames without holding them in memory; see `encode`."""
    frames = iter(frames)
    first = next(frames)
    options = _settings(codec, quality, "yuv420p")
    graph = _raw_input(first, rate_fps).output(f"file:{path}", **options)
    data = (np.ascontiguousarray(frame).tobytes() for frame in itertools.chain([first], frames))
    run_graph(graph, data, Limits(wall_s=3600.0, cpu_s=3600))


@lru_cache(maxsize=1)
def tool_versions() -> Mapping[str, str]:
    """Return the versions of ffmpeg and PyAV, which pixels and bytes of clips depend on.

    Raises:
        ConfigError: ffmpeg is not installed.
    """
    tool = shutil.which("ffmpeg")
    if tool is None:
        raise ConfigError("ffmpeg", "not found on PATH", "install ffmpeg")
    done = subprocess.run(
        [tool, "-version"], capture_output=True, text=True, check=True, env=child_environment()
    )
    found = re.match(r"ffmpeg version (\S+)", done.stdout)
    return {"ffmpeg": found.group(1) if found else done.stdout[:80], "av": version("av")}


def _settings(codec: str, crf: int, pix_fmt: str) -> dict[str, Any]:
    quality = {_QUANTIZER.get(codec, "crf"): crf}
    return {**CODEC_OPTIONS[codec], **quality, **_EXACT, "c:v": codec, "pix_fmt": pix_fmt}


def _raw_input(frame_HWC: np.ndarray, rate_fps: float) -> "FilterableStream":
    """Return the input node of a graph that reads frames of this size from a pipe."""
    import ffmpeg

    height, width, _ = frame_HWC.shape
    return ffmpeg.input(
        "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=rate_fps
    )


def _write(
    clips: Sequence[np.ndarray],
    paths: Sequence[Path],
    rate_fps: float,
    options: dict[str, Any],
    metadata: Sequence[dict[str, str]] = (),
) -> None:
    import ffmpeg

    # all clips are one input stream; each output takes its range of frame numbers from it
    parts = _raw_input(clips[0][0], rate_fps).filter_multi_output("split", len(clips))
    ends = np.cumsum([len(clip) for clip in clips]).tolist()
    outputs = [
        parts[i]
        .filter("trim", start_frame=end - len(clip), end_frame=end)
        .filter("setpts", "PTS-STARTPTS")  # each file starts at time 0
        .output(f"file:{path}", vsync="passthrough", **options, **(metadata[i] if metadata else {}))
        for i, (clip, end, path) in enumerate(zip(clips, ends, paths, strict=True))
    ]
    data = (np.ascontiguousarray(clip, dtype=np.uint8).tobytes() for clip in clips)
    run_graph(ffmpeg.merge_outputs(*outputs), data, Limits())
