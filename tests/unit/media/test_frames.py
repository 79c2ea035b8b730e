"""The exact frames of clips: each frame shows its own number, which is read back from the clip."""

import itertools
import subprocess
from fractions import Fraction

import numpy as np
import pytest

from tests.support.hostile import has_encoder
from videoar.media.decode import decode_clip
from videoar.media.scan import ScanPlan, scan
from videoar.media.source_decoder import SourceMetadata
from videoar.media.transcode import encode_clips

NUM_BITS = 6
TIMES = [Fraction(n * n + 12 * n, 480) for n in range(40)]  # ever slower: 40 to 6 fps
X264 = ["-c:v", "libx264", "-crf", "8", "-pix_fmt", "yuv420p", "-bf", "0"]
X265 = ["-c:v", "libx265", "-crf", "8", "-x265-params", "log-level=error:pools=none"]
AV1 = ["-c:v", "libaom-av1", "-crf", "20", "-cpu-used", "8"]
VP9 = ["-c:v", "libvpx-vp9", "-crf", "10", "-b:v", "0", "-cpu-used", "8", "-auto-alt-ref"]


def numbered(num_frames, height, width):
    """Return frames that show their number: a row per bit, white for 1, across the whole width."""
    bits = (np.arange(num_frames)[:, None] >> np.arange(NUM_BITS)) & 1
    rows = np.arange(height) * NUM_BITS // height
    picture = (bits[:, rows] * 255).astype(np.uint8)
    return np.broadcast_to(picture[:, :, None, None], (num_frames, height, width, 3))


def numbers(frames_THWC):
    """Return the numbers that frames show."""
    height = frames_THWC.shape[1]
    centres = (np.arange(NUM_BITS) * 2 + 1) * height // (2 * NUM_BITS)
    bits = frames_THWC[:, centres].mean(axis=(2, 3)) > 127
    return (bits << np.arange(NUM_BITS)).sum(axis=1).tolist()


def write(path, *options, size=(96, 128), num_frames=40, vf="null"):
    """Encode numbered frames at 12 fps, or with the times that `vf` sets."""
    frames = numbered(num_frames, *size)
    _, height, width, _ = frames.shape
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", "12", "-i", "pipe:", "-vf", vf, "-threads", "1"]
    command += ["-vsync", "passthrough", *options, str(path)]
    subprocess.run(command, input=np.ascontiguousarray(frames).tobytes(), check=True)
    return path


def remux(path, into, *options, before=()):
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *before, "-i", str(path)]
    subprocess.run([*command, "-c", "copy", *options, str(into)], check=True)
    return into


def clips(path, **plan):
    *decoded, metadata = scan(path, ScanPlan(find_shots=False, num_frames=9, size_px=48, **plan))
    assert isinstance(metadata, SourceMetadata)
    return decoded, metadata


def assert_every_frame_once(path, first=0, num_frames=40):
    """Check the native grid: clips are back to back and have the frames that their columns name."""
    decoded, metadata = clips(path)
    assert metadata.decoded_frames == num_frames
    assert len(decoded) == num_frames // 9
    for i, clip in enumerate(decoded):
        assert clip.columns["frame_index_start"] == 9 * i
        assert numbers(clip.frames_THWC) == list(range(first + 9 * i, first + 9 * i + 9))
    return decoded, metadata


def test_frame_numbers_survive_the_clip_encoder():
    frames = numbered(64, 48, 48)
    assert numbers(frames) == list(range(64))
    (data,) = encode_clips([frames], 12.0, 12)
    stored = decode_clip(data)
    assert numbers(stored) == list(range(64))
    assert numbers(stored[::-1]) != list(range(64))


@pytest.mark.parametrize(
    ("suffix", "options", "size"),
    [
        (
            "mp4",
            [*X264[:-1], "3", "-x264-params", "b-pyramid=normal:keyint=15:bframes=3"],
            (96, 128),
        ),
        ("mkv", [*X264[:-1], "3", "-x264-params", "open-gop=1:keyint=12"], (96, 128)),
        ("mp4", [*X264, "-x264-params", "keyint=5"], (96, 128)),
        ("ts", [*X264[:-1], "2"], (96, 128)),
        ("mov", [*X265, "-pix_fmt", "yuv420p10le"], (96, 128)),
        ("webm", [*VP9, "1", "-pix_fmt", "yuv420p"], (96, 128)),
        ("webm", [*VP9, "0", "-pix_fmt", "yuva420p"], (96, 128)),
        ("mov", ["-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"], (96, 128)),
        ("mkv", ["-c:v", "ffv1", "-pix_fmt", "yuv444p"], (121, 161)),
        ("mp4", [*X264[:4], "-pix_fmt", "yuv444p"], (121, 161)),
        ("avi", ["-c:v", "mpeg4", "-q:v", "2", "-bf", "2"], (96, 128)),
        ("mkv", ["-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p"], (96, 128)),
        ("mp4", AV1, (96, 128)),
        ("mp4", [*X264, "-aspect", "8:3"], (96, 128)),  # pixels twice as wide as high
    ],
)
def test_native_grid_has_every_frame_once_for_any_codec(tmp_path, suffix, options, size):
    encoder = options[1]
    if not has_encoder(encoder):
        pytest.skip(f"this ffmpeg has no encoder {encoder}")
    assert_every_frame_once(write(tmp_path / f"a.{suffix}", *options, size=size))


def test_edit_list_hides_frames(tmp_path):
    whole = write(tmp_path / "whole.mp4", *X264, "-g", "10")
    assert_every_frame_once(whole)
    cut = remux(whole, tmp_path / "cut.mp4", before=("-ss", str(15 / 12)))
    assert b"elst" in cut.read_bytes()
    assert_every_frame_once(cut, first=15, num_frames=25)


def on_display(times, rate_fps):
    """Return which frames are on display at the points of the grid, up to the last frame."""
    points = (Fraction(k) / Fraction(rate_fps) for k in itertools.count())
    until = itertools.takewhile(lambda point: point <= times[-1], points)
    return [max(i for i, time in enumerate(times) if time <= point) for point in until]


def assert_blocks_of(shown, decoded):
    """Clips follow each other on the grid, without a gap and without a repeat."""
    assert decoded
    for place, clip in enumerate(decoded):
        assert numbers(clip.frames_THWC) == shown[9 * place : 9 * place + 9]
    assert len(decoded) == len(shown) // 9


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_variable_frame_rate_grid_takes_the_frames_on_display(tmp_path, suffix):
    options = ["-enc_time_base", "1:480", *X264]
    path = write(tmp_path / f"a.{suffix}", *options, vf="settb=1/480,setpts=N*N+12*N")
    _, metadata = assert_every_frame_once(path)
    assert metadata.is_vfr
    decoded, _ = clips(path, rate_fps=8.0)
    assert_blocks_of(on_display(TIMES, 8), decoded)


@pytest.mark.parametrize("rate_fps", [5.0, 8.0, 12.0, 30.0])
def test_grid_on_a_constant_rate_drops_and_repeats_exactly(tmp_path, rate_fps):
    path = write(tmp_path / "a.mp4", *X264[:-1], "2")
    decoded, _ = clips(path, rate_fps=rate_fps)
    assert_blocks_of(on_display([Fraction(n, 12) for n in range(40)], rate_fps), decoded)


def test_lost_frame_counts_as_an_error_where_it_is_missing(tmp_path):
    data = bytearray(write(tmp_path / "a.mov", "-c:v", "prores_ks").read_bytes())
    frame = -1
    for _ in range(13):
        frame = data.index(b"icpf", frame + 1)
    data[frame + 4 + int.from_bytes(data[frame + 4 : frame + 6], "big")] = 255  # a wrong size
    (tmp_path / "a.mov").write_bytes(data)
    decoded, metadata = clips(tmp_path / "a.mov")
    assert metadata.decoded_frames == 39
    assert numbers(decoded[1].frames_THWC) == [9, 10, 11, 13, 14, 15, 16, 17, 18]
    assert [clip.columns["decode_errors"] > 0 for clip in decoded] == [
        False,
        True,
        False,
        False,
    ]
