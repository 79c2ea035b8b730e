"""Frames that the program ffmpeg shows of a source, compared with those of a clip."""

import numpy as np
import pytest

from tests.support.odd_films import film, shown
from videoar.core.errors import MediaError
from videoar.media.ffmpeg_program import shown_frames
from videoar.media.scan import ScanPlan, scan

_X264 = "-c:v libx264 -preset ultrafast -crf 4"


def clip_of(path):
    plan = ScanPlan(num_frames=5, size_px=((48, 64),), rate_fps=8.0, find_shots=False)
    clip, *_, metadata = scan(path, plan)
    return clip, metadata


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", f"{_X264} -bf 2"),
        ("late.ts", f"{_X264} -output_ts_offset 70 -muxdelay 0"),  # does not begin at time 0
        ("open.mkv", f"{_X264} -bf 2 -g 12 -output_ts_offset 3"),
    ],
)
def test_frames_are_those_of_the_clip(tmp_path, name, options):
    path = film(tmp_path / name, "testsrc2=s=64x48:r=24:d=1.5", options=options)
    clip, metadata = clip_of(path)
    times_us = clip.columns["frame_times_us"]
    frames = shown_frames(path, 0, metadata.start_pts, times_us, (48, 64))
    every = shown(path, "scale=64:48:flags=bicubic+accurate_rnd+full_chroma_int", 48, 64)
    assert (frames == every[:13:3]).all()  # 8 of 24 frames per second
    assert np.abs(frames.astype(int) - clip.frames_THWC).mean() < 6  # other chroma at edges


def test_a_time_without_a_frame_is_an_error(tmp_path):
    path = film(tmp_path / "a.mp4", "testsrc2=s=64x48:r=24:d=0.5")
    with pytest.raises(MediaError, match=r"a\.mp4: ffmpeg shows 1 frames at 2 recorded times"):
        shown_frames(path, 0, 0, [0, 20_000], (48, 64))


def test_a_file_that_ffmpeg_cannot_read_is_an_error_with_its_words(tmp_path):
    path = film(tmp_path / "a.mp4", "testsrc2=s=64x48:r=24:d=0.5")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MediaError, match=r"ffmpeg exited with status .*moov atom not found"):
        shown_frames(path, 0, 0, [0], (48, 64))


def test_the_program_has_no_secrets_no_network_and_writes_nothing(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nenv >&2\necho x > written && echo WRITTEN >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    monkeypatch.chdir(tmp_path)
    path = film_of(tmp_path)
    with pytest.raises(MediaError) as caught:
        shown_frames(path, 0, 0, [0], (48, 64))
    assert "PATH=" in str(caught.value)
    assert "planted" not in str(caught.value)
    assert not (tmp_path / "written").exists()


def film_of(folder):
    path = folder / "b.mp4"
    path.write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    return path
