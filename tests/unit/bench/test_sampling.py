"""Scores of sampler settings and of long videos."""

import numpy as np
import pytest

from videoar.bench.sampling import LONG, SETTINGS, _long_tables, _settings_table, _shifts
from videoar.model.transformer.sampling import SamplerSettings


def test_shift_at_a_join_is_told_from_those_of_latent_frames():
    """Clips of 9 frames, stride 4, windows of 8 new frames: joins before frames 9, 17, 25."""
    colour_NTC = np.zeros((2, 29, 3))
    colour_NTC[:, 5:] += 100  # inside of the first window: not counted
    for frame, shift in ((9, 3), (17, 3), (25, 3), (13, 2), (21, 2), (10, 1)):
        colour_NTC[:, frame:, 0] += shift
    at_join, at_latent, elsewhere = _shifts(colour_NTC, longest=9, new=8, stride=4)
    assert at_join == [3, 3, 3]
    assert at_latent == [2, 2, 2]
    assert elsewhere == pytest.approx([1 / 15] * 3)


def test_gain_of_a_setting_is_that_of_paired_samples():
    scores = {"distance": [1.0, 0.5, 1.5], "sharpness": 0.1, "steps": 15, "cpu_s": 0.03}
    hit, miss = {"colour": [1] * 4, "motion": [1] * 4}, [0, 0, 0, 0]
    rows = {
        next(iter(SETTINGS)): {**scores, **hit, "shape": [1, 1, 0, 0]},
        "greedy": {**scores, **hit, "shape": miss},
    }
    lines = list(_settings_table(rows, [0.5, 0.1, 0.9]))
    assert "+0.000 [+0.000, +0.000]" in lines[1]
    assert "| greedy | 0.00 [0.00, 0.49] | -0.500 [-1.000, +0.000]" in lines[2]
    assert "0.50 [0.10, 0.90]" in lines[3]


def test_every_setting_is_valid_for_three_scales():
    for options in [*SETTINGS.values(), *(options for _, options in LONG.values())]:
        assert len(SamplerSettings(**options).temperatures(3)) == 3


def test_table_of_long_videos_has_a_row_per_way_and_score():
    interval = [1.0, 0.5, 1.5]
    row = {name: [0.0, 1.0, 2.0, 3.0] for name in ("drift", "sharpness", "right")}
    row |= {"shifts": [interval] * 3, "distance": [interval] * 4, "cpu_s": 1.5}
    text = "\n".join(_long_tables({"bits": row}, interval))
    assert "| bits | 1.00 [0.50, 1.50] | 1.00 [0.50, 1.50] | 1.00 [0.50, 1.50] | 1.50 |" in text
    assert "| bits | drift | 0.0 | 1.0 | 2.0 | 3.0 |" in text
