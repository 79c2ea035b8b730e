"""RGB frames at clip size: nearest shape, centre of the frame, upright."""

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation, VideoReformatter

from tests.support.video_files import ffmpeg, moving_noise, write_video
from videoar.media.frame_resizer import FrameResizer, nearest_size
from videoar.media.pictures import Picture
from videoar.media.scan import ScanPlan, scan

SIZES = ((32, 32), (24, 42), (42, 24))
WIDE, TALL = SIZES[1:]
ROUNDING = 5  # levels: half a pixel of a small picture, where places are rounded before or after


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (480, 854, WIDE),
        (854, 480, TALL),
        (480, 480, SIZES[0]),
        (480, 600, SIZES[0]),
        (480, 650, WIDE),
        (10, 900, WIDE),
        (900, 10, TALL),
    ],
)
def test_nearest_shape_is_chosen(height, width, size):
    assert nearest_size(SIZES, height, width) == size


@pytest.mark.parametrize(
    "sizes", [(WIDE, TALL), (TALL, WIDE), ((84, 48), WIDE), ((26, 14), (7, 13))]
)
def test_first_of_equally_near_shapes_is_chosen(sizes):
    for side in (3, 77, 480):
        assert nearest_size(sizes, side, side) == sizes[0]


def smooth(height, width):
    """Return waves, which a shift by one pixel hardly changes."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(5 * x + 2 * y), np.cos(4 * y - 2 * x), np.sin(4 * x * y + 2)]
    return np.round(127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def frame_of(height, width, form="yuv420p"):
    return av.VideoFrame.from_ndarray(smooth(height, width), format="rgb24").reformat(format=form)


def resized(resizer, frame, pixel_aspect=1.0):
    picture = Picture(frame, frame, frame, pixel_aspect=pixel_aspect)
    return resizer.pixels(resizer.rgb(picture)[0], picture.orientation)


def covered(frame, size, pixel_aspect=1.0):
    """Resize a whole upright frame to cover a size, then crop its centre: the slow reference."""
    height, width = size
    scale = max(width / (frame.width * pixel_aspect), height / frame.height)
    wide, high = round(frame.width * pixel_aspect * scale), round(frame.height * scale)
    how = Interpolation.AREA if scale < 1 else Interpolation.BICUBIC
    how |= Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    whole = frame.reformat(wide, high, "rgb24", interpolation=how, src_colorspace="ITU601")
    top, left = (high - height) // 2, (wide - width) // 2
    return whole.to_ndarray()[top : top + height, left : left + width].astype(int)


@pytest.mark.parametrize("form", ["yuv420p", "yuv444p"])
@pytest.mark.parametrize("pixel_aspect", [1.0, 4 / 3, 0.5])
@pytest.mark.parametrize("size", [*SIZES, (16, 64), (200, 300)])
@pytest.mark.parametrize("source", [(240, 426), (426, 240), (121, 161), (96, 96)])
def test_rgb_is_the_centre_of_the_frame(source, size, pixel_aspect, form):
    frame = frame_of(*source, form)
    result = resized(FrameResizer([size]), frame, pixel_aspect)
    assert result.shape == (*size, 3)
    apart = np.abs(result - covered(frame, size, pixel_aspect)).mean()
    assert apart < ROUNDING


def test_frames_that_need_no_conversion_are_kept_apart():
    frames = [frame_of(64, side, "gbrp") for side in (120, 122)]
    resizer = FrameResizer(64)
    made = [resizer.rgb(picture := Picture(f, f, f))[0] for f in frames]
    for frame, scaled in zip(frames, made, strict=True):
        left = (frame.width - 64) // 2 & ~1
        whole = frame.to_ndarray(format="rgb24")
        pixels = resizer.pixels(scaled, picture.orientation)
        assert np.array_equal(pixels, whole[:, left : left + 64])


def test_pixels_of_one_bit_are_cropped():
    frame = frame_of(64, 160, "monob")
    whole = frame.to_ndarray(format="rgb24")
    assert np.array_equal(resized(FrameResizer([(64, 96)]), frame), whole[:, 32:128])


@pytest.mark.parametrize("source", [(240, 426), (426, 240), (98, 121)])
def test_square_is_the_even_centre_square(source):
    frame = frame_of(*source)
    side = min(source) // 2 * 2
    top, left = ((length - side) // 2 // 2 * 2 for length in source)
    luma, *chroma = (
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes
    )
    parts = [luma[top : top + side, left : left + side]] + [
        plane[top // 2 : (top + side) // 2, left // 2 : (left + side) // 2] for plane in chroma
    ]
    data = np.concatenate([part.ravel() for part in parts]).reshape(side * 3 // 2, side)
    square = av.VideoFrame.from_ndarray(data, format="yuv420p")
    exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    how = {"interpolation": Interpolation.AREA | exact, "src_colorspace": "ITU601"}
    expected = VideoReformatter().reformat(square, 48, 48, "rgb24", **how).to_ndarray()
    assert np.array_equal(resized(FrameResizer(48), frame), expected)
    assert np.array_equal(resized(FrameResizer([(48, 48)]), frame), expected)


def test_first_frame_chooses_the_size_for_the_whole_source():
    resizer = FrameResizer(SIZES)
    assert [resized(resizer, frame_of(*s)).shape[:2] for s in ((90, 160), (160, 90))] == [WIDE] * 2
    assert resized(FrameResizer(SIZES), frame_of(160, 90), 16 / 9).shape[:2] == SIZES[0]


@pytest.mark.slow
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize(
    ("shown_as", "size", "turned"),
    [("16:9", WIDE, TALL), ("1:1", SIZES[0], SIZES[0]), ("9:16", TALL, WIDE)],
)
def test_rotated_sources_with_oblong_pixels_are_upright(tmp_path, angle, shown_as, size, turned):
    frames = np.stack([smooth(144, 160)[:, t : t + 144] for t in range(9)])
    plain = write_video(tmp_path / "plain.mp4", frames, crf=1)
    options = ["-c", "copy", "-aspect", shown_as, "-metadata:s:v", f"rotate={angle}"]
    path = tmp_path / "turned.mp4"
    ffmpeg("-i", plain, *options, path)
    raw = ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    shown = np.frombuffer(raw, np.uint8).reshape(9, 144, 144, 3)  # as stored, but upright
    (clip, _) = scan(path, ScanPlan(size_px=SIZES, num_frames=9, find_shots=False))
    size = turned if angle in {90, 270} else size
    assert clip.frames_THWC.shape == (9, *size, 3)
    assert (clip.columns["height_px"], clip.columns["width_px"]) == size
    wide, high = map(int, shown_as.split(":"))
    aspect = high / wide if angle in {90, 270} else wide / high
    for result, picture in zip(clip.frames_THWC, shown, strict=True):
        whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        assert np.abs(result - covered(whole, size, aspect)).mean() < ROUNDING


def test_source_with_changing_frame_size_keeps_its_clip_size(tmp_path):
    wide = write_video(tmp_path / "wide.ts", moving_noise(20, size=(72, 128)))
    tall = write_video(tmp_path / "tall.ts", moving_noise(20, size=(128, 72)))
    both = tmp_path / "both.ts"
    both.write_bytes(wide.read_bytes() + tall.read_bytes())
    *decoded, metadata = scan(both, ScanPlan(size_px=SIZES, num_frames=9))
    assert metadata.decoded_frames == 40
    assert {e.columns["cut_in"] for e in decoded} == {"start", "gap"}
    assert {e.frames_THWC.shape for e in decoded} == {(9, *WIDE, 3)}


@pytest.mark.parametrize("form", ["yuv420p", "yuv444p10le"])
def test_luma_is_that_of_the_source_whatever_matrix_it_names(form):
    frame, luma_hw = frame_of(120, 160, form), []
    for matrix in (2, 1, 6, 9):  # none, BT.709, BT.601, BT.2020
        frame.colorspace = matrix
        luma_hw.append(FrameResizer(64).luma(frame))
    assert (np.stack(luma_hw) == luma_hw[0]).all()
