"""Damages of clips, and what a measure of pixels makes of them."""

import numpy as np
import pytest

from videoar.bench import damage
from videoar.core.errors import ConfigError
from videoar.evaluation.registry import open_extractor


def test_damages_keep_the_shape_and_grow_with_their_strength():
    (clip,) = damage._drawn(1)
    for name, apply in damage.DAMAGES.items():
        made = [apply(clip.frames, k) for k in range(damage.STRENGTHS)]
        assert all((m.shape, m.dtype) == (clip.frames.shape, np.uint8) for m in made), name
        change = [np.abs(m.astype(float) - clip.frames).mean() for m in made]
        assert 0 < change[0] < change[-1], name
        assert np.array_equal(apply(clip.frames, 3), made[3]), name


def test_shuffled_clip_has_the_same_frames_and_a_dropped_one_fewer():
    (clip,) = damage._drawn(1)

    def frames(clip_THWC):
        return sorted(frame.tobytes() for frame in clip_THWC)

    assert frames(damage.shuffle(clip.frames, 4)) == frames(clip.frames)
    assert len(set(frames(damage.drop(clip.frames, 2)))) == 4


def test_pixel_measures_see_noise_and_not_the_order_of_frames():
    clips = damage._drawn(24)
    cases = damage.measure(open_extractor("pixels", ("windows",)), clips[::2], clips[1::2])
    assert cases.keys() == {f"pixels/windows {name}" for name in damage.DAMAGES}
    assert not cases["pixels/windows shuffled frames"]["seen"]
    noise = cases["pixels/windows noise"]
    assert noise["seen"]
    assert noise["monotonic"]
    assert noise["5"] > noise["1"] >= 1


def test_folder_with_too_few_videos_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("no video")
    with pytest.raises(ConfigError):
        damage._of_folder(tmp_path, 2)
