"""Scan of small videos: cuts, grids, damage."""

import av
import numpy as np
import pytest

from tests.support.video_files import ffmpeg, moving_noise, write_video
from videoar.core.errors import MediaError
from videoar.media.clip_scores import score_span
from videoar.media.scan import DecodedClip, ScanPlan, scan
from videoar.media.source_decoder import SourceMetadata
from videoar.media.transcode import encode_clips


def tinted(frames, level):
    return (frames // 4 + level).astype(np.uint8)


def run(path, **plan):
    *decoded, metadata = scan(path, ScanPlan(**{"size_px": 48, **plan}))
    assert all(isinstance(e, DecodedClip) for e in decoded)
    assert isinstance(metadata, SourceMetadata)
    return decoded, metadata


def test_native_grid_takes_every_frame_once(tmp_path):
    frames = moving_noise(40)
    decoded, metadata = run(write_video(tmp_path / "a.mp4", frames, crf=1))
    assert [e.columns["frame_index_start"] for e in decoded] == [0, 17]
    assert metadata.decoded_frames == metadata.expected_frames == 40
    assert metadata.src_rate_fps == pytest.approx(25)
    assert not metadata.is_vfr
    crop = frames[17:34, :, 8:56]
    assert np.abs(decoded[1].frames_THWC.astype(int) - crop).mean() < 12


def test_grid_picks_the_frame_on_display(tmp_path):
    frames = moving_noise(80)
    decoded, _ = run(write_video(tmp_path / "a.mkv", frames, crf=1), rate_fps=10.0, num_frames=9)
    first = decoded[0].frames_THWC.astype(int)
    expected = [int(k * 25 / 10) for k in range(9)]  # 0 2 5 7 10 ...
    errors = np.abs(first[:, None] - frames[None, :25, :, 8:56]).mean(axis=(2, 3, 4))
    assert errors.argmin(axis=1).tolist() == expected
    assert [e.columns["span_start_us"] for e in decoded] == [
        0,
        880_000,
        1_800_000,
    ]  # grid: 0, 900, 1800 ms


def test_spans_exclude_frames_beside_a_cut(tmp_path):
    frames = np.concatenate([tinted(moving_noise(30, 1), 0), tinted(moving_noise(30, 2), 180)])
    decoded, _ = run(write_video(tmp_path / "a.mp4", frames), num_frames=13)
    starts = [e.columns["frame_index_start"] for e in decoded]
    assert starts == [0, 13, 32, 45]  # the cut is at 30; two frames on each side are dropped
    assert [e.columns["cut_in"] for e in decoded] == ["start", "start", "cut", "cut"]
    assert decoded[2].columns["cut_in_score"] > 100 > max(e.columns["motion_max"] for e in decoded)
    whole, _ = run(tmp_path / "a.mp4", num_frames=13, find_shots=False)
    assert [e.columns["frame_index_start"] for e in whole] == [0, 13, 26, 39]


def test_flicker_is_not_detected_as_cuts(tmp_path):
    frames = tinted(moving_noise(60), 0)
    frames[1::2] += 150
    decoded, _ = run(write_video(tmp_path / "a.mp4", frames))
    assert len(decoded) >= 2


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".webm", {"codec": "libvpx-vp9", "crf": 10}),
        (".mov", {"codec": "libx265", "crf": 5, "pix_fmt": "yuv420p10le"}),
        (".avi", {"codec": "mpeg4", "crf": 2}),
        (".mkv", {"codec": "mjpeg", "crf": 2, "pix_fmt": "yuvj420p"}),
        (".mp4", {"crf": 1, "pix_fmt": "yuv444p"}),
    ],
)
def test_containers_codecs_depth_range_and_odd_sizes(tmp_path, suffix, options):
    frames = moving_noise(18)
    if suffix == ".mp4":
        frames = frames[:, :47, :61]
    (clip,), metadata = run(write_video(tmp_path / f"a{suffix}", frames, **options), size_px=46)
    assert metadata.decoded_frames == 18
    left = (frames.shape[2] - frames.shape[1]) // 2
    centre = frames[:17, :, left : left + frames.shape[1]]
    assert clip.frames_THWC.mean() == pytest.approx(centre.mean(), abs=3)


def test_gaps_in_time_are_never_filled(tmp_path):
    frames = moving_noise(40)
    write_video(tmp_path / "a.mp4", frames, crf=1)
    gap = "setpts=N/25/TB+gte(N\\,20)*2/TB"
    gap_options = ["-vf", gap, "-vsync", "passthrough", "-c:v", "libx264"]
    ffmpeg("-i", tmp_path / "a.mp4", *gap_options, tmp_path / "gap.mp4")
    decoded, metadata = run(tmp_path / "gap.mp4", rate_fps=12.5, num_frames=9)
    assert metadata.is_vfr
    assert [e.columns["frame_index_start"] for e in decoded] == [0, 20]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_parts_divide_the_frames_of_the_whole(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", moving_noise(100), codec="mpeg4", crf=3)
    whole, metadata = run(path, num_frames=5, find_shots=False, rate_fps=25.0)
    shared, frames = [], 0
    for part in range(3):
        decoded, of_part = run(
            path, num_frames=5, find_shots=False, rate_fps=25.0, part=part, parts=3
        )
        shared += decoded
        frames += of_part.decoded_frames
    assert frames == metadata.decoded_frames == 100
    assert len(shared) >= len(whole) - 3
    seen = [e.columns["span_start_us"] for e in shared]
    assert seen == sorted(set(seen))
    first = {e.columns["span_start_us"]: e.frames_THWC for e in whole}
    same = [np.array_equal(e.frames_THWC, first.get(e.columns["span_start_us"])) for e in shared]
    assert sum(same) >= len(whole) // 3


def test_damage_is_counted_up_to_the_next_key_frame(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (68, 48, 64, 3)).astype(np.uint8)
    data = bytearray(encode_clips([noise], 25.0, 20)[0])
    middle = len(data) // 2
    data[middle : middle + 9000] = bytes(9000)
    (tmp_path / "a.mp4").write_bytes(data)
    decoded, metadata = run(tmp_path / "a.mp4", find_shots=False)
    errors = [e.columns["decode_errors"] for e in decoded]
    assert errors[0] == 0
    assert sum(errors) > 0
    assert metadata.expected_frames == 68


def test_scores_distinguish_black_frozen_and_moving(tmp_path):
    black, moving = np.zeros((17, 48, 64, 3), np.uint8), moving_noise(17)
    held = np.repeat(moving[:1], 17, axis=0)
    scores = {}
    for name, frames in {"black": black, "held": held, "moving": moving}.items():
        (clip,), _ = run(write_video(tmp_path / f"{name}.mp4", frames))
        scores[name] = clip.columns
    assert scores["black"]["black_frac"] == 1
    assert scores["black"]["letterbox_frac"] == 1
    assert scores["held"]["freeze_frac"] == 1
    assert scores["moving"]["freeze_frac"] == 0
    assert scores["moving"]["motion_mean"] > 2 > scores["held"]["motion_mean"]
    assert len(set(scores["moving"]["phash"])) == 3


def test_scores_are_those_of_the_formulas():
    for count, levels in ((1, 256), (2, 30), (17, 256), (48, 3)):
        luma = np.random.default_rng(count).integers(0, levels, (count, 36, 64), np.uint8)
        scores = score_span(luma, np.arange(count) * 40_000)
        x = luma.astype(np.float32)
        motion = np.abs(np.diff(x, axis=0)).mean(axis=(1, 2)) if count > 1 else np.zeros(1)
        ring = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
        blur = (ring - 4 * x[:, 1:-1, 1:-1]).var(axis=(1, 2))
        assert scores["blur_p10"] == np.percentile(blur, 10)
        assert (scores["motion_mean"], scores["motion_p95"]) == (
            motion.mean(),
            np.percentile(motion, 95),
        )
        assert scores["black_frac"] == ((luma < 24).mean(axis=(1, 2)) >= 0.98).mean()


@pytest.mark.parametrize("rate_fps", [25, 60, 120])
def test_scores_in_time_do_not_depend_on_the_frame_rate_of_the_container(tmp_path, rate_fps):
    path = write_video(tmp_path / "film.mkv", moving_noise(60), 24.0, crf=1)
    ffmpeg("-i", path, "-vf", f"fps={rate_fps}", "-c:v", "ffv1", tmp_path / "copy.mkv")
    ((film, *_), _), ((copy, *_), _) = (
        run(tmp_path / name, rate_fps=8.0) for name in ("film.mkv", "copy.mkv")
    )
    assert film.columns["still_frac"] == copy.columns["still_frac"] == 0
    # at 25 fps ffmpeg shows one frame twice
    expected = pytest.approx(film.columns["motion_per_s"], rel=0.05)
    assert copy.columns["motion_per_s"] == expected
    assert (copy.columns["freeze_frac"] > 0.4) == (rate_fps >= 60)


def test_clips_of_a_long_source_are_spread_over_it(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", moving_noise(400, size=(16, 32)))
    plan = {"size_px": 16, "num_frames": 5, "find_shots": False}
    starts, counts = {}, {}
    for name, more in {
        "all": {"max_clips": 80},
        "spread": {"max_clips": 7},
        "one": {"max_clips": 1},
        "first": {"max_clips": 7, "choose": "first"},
    }.items():
        clips, metadata = run(path, **plan, **more)
        starts[name] = [clip.columns["frame_index_start"] for clip in clips]
        counts[name] = (metadata.clips_found, metadata.clips_left_out, metadata.expected_frames)
    assert starts["all"] == list(range(0, 400, 5))
    assert starts["first"] == starts["all"][:7]
    assert starts["one"] == [0]
    assert (len(starts["spread"]), starts["spread"][0], starts["spread"][-1]) == (7, 0, 395)
    gaps = np.diff(starts["spread"])
    assert gaps.max() <= 2 * gaps[:-1].min()
    assert counts == {
        "all": (80, None, 400),
        "spread": (80, "MAX_CLIPS", 400),
        "one": (80, "MAX_CLIPS", 400),
        "first": (None, "MAX_CLIPS", None),
    }
    held, _ = run(path, **plan, max_clips=7)
    monkeypatch.setattr("videoar.media.scan._HELD_BYTES", 0)
    for clip, again in zip(held, run(path, **plan, max_clips=7)[0], strict=True):
        assert clip.columns == again.columns
        assert np.array_equal(clip.frames_THWC, again.frames_THWC)


def test_each_source_is_opened_once(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", moving_noise(60))
    opened = []
    real = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    decoded, _ = run(path)
    assert len(decoded) == 3
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("plan", "code", "what"),
    [
        ({"max_pixels": 1000}, "TOO_LARGE_DIM", "is 64x48 pixels"),
        ({"max_duration_s": 0.5}, "TOO_LONG", "shows more than 0.5 s"),
        ({"num_frames": 21}, "TOO_SHORT", "lasts 0.76 s; 21 frames at 25 fps need 0.80 s"),
        ({"rate_fps": 8.0}, "TOO_SHORT", "lasts 0.76 s; 17 frames at 8 fps need 2.00 s"),
    ],
)
def test_source_outside_its_bounds_is_rejected(tmp_path, plan, code, what):
    path = write_video(tmp_path / "a.mp4", moving_noise(20))
    with pytest.raises(MediaError) as error:
        run(path, **plan)
    assert error.value.code == code
    assert what in error.value.what
