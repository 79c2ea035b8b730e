"""A profile is exact, and the same for any division into files."""

import numpy as np
import pytest

from tests.support.clip_rows import clip_row, clips_of
from tests.support.stage_chain import commit, describe
from videoar.core.errors import GateError
from videoar.curation.policy import score_columns
from videoar.storage.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path.as_uri())


def test_percentiles_are_exact_for_any_files(store):
    motion = np.random.default_rng(0).gamma(2.0, 2.0, 200).astype(np.float32)
    rows = [clip_row(str(i), motion_mean=float(m), blur_p10=None) for i, m in enumerate(motion)]
    rows.append(clip_row("none", motion_mean=None, blur_p10=None))
    whole = describe(store, clips_of(store, rows))
    parts = describe(store, clips_of(store, rows[150:], rows[:7], rows[7:150]))
    assert whole.digest == parts.digest
    result = {r["column"]: r for r in whole.table().to_pylist()}
    assert tuple(result) == score_columns()
    one = result["motion_mean"]
    assert (one["rows"], one["nulls"], one["min"]) == (201, 1, motion.min())
    assert one["percentiles"] == pytest.approx(
        np.percentile(motion.astype(np.float64), range(101)), rel=1e-12
    )
    assert sum(one["hist_counts"]) == 200
    assert len(one["hist_edges"]) == len(one["hist_counts"]) + 1
    empty = result["blur_p10"]
    assert (empty["nulls"], empty["mean"], empty["percentiles"]) == (201, None, [])


def test_empty_input_is_a_gate_error(store):
    with pytest.raises(GateError, match="the input has no clips"):
        describe(store, commit(store, "clips", "clips@1", []))
