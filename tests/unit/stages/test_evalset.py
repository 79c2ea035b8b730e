"""Evaluation sets: what is chosen, what stays when videos arrive, what a takedown blocks."""

import itertools
import json

import pyarrow as pa
import pytest

from tests.support.clip_rows import clip_row, clips_of
from tests.support.published_model import published
from tests.support.stage_chain import commit
from videoar.admin.forget import forget
from videoar.contracts.contract import load_contract
from videoar.core.errors import ConfigError, ContractError, GateError
from videoar.evaluation.evalset import clip_rows, content_digest, prompt_rows
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Output
from videoar.runner.inputs import resolve
from videoar.stages.evalset import EvalsetConfig, EvalsetStage
from videoar.stages.generate.config import GenerateConfig
from videoar.stages.generate.stage import GenerateStage
from videoar.storage.store import open_store
from videoar.training.prompts import Prompt

numbers = itertools.count()


@pytest.fixture
def store():
    return open_store(f"memory://evalset-{next(numbers)}")


def clips(store, *numbers):
    rows = [
        clip_row(f"clip {i}", split="val" if i % 2 else "train", caption=f"caption {i}")
        for i in numbers
    ]
    return clips_of(store, rows)


def evalset(store, given, **options):
    (output,) = EvalsetStage(EvalsetConfig(**options)).reduce(given, StageContext(store))
    facts = {port: snapshot.id for port, snapshot in given.items()}
    return commit(store, "evalset", "evalsets@1", [output], **facts, **options)


def ids(chosen, role=None):
    return [row["clip_id"] for row in clip_rows(chosen, role)]


def test_reference_is_of_its_split_and_the_floor_of_further_clips(store):
    chosen = evalset(store, {"clips": clips(store, *range(12))}, num_reference=4)
    reference, floor = (clip_rows(chosen, role) for role in ("reference", "floor"))
    assert [row["split"] for row in reference] == ["val"] * 4
    assert [row["split"] for row in floor] == ["val", "val", "train", "train"]
    assert len({*ids(chosen)}) == 8
    assert reference[0] == {**clip_row("x"), **reference[0]}  # whole rows of clips@1


def test_clips_have_the_most_frequent_number_of_frames_and_rate(store):
    rows = [
        clip_row(f"{frames} {rate} {i}", split="val", caption="c", num_frames=frames, rate_fps=rate)
        for frames, rate, num in ((9, 8.0, 3), (17, 8.0, 5), (17, 12.0, 4))
        for i in range(num)
    ]
    chosen = evalset(store, {"clips": clips_of(store, rows)}, num_reference=4)
    assert {(row["num_frames"], row["rate_fps"]) for row in clip_rows(chosen)} == {(17, 8.0)}
    assert len(clip_rows(chosen)) == 5


def test_no_source_is_in_both_reference_and_floor(store):
    rows = [
        clip_row(f"{source} {i}", split="val", caption="c", source_id=f"{source:064x}")
        for source in range(4)
        for i in range(3)
    ]
    chosen = evalset(store, {"clips": clips_of(store, rows)}, num_reference=3)
    roles = {
        role: {row["source_id"] for row in clip_rows(chosen, role)}
        for role in ("reference", "floor")
    }
    assert roles["floor"]
    assert not roles["reference"] & roles["floor"]


def test_few_clips_of_the_split_are_rejected_by_name(store):
    few = clips(store, 0, 1, 2)
    with pytest.raises(ContractError, match="1 clips of the split val, 2 are needed"):
        evalset(store, {"clips": few})
    assert len(ids(evalset(store, {"clips": few}, reference_split="train"), "reference")) == 2


def test_new_clips_do_not_reorder_the_others(store):
    few = evalset(store, {"clips": clips(store, *range(8))})
    many = evalset(store, {"clips": clips(store, *range(20))})
    kept = [clip_id for clip_id in ids(many, "reference") if clip_id in ids(few, "reference")]
    assert kept == ids(few, "reference")


def test_prompts_of_captions_are_those_that_generate_would_make(store):
    real = clips(store, *range(8))
    chosen = evalset(store, {"clips": real}, num_prompts=3, samples_per_prompt=2, seed=5)
    config = GenerateConfig(num_prompts=3, num_per_prompt=2, seed=5)
    made = GenerateStage(config).shards({"reference": real})
    of_set = GenerateStage(GenerateConfig()).shards({"evalset": chosen})
    assert [list(shard.rows) for shard in made] == [list(shard.rows) for shard in of_set]
    assert [shard.digest for shard in made] == [shard.digest for shard in of_set]


def test_prompts_of_a_port_keep_their_seeds_and_labels(store):
    rows = [
        Prompt(prompt="a cat", seed=7).row("x"),
        Prompt(label="CutInKitchen").row("x"),
    ]
    prompts = commit(store, "prompts", "prompts@1", [Output(pa.Table.from_pylist(rows))])
    given = {"clips": clips(store, *range(8)), "prompts": prompts}
    chosen = evalset(store, given, samples_per_prompt=2)
    found = [(row["prompt"], row["label"], row["index"]) for row in prompt_rows(chosen)]
    assert found == [("a cat", None, 0), ("", "CutInKitchen", 0), ("", "CutInKitchen", 1)]
    assert prompt_rows(chosen)[0]["seed"] == 7
    (shard,) = GenerateStage(GenerateConfig()).shards({"evalset": chosen})
    assert {row["prompt"] for row in shard.rows} == {
        "a cat",
        "Generate a video of cut in kitchen",
    }


def test_few_prompts_get_as_many_samples_as_are_needed(store):
    chosen = evalset(store, {"clips": clips(store, *range(8))}, num_prompts=3, min_samples=8)
    seeds = [row["seed"] for row in prompt_rows(chosen)]
    assert (len(seeds), len(set(seeds))) == (9, 9)


def test_frozen_set_is_repeated_whatever_the_clips_are(store):
    first = evalset(store, {"clips": clips(store, *range(8))})
    given = {"clips": clips(store, *range(30)), "frozen": first}
    again = evalset(store, given, seed=1, num_reference=3)
    assert again.id == first.id
    assert content_digest(again) == content_digest(first)
    assert content_digest(evalset(store, {"clips": given["clips"]})) != content_digest(first)


def test_content_digest_does_not_depend_on_snapshots_and_order(store):
    first = evalset(store, {"clips": clips(store, *range(8))})
    rows = [{**row, "snapshot": "clips:other"} for row in first.table().to_pylist()][::-1]
    schema = load_contract("evalsets@1").arrow_schema
    moved = commit(store, "moved", "evalsets@1", [Output(pa.Table.from_pylist(rows, schema))])
    assert content_digest(moved) == content_digest(first)
    video = json.loads(rows[-1]["clip_json"]) | {"video_sha256": "0" * 64}
    rows[-1]["clip_json"] = json.dumps(video)
    other = commit(store, "other", "evalsets@1", [Output(pa.Table.from_pylist(rows, schema))])
    assert content_digest(other) != content_digest(first)


def test_pin_freezes_the_first_set_and_moves_no_ref(store):
    stage = EvalsetStage(EvalsetConfig(pin="demo"))
    first, second = (evalset(store, {"clips": clips(store, *range(n))}) for n in (8, 30))
    for chosen in (first, second, first):
        stage.after_commit(chosen, store, "run")
    (record,) = store.refs.history("demo")
    assert (record["snapshot"], record["by_run"]) == (first.id, "run")


@pytest.mark.parametrize(
    ("options", "ports", "what"),
    [
        ({}, ["reference"], "fixes the prompts, but there is reference"),
        ({"num_prompts": 2}, [], "there is num_prompts"),
        ({"prompts": "p.txt"}, [], "there is prompts"),
    ],
)
def test_generate_with_an_evaluation_set_takes_no_other_prompts(store, options, ports, what):
    real = clips(store, *range(8))
    given = {"evalset": evalset(store, {"clips": real}), **dict.fromkeys(ports, real)}
    with pytest.raises(ConfigError, match=what):
        GenerateStage(GenerateConfig(**options)).shards(given)


def test_set_without_prompts_is_rejected_by_generate(store):
    rows = evalset(store, {"clips": clips(store, *range(8))}).table()
    real = rows.filter(pa.compute.equal(rows["kind"], "clip"))
    chosen = commit(store, "real", "evalsets@1", [Output(real)])
    with pytest.raises(ConfigError, match=f"{chosen.id}: holds no prompt"):
        GenerateStage(GenerateConfig()).shards({"evalset": chosen})


def test_takedown_of_a_source_names_the_set_and_blocks_it(store):
    published(store)
    chosen = evalset(store, {"clips": clips(store, *range(8))})
    EvalsetStage(EvalsetConfig(pin="demo")).after_commit(chosen, store, "run")
    schema = load_contract("features@1").arrow_schema
    (row, *_) = clip_rows(chosen)
    feature = {
        **{key: row[key] for key in ("clip_id", "source_id", "num_frames")},
        "network": "n", "network_digest": "d", "preset": "p", "vector": [1.0],
    }  # fmt: skip
    features = Output(pa.Table.from_pylist([feature], schema))
    features = commit(store, "reference_features", "features@1", [features])
    source = row["source_id"]
    planned = forget(store, source, dry_run=True)
    assert planned["evalsets"] == ["demo"]
    clip_rows(chosen)
    assert forget(store, source) | {"tombstone": "", "dry_run": True} == planned | {"tombstone": ""}
    assert {entry["dataset"] for entry in planned["derived"] if entry["rows"]} == {
        "clips", "evalset", "reference_features",
    }  # fmt: skip
    assert not [*features.available_rows()]
    blocked = f"evaluation set demo: its source {source} was taken down"
    for use in (
        lambda: resolve(store, "evalset", "ref://demo"),
        lambda: clip_rows(chosen),
        lambda: content_digest(chosen),
        lambda: GenerateStage(GenerateConfig()).shards({"evalset": chosen}),
        lambda: evalset(store, {"clips": clips(store, 0, 1, 3), "frozen": chosen}),
    ):
        with pytest.raises(GateError, match=blocked):
            use()
