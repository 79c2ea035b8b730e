"""What pages show of scores, on snapshots whose rows are written by hand."""

import pytest

from tests.support.committed_rows import RowWriter
from tests.support.scored_samples import PROMPTS, commit_model, score
from videoar.core.errors import GateError
from videoar.evaluation.paired import SampleSet
from videoar.report.scores import (
    ScoreCard,
    cards_of,
    change,
    galleries,
    score_curves,
    scores_of,
    vbench,
)
from videoar.storage.store import open_store

OLD = (0.5, 0.7, 0.9)
NEW = (0.6, 0.85, 0.95)


@pytest.fixture(scope="module")
def writer():
    writer = RowWriter(open_store("memory://page-scores"))
    points = [[16, 9.0], [32, 7.0]]
    details = {"by_num_clips": points, "windows": [3.0, 4.0]}
    lite0 = score("frechet_lite0", 8.0, higher_is_better=False, num_reference=3)
    both = [
        score("fvd", 8.0, higher_is_better=False),
        lite0,
        score("recon/psnr", 30.0, lock=("a", "b")),
    ]
    commit_model(writer, "old", OLD, both)
    commit_model(
        writer,
        "new",
        NEW,
        [
            score("fvd", 7.0, higher_is_better=False, details=details),
            {**lite0, "value": 7.0},
            score("fvd/floor", 2.0, details={"by_num_clips": [[16, 3.0], [32, 2.0]]}),
            score("fvd/inf", 5.0),
            score("recon/psnr", 31.0, lock=("a", "c")),
            {**score("recon/ssim", 0.0), "status": "not_evaluated", "reason": "no <tokenizer>"},
            score("vbench/color", 0.8),
            {**score("vbench/total", 0.0), "status": "not_evaluated", "reason": "no scorer"},
        ],
    )
    commit_model(writer, "other_seeds", NEW, [], seeds=(5, 6, 7))
    return writer


def card(writer, name) -> ScoreCard:
    return ScoreCard(writer.store, writer.store.snapshot(writer.ids[f"{name}_scores"]))


def test_change_of_equal_prompts_and_seeds_is_paired(writer):
    result = change(card(writer, "old"), card(writer, "new"), "temporal_flickering")
    assert result.delta == pytest.approx(0.1)
    assert result.method == "paired, 3 samples"
    # the differences are 0.1, 0.15 and 0.05; the values alone differ by 0.4
    assert 0.05 <= result.ci_low < result.ci_high <= 0.15 + 1e-6
    assert result.outcome == "better"
    assert result.protocol == "mean4, N = 3"


def test_change_of_a_distance_is_paired_on_vectors(writer):
    result = change(card(writer, "old"), card(writer, "new"), "frechet_lite0")
    assert (result.delta, result.method) == (-1.0, "paired, 3 samples")
    assert result.ci_high - result.ci_low < 1  # of the vectors; the intervals of the values: 0.28


def test_change_after_a_takedown_of_a_clip_of_the_set_is_blocked(writer, monkeypatch):
    def blocked(*_):
        raise GateError("evaluation set", "its source s was taken down")

    monkeypatch.setattr(SampleSet, "of", blocked)
    result = change(card(writer, "old"), card(writer, "new"), "frechet_lite0")
    assert (result.delta, result.reason) == (None, "evaluation set: its source s was taken down")


def test_memorisation_shows_samples_beside_training_clips(writer):
    key = writer.store.put_object(b"training", ".mp4").key
    writer.commit("seen", "clips@1", [{"clip_id": f"{1:032x}", "video_key": key}])
    writer.commit(
        "seen_features", "features@1", [{"clip_id": f"{1:032x}", "vector": []}], {"clips": "seen"}
    )
    sample = next(iter(card(writer, "new").samples))
    pair = {"sample_id": sample, "clip_id": f"{1:032x}", "distance": 0.25}
    row = score("memorisation", 0.3, details={"expected": 0.05, "nearest": [pair]})
    ports = {"samples": "new_samples", "train_features": "seen_features"}
    writer.commit("memorized_scores", "scores@1", [row], ports)
    (gallery,) = galleries(card(writer, "memorized"))
    ((of_sample, training),) = [item.clips for item in gallery.cards]
    assert of_sample.label == "sample, distance 0.25"
    assert (training.label, training.video) == ("training clip", b"training")
    (shown,) = scores_of(card(writer, "memorized"))
    assert shown.note == "expected 0.05"


def test_change_of_other_seeds_is_unpaired(writer):
    result = change(card(writer, "old"), card(writer, "other_seeds"), "temporal_flickering")
    assert result.method.startswith("unpaired")
    half = 0.1 * 2**0.5
    assert (result.ci_low, result.ci_high) == pytest.approx((0.1 - half, 0.1 + half))
    assert result.outcome == "same"


def test_change_of_a_distance_has_the_direction_of_its_metric(writer):
    result = change(card(writer, "old"), card(writer, "new"), "fvd")
    assert (result.delta, result.outcome) == (-1.0, "better")


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("recon/psnr", "the protocols differ in b, c"),
        ("recon/ssim", "the first: no such score"),
        ("vbench/total", "the first: no such score"),
    ],
)
def test_change_of_values_that_are_not_comparable_has_the_reason(writer, metric, reason):
    result = change(card(writer, "old"), card(writer, "new"), metric)
    assert (result.delta, result.ci_low, result.reason) == (None, None, reason)


def test_change_of_a_score_that_was_not_evaluated_has_its_reason(writer):
    result = change(card(writer, "new"), card(writer, "new"), "recon/ssim")
    assert result.reason == "the first: not evaluated: no <tokenizer>"


def test_worst_clips_are_sorted_by_the_direction_of_the_metric(writer):
    (gallery,) = galleries(card(writer, "new"))
    assert (gallery.metric, gallery.text) == ("temporal_flickering", "The worst of 3 samples.")
    labels = [card.clips[0].label for card in gallery.cards]
    assert labels == ["0.6", "0.85"]  # 0.95 is the best one
    assert gallery.cards[0].text == PROMPTS[0]
    assert gallery.cards[0].clips[0].video == f"new video {PROMPTS[0]}".encode()


def test_score_curves_have_the_floor_the_limit_and_the_windows(writer):
    sizes, drift = score_curves(card(writer, "new"))
    assert sizes.series == {
        "distance": ((16, 9.0), (32, 7.0)),
        "floor": ((16, 3.0), (32, 2.0)),
        "at infinite N": ((16, 5.0), (32, 5.0)),
    }
    assert (sizes.x_label, sizes.title) == ("N, clips", "fvd (mean4, N = 3)")
    assert drift.series == {"distance": ((1, 3.0), (2, 4.0))}


def test_vbench_has_the_evaluated_dimensions_and_the_reason_of_no_total(writer):
    (result,) = vbench([card(writer, "old"), card(writer, "new")])
    assert (result.dimensions, result.totals, result.reason) == ({"color": 0.8}, {}, "no scorer")
    assert not [*vbench([card(writer, "old")])]


def commit_decision(writer, name, model, seq, **ports):
    rule = {"rule": "r", "candidate": f"m:{model}", "ref": "best", "champion_seq": seq,
            "champion": {0: "m:old", 1: "m:x"}.get(seq)}  # fmt: skip
    ports = {"scores": f"{model}_scores", **ports}
    writer.commit(name, "releases@1", [rule], ports)
    return writer.store.snapshot(writer.ids[name])


def cards(writer, decision, *names):
    snapshots = [writer.store.snapshot(writer.ids[f"{name}_scores"]) for name in names]
    return cards_of(writer.store, snapshots, [decision])


def test_cards_of_a_run_name_the_champion_of_the_entry_that_was_decided_against(writer):
    first = commit_decision(writer, "first", "old", -1)
    writer.store.refs.advance("best", "m:old", expect=None, evidence={"decision": first.id})
    writer.store.refs.advance("best", "m:x", expect=0, evidence={})  # moved since
    (own,) = cards(writer, commit_decision(writer, "second", "new", 0), "new")
    assert own.champion.snapshot.id == writer.ids["old_scores"]
    (own,) = cards(writer, first, "old")
    assert own.champion is None
    (own,) = cards(writer, commit_decision(writer, "by_hand", "new", 1), "new")
    assert own.champion is None


def test_cards_of_a_run_that_scored_its_champion_are_those_of_the_candidate(writer):
    decision = commit_decision(writer, "third", "new", 1, champion_scores="old_scores")
    (own,) = cards(writer, decision, "old", "new")
    assert own.snapshot.id == writer.ids["new_scores"]
    assert own.champion.snapshot.id == writer.ids["old_scores"]
