"""Damages of clips, and what a measure of pixels makes of them."""

import numpy as np
import pytest

from videoar.bench import damage
from videoar.core.errors import ConfigError
from videoar.evaluation.extractor import Clip
from videoar.evaluation.registry import open_extractor
from videoar.media.synthetic import draw, scenes
from videoar.media.transcode import encode


def drawn(count):
    chosen = list(scenes())[:count]
    return [Clip(str(i), draw(scene, 16, 64, 8.0), 8.0, "") for i, scene in enumerate(chosen)]


def test_damages_keep_the_shape_and_grow_with_their_strength():
    (clip,) = drawn(1)
    for name, apply in damage.DAMAGES.items():
        made = [apply(clip.frames, k) for k in range(damage.STRENGTHS)]
        assert all((m.shape, m.dtype) == (clip.frames.shape, np.uint8) for m in made), name
        change = [np.abs(m.astype(float) - clip.frames).mean() for m in made]
        assert 0 < change[0] < change[-1], name
        assert np.array_equal(apply(clip.frames, 3), made[3]), name


def test_shuffled_clip_has_the_same_frames_and_a_dropped_one_fewer():
    (clip,) = drawn(1)

    def frames(clip_THWC):
        return sorted(frame.tobytes() for frame in clip_THWC)

    assert frames(damage.shuffle(clip.frames, 4)) == frames(clip.frames)
    assert len(set(frames(damage.drop(clip.frames, 2)))) == 4


@pytest.mark.slow
def test_pixel_measures_see_noise_and_not_the_order_of_frames():
    clips = drawn(24)
    cases = damage.measure(open_extractor("pixels", ("windows",)), clips[::2], clips[1::2])
    assert cases.keys() == {f"pixels/windows {name}" for name in damage.DAMAGES}
    assert not cases["pixels/windows shuffled frames"]["seen"]
    noise = cases["pixels/windows noise"]
    assert noise["seen"]
    assert noise["monotonic"]
    assert noise["5"] > noise["1"] >= 1


@pytest.mark.slow
def test_clips_are_the_first_of_each_video_and_too_few_are_refused(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        frames = np.random.default_rng(seed).integers(0, 256, (50, 64, 64, 3), np.uint8)
        encode(frames, tmp_path / f"{name}.mp4", 8.0)
    (tmp_path / "no.mp4").write_text("no video")
    clips = damage._clips(str(tmp_path), 2)
    assert [clip.frames.shape for clip in clips] == [(16, 64, 64, 3)] * 2
    with pytest.raises(ConfigError, match="has 2 clips, 3 are needed"):
        damage._clips(str(tmp_path), 3)
