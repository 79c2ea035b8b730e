"""VBench aggregation against published models; flicker against its closed forms."""

import numpy as np
import pytest

from tests.support.shared_data import shared_json
from videoar.core.errors import ContractError
from videoar.evaluation import temporal_flickering, vbench_scores
from videoar.evaluation.vbench_constants import DIMENSIONS, QUALITY, SEMANTIC

# Source: Show-o2 paper, arXiv 2506.15564v3, table 8: per-dimension values in DIMENSIONS order.
MODELSCOPE = [0.8987, 0.9529, 0.9828, 0.9579, 0.5206, 0.5857, 0.6639]
MODELSCOPE += [0.8225, 0.3898, 0.924, 0.8172, 0.3368, 0.3926, 0.2339, 0.2537, 0.2567]
PUBLISHED = {"total": 75.75, "quality": 78.05, "semantic": 66.54}


def test_invariant_5_vbench_scores_published_dimensions_give_published_total():
    scores = vbench_scores(dict(zip(DIMENSIONS, MODELSCOPE, strict=True)))
    assert scores == pytest.approx(PUBLISHED, abs=0.02)
    assert scores["total"] == pytest.approx((4 * scores["quality"] + scores["semantic"]) / 5)


@pytest.mark.shared
def test_vbench_scores_and_constants_equal_shared_files():
    for case in shared_json("eval/vbench_score_vectors.json")["vectors"]:
        assert vbench_scores(case["dimensions"]) == pytest.approx(case["published"], abs=0.02)
    constants = shared_json("eval/vbench_constants.json")
    for name, (low, high, weight) in {**QUALITY, **SEMANTIC}.items():
        assert constants["normalize"][name] == {"min": low, "max": high}
        assert constants["weight"][name] == weight


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_invariant_5_vbench_scores_missing_dimension_is_rejected(dimension):
    raw = dict.fromkeys(DIMENSIONS, 0.5)
    assert vbench_scores(raw)
    with pytest.raises(ContractError, match=dimension):
        vbench_scores({**raw, dimension: float("nan")})
    del raw[dimension]
    with pytest.raises(ContractError, match=dimension):
        vbench_scores(raw)


def test_invariant_5_vbench_scores_unknown_dimension_is_rejected():
    with pytest.raises(ContractError, match="beauty"):
        vbench_scores({**dict.fromkeys(DIMENSIONS, 0.5), "beauty": 1.0})


def test_temporal_flickering_known_clips_give_closed_form():
    shape = (16, 32, 48, 3)
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None, None, None], shape)
    assert temporal_flickering(np.full(shape, 128, dtype=np.uint8)) == 1
    assert temporal_flickering((ramp % 2) * np.uint8(255)) == 0
    assert temporal_flickering(ramp) == pytest.approx(0.996078431372549, abs=1e-6)
    with pytest.raises(ContractError):
        temporal_flickering(ramp[:1])
