"""Small videos of moving noise, written with our encoder or changed by the `ffmpeg` command."""

import subprocess

import numpy as np

from videoar.media.transcode import encode


def moving_noise(num_frames, seed=0, size=(48, 64), step=2):
    """Return coarse noise that moves to the right: every frame differs. `size` is (h, w)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 4, 3)).astype(np.uint8)
    wide = coarse.repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(wide, step * t, 1)[:, : size[1]] for t in range(num_frames)])


def write_video(path, frames, rate_fps=25.0, **options):
    encode(frames, path, rate_fps, **options)
    return path


def ffmpeg(*arguments: object) -> bytes:
    """Run ffmpeg; return what it writes to its output `-`."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
