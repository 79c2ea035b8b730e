"""Decisions of `promote`: what they are made against, and what they are compared with."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest

from tests.support.feature_rows import feature_rows
from videoar.contracts.contract import load_contract
from videoar.core.errors import GateError, RefMovedError
from videoar.core.types import Provenance
from videoar.evaluation.scorecard import score_row
from videoar.pipeline.context import StageContext
from videoar.pipeline.fingerprint import compute_parts, differences, fingerprint
from videoar.stages.promote import PromoteConfig, PromoteStage, apply_promotion
from videoar.storage.store import open_store

METRIC, DISTANCE = "rendered/colour_acc", "frechet_lite0"
REAL = np.random.default_rng(1).normal(size=(32, 4))
numbers = itertools.count()


@pytest.fixture
def store():
    return open_store(f"memory://promote-{next(numbers)}")


def commit(store, contract, rows, **parents):
    dataset = contract.partition("@")[0]
    schema = load_contract(contract).arrow_schema
    table = pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema)
    target = store.dataset(dataset, contract)
    provenance = Provenance(run_id="r", pipeline="p", stage=dataset, code_version="0",
                            fingerprint=f"f{next(numbers)}", parents=parents)  # fmt: skip
    return target.commit([target.write(table)], provenance, {})


def model(store):
    number = next(numbers)
    row = {"name": "m", "kind": "transformer", "digest": f"{number:064x}", "config_json": "{}",
           "files": [], "num_parameters": 1, "step": number, "metrics": [],
           "history_json": "[]"}  # fmt: skip
    return commit(store, "models@1", [row])


def sample(sample_id, **changes):
    return {"sample_id": sample_id, "prompt": "p", "index": 0, "seed": 0,
            "model_digest": "m", "tokenizer_digest": "t", "sampler_json": "{}", "steps": 1,
            "num_frames": 9, "rate_fps": 8.0, "width_px": 8, "height_px": 8, "video_key": "k",
            "video_sha256": "0" * 64, "video_size_bytes": 1, **changes}  # fmt: skip


def features(store, ids, vectors):
    return commit(store, "features@1", feature_rows(dict(zip(ids, vectors, strict=True))))


def scores(store, value, of=None, lock="a"):
    parents = {}
    if of is not None:
        rows = [sample(f"{next(numbers):032x}")]
        parents["samples"] = commit(store, "samples@1", rows, model=of.id).id
    row = score_row(METRIC, value, lock={"toy": lock}, num_samples=32, details={"of": str(of)})
    return commit(store, "scores@1", [row], **parents)


def stage(bound):
    return PromoteStage(PromoteConfig(rules=[{"metric": METRIC, **bound}]))


def decide(store, made, candidate, given, **ports):
    """Commit the decision on a candidate, as a run does."""
    inputs = {"model": candidate, "scores": given, **ports}
    state = made.state(store, inputs)
    (output,) = made.reduce(inputs, StageContext(store, state=state))
    parents = {port: snapshot.id for port, snapshot in inputs.items()}
    return commit(store, "releases@1", output.rows.to_pylist(), **parents)


def test_decision_names_champion_and_seq_and_moves_the_ref_from_there(store):
    bound = {"max_regression": 0.1}
    gate, first, second = stage(bound), model(store), model(store)
    decision = decide(store, gate, first, scores(store, 0.5))
    (row,) = decision.table().to_pylist()
    assert (row["champion"], row["champion_seq"]) == (None, -1)
    assert row["reason"] == "no champion to compare with"
    gate.after_commit(decision, store, "run1")
    later = decide(store, gate, second, scores(store, 0.45))
    (row,) = later.table().to_pylist()
    assert (row["champion"], row["champion_seq"]) == (first.id, 0)
    assert (row["passed"], row["bound"]) == (True, pytest.approx(0.4))
    gate.after_commit(later, store, "run2")
    gate.after_commit(later, store, "run2")
    moves = [(e["snapshot"], e["by_run"], e["evidence"]) for e in store.refs.history("champion")]
    assert moves == [
        (first.id, "run1", {"decision": decision.id}),
        (second.id, "run2", {"decision": later.id}),
    ]


def test_decision_moves_the_ref_from_no_other_entry(store):
    bound = {"min": 0.1}
    gate, first, second = stage(bound), model(store), model(store)
    one, two = (decide(store, gate, m, scores(store, 0.5)) for m in (first, second))
    gate.after_commit(one, store, "run1")
    with pytest.raises(RefMovedError, match=f"champion: moved to {first.id}"):
        gate.after_commit(two, store, "run2")
    assert store.refs.head("champion") == first.id


def test_champion_is_part_of_the_fingerprint_until_the_candidate_is_promoted(store):
    bound = {"min": 0.1}
    gate, first, second = stage(bound), model(store), model(store)
    inputs = {"model": second, "scores": scores(store, 0.5)}

    def parts():
        return compute_parts(gate, inputs, gate.state(store, inputs))

    before = parts()
    gate.after_commit(decide(store, gate, first, scores(store, 0.4)), store, "run1")
    changed = {entry["component"]: entry["new"] for entry in differences(before, parts())}
    assert changed == {"state.champion": first.id, "state.champion_seq": "0"}
    decided = parts()
    gate.after_commit(decide(store, gate, second, inputs["scores"]), store, "run2")
    assert fingerprint(parts()) == fingerprint(decided)
    store.refs.advance("champion", first.id, expect=1, evidence={"rolled_back_from": second.id})
    assert fingerprint(parts()) == fingerprint(decided)


def test_decision_of_an_earlier_version_moves_nothing(store):
    row = {"rule": "r", "metric": METRIC, "passed": True, "reason": "", "ref": "champion",
           "candidate": model(store).id}  # fmt: skip
    with pytest.raises(GateError, match="decided by an earlier version"):
        apply_promotion(commit(store, "releases@1", [row]), store, "run1")
    with pytest.raises(GateError, match="no rule was evaluated"):
        apply_promotion(commit(store, "releases@1", []), store, "run1")
    assert store.refs.head("champion") is None


def test_champion_scores_of_this_run_count_instead_of_those_of_its_decision(store):
    bound = {"max_regression": 0.1}
    gate, first, second = stage(bound), model(store), model(store)
    gate.after_commit(decide(store, gate, first, scores(store, 0.9)), store, "run1")
    given = scores(store, 0.7, lock="new")
    (row,) = decide(store, gate, second, given).table().to_pylist()
    assert row["reason"].startswith("the champion's protocol differs in toy (score the champion")
    again = scores(store, 0.75, of=first, lock="new")
    (row,) = decide(store, gate, second, given, champion_scores=again).table().to_pylist()
    assert (row["passed"], row["bound"]) == (True, pytest.approx(0.65))
    other = scores(store, 0.1, of=second, lock="new")
    for wrong in (other, scores(store, 0.1, lock="new")):
        with pytest.raises(RefMovedError, match=f"the ref points at {first.id}"):
            decide(store, gate, second, given, champion_scores=wrong)


def test_champion_without_a_decision_fails_rules_that_compare(store):
    gate, first, second = stage({"max_regression": 0.1}), model(store), model(store)
    store.refs.advance("champion", first.id, expect=None, evidence={})
    (row,) = decide(store, gate, second, scores(store, 0.9)).table().to_pylist()
    assert (row["passed"], row["reason"]) == (False, "champion: no such score")


def scored_samples(store, of, blur, evalset, value):
    """Return scores of 32 samples of a model, whose vectors differ by `blur` from the real ones."""
    ids = [f"{next(numbers):032x}" for _ in range(32)]
    rows = [sample(id_, prompt=f"p{i // 2}", index=i % 2, seed=i) for i, id_ in enumerate(ids)]
    vectors = np.random.default_rng(0).normal(size=(32, 4)) + blur
    parents = {
        "samples": commit(store, "samples@1", rows, model=of.id).id,
        "evalset": evalset.id,
        "sample_features": features(store, ids, vectors).id,
        "reference_features": features(store, [f"c{i}" for i in range(32)], REAL).id,
    }
    row = score_row(DISTANCE, value, lock={"preset": "mean4"}, num_samples=32, num_reference=32,
                    higher_is_better=False)  # fmt: skip
    return commit(store, "scores@1", [row], **parents)


def test_noninferior_distance_uses_the_reference_of_the_evaluation_set(store):
    rows = [{"kind": "clip", "item_id": f"c{i}", "role": "reference" if i < 20 else "floor",
             "clip_json": json.dumps({"clip_id": f"c{i}"}), "index": 0, "snapshot": "clips:0",
             "protocol": "default", "source_id": f"s{i}"} for i in range(32)]  # fmt: skip
    evalset = commit(store, "evalsets@1", rows)
    gate = PromoteStage(PromoteConfig(rules=[{"metric": DISTANCE, "noninferior": 0.5}]))
    first, second = model(store), model(store)
    good = scored_samples(store, first, 0.0, evalset, 1.0)
    gate.after_commit(decide(store, gate, first, good), store, "run1")
    for blur, passed in ((0.1, True), (2.0, False)):
        scored = scored_samples(store, second, blur, evalset, 1.0)
        (row,) = decide(store, gate, second, scored, champion_scores=good).table().to_pylist()
        assert row["passed"] is passed
        assert row["reason"].startswith("change +")


def test_noninferior_without_vectors_names_what_is_missing(store):
    gate = PromoteStage(PromoteConfig(rules=[{"metric": METRIC, "noninferior": 0.5}]))
    first, second = model(store), model(store)
    gate.after_commit(decide(store, gate, first, scores(store, 0.5)), store, "run1")
    (row,) = decide(store, gate, second, scores(store, 0.5)).table().to_pylist()
    what = "was computed without samples, evalset, sample_features"
    assert row["passed"] is False
    assert row["reason"].count(what) == 2


def test_champion_of_a_rollback_has_the_scores_of_its_decision(store):
    bound = {"max_regression": 0.1}
    gate, first, second = stage(bound), model(store), model(store)
    for candidate in (first, second):
        given = scores(store, 0.9 if candidate is first else 0.95)
        gate.after_commit(decide(store, gate, candidate, given), store, "run")
    store.refs.advance("champion", first.id, expect=1, evidence={"rolled_back_from": second.id})
    (row,) = decide(store, gate, model(store), scores(store, 0.85)).table().to_pylist()
    assert (row["bound"], row["champion_seq"]) == (pytest.approx(0.8), 2)
