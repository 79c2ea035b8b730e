"""Odd pictures become those that the ffmpeg command makes of them: light, fields, bars, chroma."""

import numpy as np
import pytest

from tests.support.odd_films import film, hdr, shown
from tests.support.video_files import ffmpeg
from videoar.media.active_area import Box, active_box
from videoar.media.orientation import Orientation
from videoar.media.scan import ScanPlan, scan

LUMA = np.array([0.299, 0.587, 0.114])
TAGS = "-color_primaries bt709 -color_trc bt709 -colorspace bt709 -color_range tv"
EXACT = "flags=area+accurate_rnd+full_chroma_int+full_chroma_inp"
FIELDS = "trim=duration=0.6,tinterlace=mode=interleave_top"
DISPLAY = "mastering-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(20000000,1)"
MPEG2 = "-c:v mpeg2video -q:v 2 -flags +ilme+ildct -top 1"
X264 = "-c:v libx264 -preset ultrafast -crf 8 -pix_fmt yuv420p"


def clip_of(path, size, num_frames=9, **plan):
    clip, *_, metadata = scan(
        path, ScanPlan(num_frames=num_frames, size_px=(size,), find_shots=False, **plan)
    )
    return clip.frames_THWC.astype(int), clip.columns, metadata


def psnr(ours, theirs):
    return 10 * np.log10(255**2 / ((ours - theirs) ** 2).mean())


@pytest.fixture(scope="module")
def sdr(tmp_path_factory):
    options = f"{X264} {TAGS} -frames:v 9"
    path = tmp_path_factory.mktemp("sdr") / "sdr.mp4"
    return film(path, "mandelbrot=s=160x120:r=24", options=options)


@pytest.mark.parametrize(
    ("transfer", "curve", "says", "peak"),  # the peak of `tonemap` is 10 without a word
    [("smpte2084", "mobius", "", 10), ("smpte2084", "hable", "cll=4000,400", 40),
     ("smpte2084", "hable", DISPLAY, 20), ("arib-std-b67", "mobius", "", 10),
     ("arib-std-b67", "reinhard", "", 10), ("bt2020-10", "mobius", "", 10),
     ("smpte2084", None, "", 10)],
)  # fmt: skip
def test_wide_light_is_mapped_as_zscale_maps_it(tmp_path, sdr, transfer, curve, says, peak):
    path = hdr(tmp_path / "hdr.mp4", sdr, transfer, says)
    ours, columns, metadata = clip_of(path, (120, 160), tone_map=curve)
    assert (metadata.color_transfer, metadata.color_primaries) == (transfer, "bt2020")
    assert (metadata.color_matrix, metadata.color_range) == ("bt2020nc", "limited")
    is_hdr = transfer != "bt2020-10"
    assert columns["tone_map"] == (curve if is_hdr or curve is None else "gamut")
    original = shown(sdr, f"scale=in_color_matrix=bt709:{EXACT}", 120, 160)
    if curve is None:
        assert np.abs(ours - original).mean() > 40
        return
    light = "zscale=t=linear:npl=100:agamma=0,format=gbrpf32le,zscale=p=bt709"
    curved = f"tonemap={curve}:peak={peak}:desat=0," if is_hdr else ""
    back = "zscale=t=bt709:m=gbr:r=pc:agamma=0,format=gbrp"
    theirs = shown(path, f"{light},{curved}{back}", 120, 160)
    assert np.abs(ours - theirs).mean() < 1.5
    assert abs(np.abs(ours - original).mean() - np.abs(theirs - original).mean()) < 1
    # scores are those of what the clip shows
    assert abs(columns["luma_mean"] - (ours @ LUMA).mean()) < 20


@pytest.mark.parametrize(
    ("picture", "filters", "options", "combed"),
    [
        ("testsrc2=s=320x240:r=50:d=0.6", FIELDS, MPEG2, 1.0),
        ("testsrc2=s=320x240:r=50:d=0.6", FIELDS, X264, 1.0),
        (
            "mandelbrot=s=320x480:r=50",
            f"crop=320:240:0:n*2,{FIELDS.replace('top', 'bottom')}",
            f"{X264}10le",
            1.0,
        ),
        ("testsrc2=s=320x240:r=25:d=0.6", "null", MPEG2, 0.0),
        ("testsrc2=s=320x240:r=25:d=0.6", "noise=alls=40:allf=t", X264, 0.0),
        ("life=s=320x240:r=25:mold=10,trim=duration=0.6", "null", X264, 0.0),
        ("testsrc2=s=320x240:r=24:d=0.6", "telecine", X264, 0.4),
    ],
    ids=["tagged", "untagged", "10 bits", "tagged progressive", "noise", "cells", "telecine"],
)
def test_combed_frames_are_found_and_deinterlaced(tmp_path, picture, filters, options, combed):
    path = film(tmp_path / "a.mkv", picture, filters, f"{options} -bf 0")
    ours, columns, _ = clip_of(path, (240, 320), num_frames=13)
    assert columns["combed_frac"] == pytest.approx(combed, abs=0.12)
    assert columns["deinterlacer"] == ("bwdif" if combed else None)
    as_is, kept, _ = clip_of(path, (240, 320), num_frames=13, deinterlace="measure")
    assert (kept["combed_frac"], kept["deinterlacer"]) == (columns["combed_frac"], None)
    if combed < 1:
        assert np.array_equal(ours, as_is) == (combed == 0)
        return
    parity = "bff" if "bottom" in filters else "tff"
    theirs = shown(path, f"bwdif=mode=send_frame:parity={parity},scale={EXACT}", 240, 320)[:13]
    assert psnr(ours @ LUMA, theirs @ LUMA) > 40
    assert psnr(as_is @ LUMA, theirs @ LUMA) < 30


def scene(number, height=268, width=640, level=1.0):
    """Return a picture of waves, another one for each number."""
    y, x = np.arange(height)[:, None] / 40, np.arange(width) / 40
    return (level * (127 + 100 * np.sin(x + number) * np.cos(y - 2 * number))).astype(np.uint8)


def barred(pictures, top=46, left=0, bar=16, size=(360, 640)):
    frames = np.full((len(pictures), *size), bar, np.uint8)
    for frame, picture in zip(frames, pictures, strict=True):
        frame[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return frames


def drawn(frames, rows, columns, value, share=1.0):
    """Draw on all frames into part of the pixels, as text does."""
    cover = np.random.default_rng(0).random((rows.stop - rows.start, columns.stop - columns.start))
    frames[:, rows, columns][:, cover < share] = value
    return frames


SCENES = [scene(k) for k in range(12)]
FULL = [scene(k, 360) for k in range(12)]
INNER, ALL = (0, 46, 640, 268), (0, 0, 640, 360)
DISTANCE = np.hypot(*np.mgrid[-180:180, -320:320])
ROWS = slice(322, 346)  # inside the bar below
NOISE = np.random.default_rng(0).integers(0, 5, (12, 360, 640), np.uint8)
FADED = [scene(k, level=1 if k > 4 else 0.1) for k in range(12)]
BARS = {
    "letterbox": (barred(SCENES), INNER),
    "full range": (barred(SCENES, bar=0), INNER),
    "white": (barred(SCENES, bar=235), INNER),
    "coding noise": (barred(SCENES) + NOISE, INNER),
    "pillars": (barred([scene(k, 360, 480) for k in range(12)], 0, 80), (80, 0, 480, 360)),
    "both": (barred([scene(k, 268, 480) for k in range(12)], 46, 80), (80, 46, 480, 268)),
    "tall": (barred([scene(k, 360, 202) for k in range(12)], 0, 219), (220, 0, 200, 360)),
    "above": (barred([scene(k, 300) for k in range(12)], 60), (0, 60, 640, 300)),
    "no bars": (np.stack(FULL), ALL),
    "subtitles": (drawn(barred(SCENES)[:8], ROWS, slice(60, 580), 235, 0.3), INNER),
    "thick subtitles": (drawn(barred(SCENES), slice(322, 330), slice(0, 640), 235, 0.7), INNER),
    "logo": (drawn(barred(SCENES), slice(6, 40), slice(500, 600), 200), INNER),
    "advertisement": (np.concatenate([barred(SCENES[:11]), FULL[:1]]), INNER),
    "title cards": (drawn(barred(FADED), slice(150, 200), slice(200, 440), 235, 0.4), INNER),
    "dark": (np.stack([scene(k, 360, level=0.05 if k < 9 else 1) for k in range(12)]), ALL),
    "all dark": (np.stack([scene(k, 360, level=0.05) for k in range(12)]), ALL),
    "black": (np.full((12, 360, 640), 16, np.uint8), ALL),
    "disc": (np.where(DISTANCE < 120, FULL, 16).astype(np.uint8), ALL),
    "head before black": (
        drawn(barred(SCENES), slice(10, 46), slice(250, 330), 150),
        (0, 0, 640, 314),
    ),
    "vignette": ((FULL * np.clip(1.6 - DISTANCE / 200, 0, 1)).astype(np.uint8), ALL),
    "news ticker": (drawn(np.stack(FULL), slice(320, 360), slice(0, 640), 60), ALL),
    "half the time": (np.concatenate([barred(SCENES[:6]), FULL[:6]]), ALL),
}


@pytest.mark.parametrize("name", BARS)
def test_bars_are_told_from_dark_or_plain_pictures(name):
    frames, expected = BARS[name]
    assert active_box(list(frames)) == expected


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("aspect", [1.0, 8 / 9, 16 / 11, 0.6])
def test_box_is_where_the_picture_is_shown_and_found_again(turn, mirrored, aspect):
    box, size, orientation = Box(20, 46, 480, 100), (720, 480), Orientation(turn, mirrored)
    shown_box = box.shown(size, orientation, aspect)
    assert shown_box.stored(size, orientation, aspect) == box
    marked = np.zeros(size[::-1], bool)
    marked[46:146, 20:500] = True
    if aspect == 1:
        rows, columns = (np.flatnonzero(orientation.applied(marked).any(axis)) for axis in (1, 0))
        assert shown_box == (columns[0], rows[0], len(columns), len(rows))


def test_frames_of_odd_sources_are_found_again_by_their_times(tmp_path):
    bars = "scale=160:90,pad=160:120:0:14,setsar=4/3"
    plain = film(tmp_path / "plain.mp4", "testsrc2=s=160x120:r=24:d=0.5", bars, X264)
    turned = tmp_path / "turned.mp4"
    ffmpeg("-i", plain, "-c", "copy", "-metadata:s:v", "rotate=90", turned)
    options = f"{X264} -bf 0 -g 5"
    fields = film(tmp_path / "fields.mkv", "testsrc2=s=320x240:r=50", FIELDS, options)
    made = {}
    for path in (turned, fields):
        plan = ScanPlan(num_frames=5, size_px=((90, 160), (160, 90)), crop="active")
        *clips, metadata = scan(path, plan)
        for clip in clips:
            columns = clip.columns
            again = plan.model_copy(
                update={
                    "take_us": tuple(columns["frame_times_us"]),
                    "start_pts": metadata.start_pts,
                    "size_px": ((columns["height_px"], columns["width_px"]),),
                    "active_box": columns["active_box"],
                    "deinterlace": "auto" if columns["deinterlacer"] else "off",
                }
            )
            (same,) = scan(path, again)
            assert np.array_equal(same.frames_THWC, clip.frames_THWC)
        made[path.stem] = [columns[name] for name in ("deinterlacer", "active_box")]
        assert columns["letterbox_frac"] == 0
    assert made["fields"] == ["bwdif", [0, 0, 320, 240]]
    deinterlacer, (left, top, width, height) = made["turned"]
    assert (deinterlacer, top, height) == (None, 0, 213)
    assert 14 <= left <= 16
    assert 100 <= left + width <= 104


def test_clips_show_the_active_picture_as_ffmpeg_crops_it(tmp_path):
    bars = "scale=320:180,pad=320:240:0:30,setsar=1"
    path = film(tmp_path / "a.mp4", "mandelbrot=s=320x240:r=24", bars, f"{X264} -frames:v 9")
    ours, columns, _ = clip_of(path, (90, 160), crop="active")
    assert columns["active_box"] == columns["crop_box"] == [0, 30, 320, 180]
    assert columns["letterbox_frac"] == 0
    theirs = shown(path, f"crop=320:180:0:30:exact=1,scale=160:90:{EXACT}", 90, 160)
    assert np.abs(ours - theirs).mean() < 2
    _, columns, _ = clip_of(path, (120, 160))
    assert columns["letterbox_frac"] == pytest.approx(0.25, abs=0.03)
    assert columns["active_box"] is None


@pytest.mark.parametrize(
    ("size", "tags", "matrix"),
    [("320x240", TAGS, "bt709"), ("320x240", "", "bt601"), ("1280x544", "", "bt709"),
     ("720x578", "", "bt709"), ("720x576", "", "bt601"), ("320x240", "-color_range pc", "bt601")],
)  # fmt: skip
def test_mean_and_chroma_are_those_of_an_exact_conversion(tmp_path, size, tags, matrix):
    options = f"{X264} {tags} -frames:v 2"
    path = film(tmp_path / "a.mp4", f"mandelbrot=s={size}:r=24", options=options)
    ours, _, metadata = clip_of(path, (68, 160), num_frames=1)
    across, down = map(int, size.split("x"))
    height = max(68, round(down * 160 / across))
    exact = f"scale=160:{height}:in_color_matrix={matrix}:{EXACT},crop=160:68"
    theirs = shown(path, exact, 68, 160)[:1]
    assert abs((ours - theirs).mean(axis=(0, 1, 2))).max() < 0.5
    assert np.abs(ours - theirs).mean() < 3
    assert metadata.color_matrix == {"bt601": "smpte170m"}.get(matrix, matrix)
    assert metadata.color_range == ("full" if "pc" in tags else "limited")
