"""Orientation: all display matrices that move pixels, compared with ffmpeg's autorotation."""

import av
import numpy as np
import pytest

from tests.support.video_files import ffmpeg, moving_noise, write_video
from videoar.core.errors import MediaError
from videoar.media.orientation import UPRIGHT, Orientation, from_matrix
from videoar.media.scan import ScanPlan, scan

ONE = 1 << 16
# a, b, c, d of the matrix, and what it does
DIHEDRAL = {
    (1, 0, 0, 1): UPRIGHT,
    (0, 1, -1, 0): Orientation(90),
    (-1, 0, 0, -1): Orientation(180),
    (0, -1, 1, 0): Orientation(270),
    (-1, 0, 0, 1): Orientation(0, True),
    (0, 1, 1, 0): Orientation(90, True),
    (1, 0, 0, -1): Orientation(180, True),
    (0, -1, -1, 0): Orientation(270, True),
}


def display_matrix(a, b, c, d):
    return np.array([a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30], np.int32)


def with_matrix(path, into, matrix):
    with av.open(str(path)) as source, av.open(str(into), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_matrix(matrix.tolist())
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return into


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("stored") / "a.mp4", moving_noise(9), crf=1)


@pytest.mark.parametrize("axes", DIHEDRAL)
def test_frames_are_shown_as_ffmpeg_shows_them(tmp_path, stored, axes):
    path = with_matrix(stored, tmp_path / "turned.mp4", display_matrix(*axes))
    height, width = (64, 48) if DIHEDRAL[axes].is_sideways else (48, 64)
    raw = ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    shown = np.frombuffer(raw, np.uint8).reshape(9, height, width, 3).astype(int)
    plan = ScanPlan(num_frames=9, size_px=((height, width),), find_shots=False)
    clip, metadata = scan(path, plan)
    assert (metadata.src_height_px, metadata.src_width_px) == (height, width)
    assert (metadata.rotation_deg, metadata.is_mirrored) == DIHEDRAL[axes]
    assert (clip.columns["rotation_deg"], clip.columns["is_mirrored"]) == DIHEDRAL[axes]
    # ffmpeg repeats chroma, which suits these hard edges; the clip has it interpolated
    assert np.abs(clip.frames_THWC - shown).mean() < 12
    assert axes == (1, 0, 0, 1) or np.abs(clip.frames_THWC - shown[:, ::-1, ::-1]).mean() > 20


@pytest.mark.parametrize("axes", [(0.7, 0.7, -0.7, 0.7), (1, 0, 1, 1), (1, 0, 0, 0), (1, 1, 1, 1)])
def test_other_matrices_are_refused(tmp_path, stored, axes):
    path = with_matrix(stored, tmp_path / "turned.mov", display_matrix(*axes))
    with pytest.raises(MediaError, match="no quarter turn") as error:
        list(scan(path, ScanPlan(num_frames=9)))
    assert error.value.code == "ORIENTATION_DENIED"


def test_scale_and_rounding_of_a_matrix_do_not_matter():
    assert from_matrix(display_matrix(-0.5, 0.002, 0.002, 2), "") == Orientation(0, True)
    assert from_matrix(display_matrix(0, 0, 0, 0), "") == UPRIGHT


def test_a_change_of_orientation_ends_a_shot(tmp_path):
    frames = moving_noise(18, size=(48, 48))
    parts = []
    for angle, picture in ((0, frames[:9]), (180, np.rot90(frames[9:], 2, (1, 2)))):
        plain = write_video(tmp_path / f"{angle}.mp4", np.ascontiguousarray(picture), crf=1)
        turn = f"h264_mp4toannexb,h264_metadata=display_orientation=insert:rotate={angle}"
        at = ("-output_ts_offset", 0.36 if angle else 0)
        parts.append(ffmpeg("-i", plain, "-c", "copy", "-bsf:v", turn, *at, "-f", "mpegts", "-"))
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    first, second, _ = scan(path, ScanPlan(num_frames=9, size_px=48))
    assert [clip.columns["rotation_deg"] for clip in (first, second)] == [0, 180]
    assert second.columns["cut_in"] == "gap"
    shown = np.concatenate([first.frames_THWC, second.frames_THWC])
    assert np.abs(shown - frames.astype(int)).mean() < 12
