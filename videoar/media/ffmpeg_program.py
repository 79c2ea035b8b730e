"""What the program ffmpeg shows of a source: a second reading, to check ours against.

Clips are decoded and encoded through PyAV, in processes of our own. A person who checks a clip
should not have to trust that code, so `videoar show` reads the source again with the program, which
applies orientation, matrix and pixel shape by its own rules.

ffmpeg-python only builds graphs; its own `run` has no deadline and no limits, and deadlocks on
unread pipes. Here the graph is compiled to a command, which runs confined as decoding children are
(`videoar.media.confinement`): no network, no other programs, no writing.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from videoar.core.errors import ConfigError, MediaError
from videoar.core.settings import child_environment
from videoar.media.frame_resizer import Size
from videoar.media.probe import detect_demuxer
from videoar.media.process import Limits, kill_group, message_file, tail

if TYPE_CHECKING:
    from ffmpeg.nodes import OutputStream

_LEAD_S = 10.0  # chosen: how much earlier than its video stream a container may start
_NEAR_US = 500


def shown_frames(
    path: Path, stream: int, start_pts: int, times_us: Sequence[int], size_px: Size
) -> np.ndarray:
    """Return frames of a source as ffmpeg shows them.

    Args:
        path: the source.
        stream: index of its video stream.
        start_pts: time stamp of its start, in ticks of that stream (`clips@1`).
        times_us: rising presentation times of the frames, from that start.
        size_px: of the result.

    Returns:
        frames_THWC, uint8 RGB, one per time.

    Raises:
        ConfigError: ffmpeg is not installed.
        MediaError: ffmpeg cannot read the source, or shows no frame at one of these times.
    """
    import ffmpeg

    demuxer, (height, width) = detect_demuxer(path), size_px
    from_s = times_us[0] / 1e6 - _LEAD_S
    source = ffmpeg.input(
        f"file:{path}",
        format=demuxer,
        protocol_whitelist="file",
        format_whitelist=demuxer,
        copyts=None,
        # from the key frame before; a seek to 0 is none to the start where times begin elsewhere
        **({"ss": from_s, "noaccurate_seek": None} if from_s > 0 else {}),
    )
    time_us = f"(pts-{start_pts})*TB*1e6"
    wanted = "+".join(f"between({time_us},{t - _NEAR_US},{t + _NEAR_US})" for t in times_us)
    graph = (
        source[str(stream)]
        .filter("select", wanted)
        .filter("scale", width, height, flags="bicubic+accurate_rnd+full_chroma_int")
        .output("pipe:", format="rawvideo", pix_fmt="rgb24", vsync="passthrough")
        .global_args("-nostdin", "-v", "error", "-threads", "1")
    )
    data = _run(graph, path.name, Limits())
    frames_THWC = np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)
    if len(frames_THWC) != len(times_us):
        what = f"ffmpeg shows {len(frames_THWC)} frames at {len(times_us)} recorded times"
        raise MediaError(path.name, "CORRUPT", what)
    return frames_THWC


def _run(graph: "OutputStream", name: str, limits: Limits) -> bytes:
    """Run a graph under limits; return what it writes to its standard output."""
    import ffmpeg

    program = shutil.which("ffmpeg")
    if program is None:
        raise ConfigError("ffmpeg", "not found on PATH", "install ffmpeg")
    confined = [sys.executable, "-m", "videoar.media.confinement"]
    bounds = [str(limits.cpu_s), str(limits.memory_bytes)]
    with message_file() as stderr:
        process = subprocess.Popen(
            [*confined, *bounds, *ffmpeg.compile(graph, cmd=program)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=child_environment(PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
            start_new_session=True,
        )
        try:
            data, _ = process.communicate(timeout=limits.wall_s)
        except subprocess.TimeoutExpired as error:
            what = f"ffmpeg takes longer than {limits.wall_s:g} s"
            raise MediaError(name, "TIMEOUT", what) from error
        finally:
            kill_group(process)
        if process.returncode != 0:
            what = f"ffmpeg exited with status {process.returncode}: {tail(stderr)}"
            raise MediaError(name, "CORRUPT", what)
    return data
