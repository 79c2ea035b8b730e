"""Verdicts are pure; duplicates do not depend on order."""

import random

import pytest

from videoar.media.policy import POLICIES, REASONS, SCORE_MISSING, Policy, find_duplicates, verdict

GOOD = {
    "clip_id": "c0",
    "source_id": "s0",
    "source_uri": "file:///a",
    "src_width_px": 320,
    "src_height_px": 240,
    "src_rate_fps": 25.0,
    "expected_frames": 100,
    "decoded_frames": 100,
    "decode_errors": 0,
    "span_start_us": 0,
    "num_frames": 17,
    "rate_fps": 8.0,
    "luma_mean": 100.0,
    "black_frac": 0.0,
    "freeze_frac": 0.0,
    "blur_p10": 900.0,
    "motion_mean": 3.0,
    "letterbox_frac": 0.0,
    "phash": [1, 2, 3],
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"src_height_px": 127}, "SHORT_SIDE"),
        ({"src_rate_fps": 10.0}, "FPS_LOW"),
        ({"src_rate_fps": 240.0}, "FPS_HIGH"),
        ({"rate_fps": 25.0}, "CLIP_SHORT"),
        ({"decoded_frames": 90}, "TRUNCATED"),
        ({"decode_errors": 1}, "DECODE_ERRORS"),
        ({"black_frac": 0.5}, "BLACK"),
        ({"freeze_frac": 0.9}, "FROZEN"),
        ({"motion_mean": 0.0}, "LOW_MOTION"),
        ({"luma_mean": 5.0}, "DARK"),
        ({"luma_mean": 250.0}, "BRIGHT"),
        ({"letterbox_frac": 0.5}, "LETTERBOX"),
        ({"blur_p10": 0.1}, "BLURRED"),
        ({"motion_mean": None}, SCORE_MISSING),
    ],
)
def test_each_bound_gives_its_reason(change, reason):
    assert verdict(GOOD, POLICIES["default"]) == (True, [])
    assert verdict({**GOOD, **change}, POLICIES["default"]) == (False, [reason])
    assert reason in REASONS


def test_bounds_that_are_off_need_no_score():
    policy = Policy(min_motion=None, min_decoded_share=None)
    assert verdict({**GOOD, "motion_mean": None, "expected_frames": None}, policy)[0]


def test_a_container_that_announces_no_length_breaks_no_promise():
    assert verdict({**GOOD, "expected_frames": None}, POLICIES["default"])[0]


def clip(name, hashes, **change):
    names = dict.fromkeys(("clip_id", "source_id", "source_uri"), name)
    return {**GOOD, **names, "phash": hashes, **change}


def test_duplicates_keep_the_best_in_any_order():
    base = [0x0123456789ABCDEF, -0x0123456789ABCDEF, 77]
    near = [h ^ 0b111 for h in base]
    clips = [
        clip("small", near, src_width_px=160),
        clip("big", base),
        clip("far", [h ^ 0x1FF for h in base]),
        clip("later", base, span_start_us=2_000_000),
        clip("same-source", base, source_id="big", span_start_us=100_000),
        clip("one-frame", [base[0], 0x5555, 0x3333]),
        {**clip("big", base), "source_uri": "z-copy"},
    ]
    expected = {("small", "small"): ["DUPLICATE_NEAR"], ("big", "z-copy"): ["DUPLICATE_EXACT"]}
    for seed in range(5):
        random.Random(seed).shuffle(clips)
        assert find_duplicates(clips) == expected
