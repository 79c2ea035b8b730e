"""Classifier of the synthetic corpus: near 1 on real clips, chance on shuffled prompts."""

from dataclasses import replace

import numpy as np
import pytest

from videoar.evaluation.synthetic import classify, synthetic_scores, wilson
from videoar.media.decode import decode_clip
from videoar.media.synthetic import draw, held_out, scenes
from videoar.media.transcode import encode_clips

EVERY = [  # every other combination, like the white fields of a chess board
    replace(scene, seed=1000 + i)
    for i, scene in enumerate((*scenes(), *held_out()))
    if (i + i // 4) % 2 == 0
]


@pytest.fixture(scope="module", params=[32, 64])
def classified(request):
    """Verdicts on one clip of every combination, after H.264."""
    clips = [draw(scene, 17, request.param, 8.0) for scene in EVERY]
    predictions = [classify(decode_clip(data), 8.0) for data in encode_clips(clips, 8.0, crf=18)]
    return request.param, predictions


def test_invariant_10_classify_real_clips_gives_their_attributes(classified):
    _, predictions = classified
    scores = synthetic_scores(predictions, EVERY)
    assert scores["valid_frac"].value == 1
    assert scores["colour_acc"].value >= 0.99
    assert scores["motion_acc"].value >= 0.99
    assert scores["shape_acc"].value >= 0.99
    assert scores["all_acc"].details["held_out"]["num_samples"] > 0
    speeds = [prediction.speed for prediction in predictions]
    assert min(speeds) > 0.09
    assert max(speeds) < 0.14


@pytest.mark.slow
@pytest.mark.parametrize("size_px", [32, 48])
def test_classify_blurred_clips_gives_their_attributes(size_px):
    """Reconstructions and samples are blurred: the classifier must not need sharp edges."""
    wide = size_px // 8 + 1
    clips = [box_blur(draw(scene, 17, size_px, 8.0), wide) for scene in EVERY]
    scores = synthetic_scores([classify(clip, 8.0) for clip in clips], EVERY)
    assert scores["all_acc"].value >= 0.95


def box_blur(frames_THWC: np.ndarray, wide: int) -> np.ndarray:
    """Return the means over squares of `wide` pixels; the border is repeated."""
    near, far = wide // 2, (wide - 1) // 2
    padded = np.pad(frames_THWC, ((0, 0), (near, far), (near, far), (0, 0)), mode="edge")
    squares = np.lib.stride_tricks.sliding_window_view(padded, (wide, wide), axis=(1, 2))
    return squares.mean((-2, -1)).round().astype(np.uint8)


@pytest.mark.parametrize("is_tall", [False, True])
def test_classify_wide_and_tall_clips_gives_their_attributes(is_tall):
    for scene in EVERY[:8]:
        clip = draw(scene, 17, 64, 8.0)
        edge = np.repeat(clip[:, :, :1] // 2 + clip[:, :, -1:] // 2, 16, axis=2)
        clip = np.concatenate([edge, clip, edge], axis=2)
        if is_tall:
            clip = clip.transpose(0, 2, 1, 3)
        prediction = classify(clip, 8.0)
        ways = {"left": "up", "right": "down", "up": "left", "down": "right"}
        assert prediction.colour == scene.colour
        assert prediction.motion == (ways[scene.motion] if is_tall else scene.motion)
        assert 0.09 < prediction.speed < 0.14


def test_invariant_10_synthetic_scores_shuffled_prompts_are_at_chance(classified):
    _, predictions = classified
    order = np.random.default_rng(0)
    rounds = [
        synthetic_scores(predictions, [EVERY[i] for i in order.permutation(len(EVERY))])
        for _ in range(20)
    ]
    for name in ("colour_acc", "shape_acc", "motion_acc", "all_acc"):
        mean = np.mean([scores[name].value for scores in rounds])
        assert mean == pytest.approx(rounds[0][name].chance, abs=0.04)


def test_invariant_10_synthetic_scores_frozen_clips_have_no_motion():
    clips = [np.repeat(draw(scene, 17, 32, 8.0)[8:9], 17, axis=0) for scene in EVERY[:12]]
    scores = synthetic_scores([classify(clip, 8.0) for clip in clips], EVERY[:12])
    assert scores["motion_acc"].value == 0
    assert scores["colour_acc"].value == 1
    assert scores["motion_acc"].details["confusion"]["left"]["none"] > 0


def test_synthetic_scores_clips_without_figure_are_zero():
    noise = np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), dtype=np.uint8)
    empty = np.full((17, 32, 32, 3), 120, dtype=np.uint8)
    flooded = np.full((17, 32, 32, 3), (220, 40, 40), dtype=np.uint8)
    two = np.full_like(empty, 120)
    two[:, 2:8, 2:8], two[:, 24:30, 24:30] = (255, 0, 0), (0, 0, 255)
    predictions = [classify(clip, 8.0) for clip in (noise, empty, flooded, two)]
    scores = synthetic_scores(predictions, EVERY[:4])
    assert {name: score.value for name, score in scores.items()} == dict.fromkeys(scores, 0.0)


def test_classify_outlier_frames_do_not_change_prediction():
    scene = EVERY[5]
    clip = draw(scene, 17, 32, 8.0)
    clip[3], clip[11] = 120, clip[0]
    prediction = classify(clip, 8.0)
    assert (prediction.colour, prediction.motion) == (scene.colour, scene.motion)
    assert prediction.detected.count(False) == 1


def test_wilson_known_counts_give_published_intervals():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(1)
