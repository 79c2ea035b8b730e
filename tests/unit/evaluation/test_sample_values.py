"""Vectors of clips and values of samples, from rows of features@1."""

import subprocess
import sys

import numpy as np
import pytest

from tests.support.feature_rows import feature_rows, feature_table, pixel_rows, scene_rows
from videoar.core.errors import ContractError
from videoar.evaluation.metric_names import METRICS, metric_of
from videoar.evaluation.sample_values import sample_values
from videoar.evaluation.synthetic import Prediction, decode, encode

RED = Prediction((True,) * 4, "red", "circle", "left", 0.1)
STILL = Prediction((True,) * 4, "red", "circle", None, 0.0)
NOTHING = Prediction((False,) * 4)


def test_feature_table_vectors_are_in_the_order_of_the_ids():
    table = feature_table(feature_rows({"b": [3, 4], "a": [1, 2]}), feature_rows({"c": [5, 6]}))
    np.testing.assert_array_equal(table.vectors("lite0", "mean4", ["a", "c"]), [[1, 2], [5, 6]])
    assert table.digest("lite0", "mean4") == "d"
    assert table.digest("lite0", "change4") == ""
    assert table.spaces == (("lite0", "mean4"),)


def test_feature_table_missing_uneven_and_non_finite_vectors_are_named():
    good = feature_rows({"a": [1, 2]})
    table = feature_table(good, feature_rows({"n": [1, np.nan], "u": [1]}))
    assert table.missing("lite0", "mean4", ["a", "x", "y"]) == ["x", "y"]
    for ids, message in [
        (["a", *"pqrst"], "missing for p, q, r and 2 more"),
        (["a", "n"], "not finite for n"),
        (["a", "u"], r"lengths \[1, 2\]"),
    ]:
        with pytest.raises(ContractError, match=message):
            table.vectors("lite0", "mean4", ids)
    mixed = feature_table(good, feature_rows({"b": [1, 2]}, digest="e"))
    with pytest.raises(ContractError, match="networks d, e"):
        mixed.digest("lite0", "mean4")


def test_encode_then_decode_is_the_same_prediction():
    for prediction in (RED, STILL, NOTHING):
        back = decode(encode(prediction))
        assert back.speed == pytest.approx(prediction.speed)
        assert (back.detected, back.colour, back.shape, back.motion) == (
            prediction.detected, prediction.colour, prediction.shape, prediction.motion
        )  # fmt: skip


def test_sample_values_are_one_number_per_sample_with_a_value():
    texts = {"1": "a red circle moving left", "2": "a red circle moving up", "3": "a cat"}
    table = feature_table(
        scene_rows({"1": RED, "2": RED, "3": NOTHING}),
        pixel_rows({"1": {"exposure": 0.25}, "2": {}, "3": {}}),
    )
    assert sample_values("rendered/colour_acc", table, texts) == {"1": 1.0, "2": 1.0}
    assert sample_values("rendered/motion_acc", table, texts) == {"1": 1.0, "2": 0.0}
    assert sample_values("rendered/all_acc", table, texts) == {"1": 1.0, "2": 0.0}
    assert sample_values("proxy/exposure", table, texts) == {"1": 0.25, "2": 0.0, "3": 0.0}
    with pytest.raises(ContractError, match="missing for 4"):
        sample_values("proxy/exposure", table, {**texts, "4": "a dog"})
    with pytest.raises(ValueError, match="no value per sample"):
        sample_values("frechet_lite0", table, texts)


def test_sample_values_frozen_clip_has_motion_zero():
    table = feature_table(scene_rows({"1": STILL}))
    texts = {"1": "a red circle moving left"}
    assert sample_values("rendered/motion_acc", table, texts) == {"1": 0.0}
    assert sample_values("rendered/valid_frac", table, texts) == {"1": 1.0}


def test_invariant_11_metric_names_no_stand_in_contains_fvd():
    for name, metric in METRICS.items():
        assert ("fvd" in name) == (metric.network == "i3d" and metric.kind == "frechet")
    known = ("fvd/floor", "frechet_domain@0123456789ab", "frechet_domain/floor@01", "kvd_lite0/inf")
    assert all(map(metric_of, known))
    assert not any(map(metric_of, ("proxy/exposure/floor", "fvd/floor/inf", "lite0", "/floor")))
    assert metric_of("recon/psnr").unit == "dB"


def test_import_sample_values_needs_no_torch():
    code = "import sys, videoar.evaluation.sample_values; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
