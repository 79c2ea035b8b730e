"""Clip files: their bytes depend on their frames alone, and other players show the same."""

import numpy as np
import pytest

from tests.support.video_files import ffmpeg, moving_noise
from videoar.core.errors import MediaError
from videoar.media.decode import decode_clip
from videoar.media.transcode import encode_clips


def test_clip_files_do_not_depend_on_other_clips_of_the_call():
    one, other = moving_noise(17, 1), moving_noise(17, 2)
    still, long = np.repeat(one[:1], 17, 0), moving_noise(300, 3, (16, 32))
    clips = [one, other, still, other[:1], long, long[::-1], one, still, one]  # of two sizes
    alone = [encode_clips([clip], 8.0, 12)[0] for clip in clips]
    assert encode_clips(clips, 8.0, 12) == alone
    assert encode_clips(clips[::-1], 8.0, 12) == alone[::-1]
    mirrored = one[:, :, ::-1]  # not contiguous
    assert encode_clips([mirrored], 8.0, 12) == encode_clips([mirrored.copy()], 8.0, 12)
    assert np.abs(decode_clip(alone[0]).astype(int) - one).mean() < 12
    with pytest.raises(MediaError, match="cannot be decoded"):
        decode_clip(b"no video at all")


def test_clip_shows_the_same_colours_in_ffmpeg_and_plays_before_it_ends(tmp_path):
    """Smooth saturated ramps, crf 1: what remains is rounding and the halved chroma."""
    ramp = np.linspace(0, 255, 64)
    frame_HWC = np.stack(np.broadcast_arrays(ramp, ramp[::-1], ramp[:, None]), -1)
    frames_THWC = np.repeat(frame_HWC[None].round().astype(np.uint8), 5, 0)
    (data,) = encode_clips([frames_THWC], 8.0, 1, [{"title": "a ball", "comment": "model=x"}])
    (path := tmp_path / "a.mp4").write_bytes(data)
    assert data.index(b"moov") < data.index(b"mdat")
    assert b"a ball" in data
    assert b"model=x" in data
    assert data[data.index(b"colr") + 4 :][:11] == b"nclx\0\1\0\1\0\1\0"  # BT.709, limited range
    exact = "scale=flags=bicubic+accurate_rnd+full_chroma_int"
    raw = ffmpeg("-i", path, "-vf", exact, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    shown = np.frombuffer(raw, np.uint8).reshape(frames_THWC.shape).astype(int)
    assert np.abs(shown - frames_THWC).mean() < 1
    assert np.abs((shown - frames_THWC).mean((0, 1, 2))).max() < 0.5
    assert np.abs(decode_clip(data) - shown).max() <= 1
