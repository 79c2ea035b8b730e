"""Clips, samples and evaluation sets to vectors: sorted, complete, found again, with rejects."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.support.clip_rows import clips_of
from tests.support.feature_runs import document, file_rows, samples_of
from tests.support.stage_chain import commit
from tests.support.token_runs import damaged, execute, shape_rows
from videoar.contracts.contract import load_contract
from videoar.core.errors import ConfigError
from videoar.media.decode import decode_clip
from videoar.model.classifier import ClassifierConfig, ClipClassifier
from videoar.pipeline.spec import parse_pipeline
from videoar.pipeline.stage import Output
from videoar.stages.features.stage import FeaturesConfig, FeaturesStage
from videoar.training.model_store import publish_model

LIGHT = {"networks": ["pixels", "synthetic"]}
SPACES = [
    ("lite0", "change4", 320),
    ("lite0", "mean4", 320),
    ("pixels", "clip", 7),
    ("pixels", "windows", 12),
    ("synthetic", "scene", 13),
]


def rows_of(store, run):
    return store.snapshot(run.outputs["features"]).table().to_pylist()


def rejects_of(store, run):
    return store.snapshot(run.stage("features").rejects).table().to_pylist()


def test_features_has_a_sorted_row_per_clip_network_and_preset(store):
    files = file_rows(store, 2, 2)
    run = execute(store, document("clips", clips_of(store, *files)))
    snapshot = store.snapshot(run.outputs["features"])
    assert len(snapshot.files) == 2
    for file, clips in zip(snapshot.files, files, strict=True):
        rows = snapshot.read_file(file).to_pylist()
        expected = [
            (clip, *space) for clip in sorted(row["clip_id"] for row in clips) for space in SPACES
        ]
        found = [
            (row["clip_id"], row["network"], row["preset"], len(row["vector"])) for row in rows
        ]
        assert found == expected
        assert {row["num_frames"] for row in rows} == {9}
    assert {len(row["network_digest"]) for row in rows if row["network"] == "lite0"} == {64}
    assert run.stage("features").metrics["accelerator_items"] == 4


def test_domain_features_are_those_of_the_classifier_at_the_port(store):
    net = ClipClassifier(ClassifierConfig(classes=("a", "b"), width=8, size_px=16, num_frames=8))
    published = publish_model(net, store, weights=net.state_dict(), step=1, metrics={}, history=[])
    domain = commit(store, "domain", "models@1", [Output(published)])
    (rows,) = file_rows(store, 1, 2)
    clips = clips_of(store, rows)
    with_port = document("clips", clips, networks=["domain"])
    with pytest.raises(ConfigError, match="networks has domain"):
        parse_pipeline(with_port, "p.yaml")
    with_port["inputs"]["classifier"] = f"snapshot://{domain.id}"
    with_port["stages"]["features"]["from"]["domain"] = "classifier"
    found = rows_of(store, execute(store, with_port))
    digest = published["digest"][0].as_py()
    assert {(row["network"], row["network_digest"], row["preset"], len(row["vector"]))
            for row in found} == {("domain", digest, "penultimate", 64)}  # fmt: skip
    frames = decode_clip(store.objects.get(rows[0]["video_key"]))
    (vector,) = (row["vector"] for row in found if row["clip_id"] == rows[0]["clip_id"])
    expected = net.eval().features(torch.from_numpy(frames.copy())[None])[0]
    np.testing.assert_allclose(vector, expected.detach(), rtol=1e-5, atol=1e-6)


def test_samples_clips_and_evaluation_sets_have_equal_vectors(store):
    (rows,) = file_rows(store, 1, 3)
    evalset = commit_evalset(store, rows)
    runs = [
        execute(store, document("clips", clips_of(store, rows), **LIGHT)),
        execute(store, document("samples", samples_of(store, rows), **LIGHT)),
        execute(store, document("evalset", evalset, **LIGHT)),
    ]
    clips, samples, chosen = (rows_of(store, run) for run in runs)
    assert clips == chosen
    assert {row["source_id"] for row in clips} == {row["source_id"] for row in rows}
    assert samples == [row | {"source_id": None} for row in clips]


def commit_evalset(store, rows):
    schema = load_contract("evalsets@1").arrow_schema
    items = [
        {
            "kind": "clip",
            "item_id": row["clip_id"],
            "index": 0,
            "snapshot": "clips:0",
            "role": "reference",
            "clip_json": json.dumps(row),
            "protocol": "own",
        }
        for row in rows
    ]
    items.append({"kind": "prompt", "item_id": "p", "index": 0, "snapshot": "s", "protocol": "own"})
    return commit(store, "set", "evalsets@1", [Output(pa.Table.from_pylist(items, schema))])


def test_evaluation_set_is_divided_the_same_whatever_the_order_of_its_rows(store):
    (rows,) = file_rows(store, 1, 2)
    rows = [row | {"clip_id": f"{i:032x}"} for i, row in enumerate(rows * 40)]
    stage = FeaturesStage(FeaturesConfig())
    plans = [
        stage.shards({"evalset": commit_evalset(store, ordered)}) for ordered in (rows, rows[::-1])
    ]
    assert [shard.num_rows for shard in plans[0]] == [32, 32, 16]
    assert [shard.digest for shard in plans[0]] == [shard.digest for shard in plans[1]]


def test_unchanged_reference_is_found_and_a_new_file_costs_its_own_shard(store):
    first, second, third = file_rows(store, 3, 2)

    def shards(*files):
        run = execute(store, document("clips", clips_of(store, *files), **LIGHT))
        counts = run.stage("features").shards
        return run, (counts.done, counts.cached)

    run, counts = shards(first, second)
    assert counts == (2, 0)
    again, _ = shards(first, second)
    assert again.outputs == run.outputs
    assert again.stage("features").status == "CACHED"
    more, counts = shards(first, third, second)
    assert counts == (1, 2)
    assert len(rows_of(store, more)) == 6 * 3


def test_clips_that_cannot_be_decoded_are_rejected_and_named(store):
    (rows,) = file_rows(store, 1, 4)
    broken, shorter = damaged(store, rows[1]), rows[2] | {"num_frames": 5}
    given = [rows[0], broken, shorter, rows[3]]
    for port, snapshot in (
        ("clips", clips_of(store, given)),
        ("samples", samples_of(store, given)),
    ):
        run = execute(store, document(port, snapshot, **LIGHT))
        rejects = {row["item_id"]: row for row in rejects_of(store, run)}
        assert rejects.keys() == {broken["clip_id"], shorter["clip_id"]}
        assert rejects[broken["clip_id"]]["reasons"] == ["CORRUPT"]
        detail = rejects[shorter["clip_id"]]["detail"]
        assert detail == "has 9 frames, but 5 in its row"
        assert {row["clip_id"] for row in rows_of(store, run)} == {
            rows[0]["clip_id"],
            rows[3]["clip_id"],
        }
        counts = run.stage("features").rows
        assert (counts.in_, counts.rejected) == (4, 2)


def test_clip_too_short_for_one_network_has_the_vectors_of_the_others(store):
    rows = shape_rows(store, [(9, 32, 32), (5, 32, 32)])
    networks = {"networks": ["pixels", "random_i3d"]}
    run = execute(store, document("clips", clips_of(store, rows), **networks))
    found = {(row["clip_id"], row["network"]) for row in rows_of(store, run)}
    long, short = (row["clip_id"] for row in rows)
    assert found == {(long, "pixels"), (long, "random_i3d"), (short, "pixels")}
    (reject,) = rejects_of(store, run)
    assert (reject["item_id"], reject["reasons"]) == (short, ["TOO_SHORT"])
    assert reject["detail"] == "has 5 frames, random_i3d needs 9"


def test_features_takes_exactly_one_input_with_clips(store):
    (rows,) = file_rows(store, 1, 1)
    stage = FeaturesStage(FeaturesConfig())
    with pytest.raises(ConfigError, match=r"has no clips .give it exactly one of clips, samples"):
        stage.shards({})
    both = {"clips": clips_of(store, rows), "samples": samples_of(store, rows)}
    with pytest.raises(ConfigError, match="has clips and samples"):
        stage.shards(both)


@pytest.mark.parametrize(
    ("networks", "what"),
    [
        (["lite"], "lite: unknown network .*lite0"),
        (["lite0:mean5"], "lite0:mean5: unknown preset of lite0 .*mean4"),
        ([], "networks"),
    ],
)
def test_unknown_network_is_refused_when_the_pipeline_is_loaded(store, networks, what):
    given = document("clips", clips_of(store, *file_rows(store, 1, 1)), networks=networks)
    with pytest.raises(ConfigError, match=what):
        parse_pipeline(given, "p.yaml")


def test_i3d_without_its_weights_is_refused_when_planned(store):
    given = document("clips", clips_of(store, *file_rows(store, 1, 1)), networks=["i3d"])
    with pytest.raises(ConfigError, match=r"weights, none are set .set VIDEOAR_I3D_WEIGHTS"):
        execute(store, given)


def test_network_of_a_preset_has_the_vectors_of_all_presets(store):
    (rows,) = file_rows(store, 1, 1)
    clips = clips_of(store, rows)
    run = execute(store, document("clips", clips))
    one = execute(store, document("clips", clips, networks=["lite0:change4", "lite0:windows"]))
    kept = [row for row in rows_of(store, run) if row["preset"] == "change4"]
    assert [row for row in rows_of(store, one) if row["preset"] == "change4"] == kept
    assert [row["preset"] for row in rows_of(store, one)] == ["change4", "windows"]


@pytest.mark.slow
def test_vectors_do_not_depend_on_neighbours_order_or_threads(store):
    (rows,) = file_rows(store, 1, 3)
    together = execute(store, document("clips", clips_of(store, rows)))
    torch.set_num_threads(2)
    alone = execute(store, document("clips", clips_of(store, *[[row] for row in rows[::-1]])))

    def vectors(run):
        return {
            (row["clip_id"], row["preset"]): np.float32(row["vector"]).tobytes()
            for row in rows_of(store, run)
        }

    assert vectors(together) == vectors(alone)
