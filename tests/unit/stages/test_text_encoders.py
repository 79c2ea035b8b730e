"""A frozen text encoder through pretrain and generate."""

import json

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.support import tiny_models
from tests.support.loop_rank import MemoryRank, commit
from tests.support.token_tables import CAPTIONS, pretrain_inputs, reference_clips
from videoar.core.errors import ConfigError
from videoar.model.pretrained.model_folder import folder_digest
from videoar.pipeline.context import StageContext
from videoar.stages.generate.config import GenerateConfig
from videoar.stages.generate.stage import GenerateStage
from videoar.stages.pretrain.stage import PretrainConfig, PretrainStage
from videoar.storage.store import open_store
from videoar.training.config import TransformerTraining
from videoar.training.data.text_features import TextFeatures
from videoar.training.data.token_loader import TokenLoader
from videoar.training.model_store import load_transformer

# Each test runs a whole stage or model.
pytestmark = pytest.mark.slow

TRAINING = {"phases": [{"steps": 2, "batch_size": 3}], "optimizer": {"learning_rate": 1e-3}}


@pytest.fixture
def store(tmp_path):
    torch.set_num_threads(1)
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture
def inputs(store):
    return pretrain_inputs(store)


def pretrain(store, inputs, rank, folder="", **options):
    config = PretrainConfig(training=TRAINING, text_encoder=folder, **options)
    return PretrainStage(config).run(inputs, StageContext(store), rank)


def generate(store, inputs, model, folder):
    ports = {"model": model, "tokenizer": inputs["tokenizer"], "reference": reference_clips(store)}
    stage = GenerateStage(GenerateConfig(num_frames=5, text_encoder=folder))
    (shard,) = stage.shards(ports)
    return stage.open(ports, StageContext(store))(
        pa.Table.from_pylist([dict(row) for row in shard.rows])
    ).rows.to_pylist()


@pytest.mark.parametrize("make", [tiny_models.t5, tiny_models.umt5])
def test_frozen_encoder_trains_loads_and_generates(make, store, inputs, tmp_path):
    folder = make(tmp_path / "encoder")
    before = folder_digest(folder)
    output = pretrain(store, inputs, MemoryRank(tmp_path / "rank"), folder)
    row = output.rows.to_pylist()[0]
    config = json.loads(row["config_json"])
    assert (config["text_encoder"], config["text_encoder_name"]) == (before, "encoder")
    assert folder_digest(folder) == before
    weights = tmp_path / "weights"
    weights.mkdir()
    store.fetch_folder(row["files"], weights)
    names = load_file(weights / "model.safetensors").keys()
    assert not [name for name in names if name.startswith("text_encoder")]
    model = commit(store, "model", "models@1", output.rows)
    samples = generate(store, inputs, model, folder)
    of_class = "Generate a video of circle"
    assert {sample["prompt"] for sample in samples} == {*CAPTIONS[:2], of_class}
    loaded = load_transformer(model, store)[0]
    assert loaded.cfg.text_encoder == before
    assert loaded.num_parameters() == row["num_parameters"]


def test_resumed_and_further_runs_use_the_stored_features(store, inputs, tmp_path):
    folder = tiny_models.t5(tmp_path / "encoder")
    rank = MemoryRank(tmp_path / "rank")
    first = pretrain(store, inputs, rank, folder, checkpoint_every=1)
    (key,) = [info.key for info in store.objects.list("text/")]
    again = pretrain(store, inputs, MemoryRank(tmp_path / "again"), folder)
    assert again.rows["digest"] == first.rows["digest"]
    # zeros in their place are what is trained on: nothing is encoded again
    data = store.objects.get(key)
    start = 8 + int.from_bytes(data[:8], "little")
    store.objects.put(key, data[:start] + bytes(len(data) - start))
    blank = pretrain(store, inputs, MemoryRank(tmp_path / "blank"), folder)
    assert blank.rows["digest"] != first.rows["digest"]
    store.objects.put(key, data)
    del rank.saved[2]
    assert pretrain(store, inputs, rank, folder).rows["digest"] == first.rows["digest"]
    assert [info.key for info in store.objects.list("text/")] == [key]


def test_clips_without_a_caption_are_trained_on_the_template_of_their_class(store, tmp_path):
    inputs = pretrain_inputs(store, ("a red circle", None, "ApplyEyeMakeup"), "ApplyEyeMakeup")
    folder = tiny_models.t5(tmp_path / "encoder")
    output = pretrain(store, inputs, MemoryRank(tmp_path / "rank"), folder)
    cfg = load_transformer(commit(store, "model", "models@1", output.rows), store)[0].cfg
    prompts = ["a red circle", "Generate a video of apply eye makeup"]
    assert TextFeatures(store.objects, cfg, [*prompts, "", "ApplyEyeMakeup"]).missing == [
        "",
        "ApplyEyeMakeup",
    ]
    loader = TokenLoader(
        inputs["tokens"], 3, 0, prompt_of=TransformerTraining.model_validate(TRAINING).prompt
    )
    assert sorted(next(iter(loader))["captions"]) == sorted([prompts[0], prompts[1], prompts[1]])
    (batch,) = TokenLoader(inputs["tokens"], 3, 0)
    assert sorted(batch["captions"]) == ["", "ApplyEyeMakeup", "a red circle"]


def test_content_of_the_encoder_enters_the_fingerprint_and_its_path_does_not(tmp_path):
    def parts(folder):
        configs = (
            PretrainConfig(training=TRAINING, text_encoder=folder),
            GenerateConfig(text_encoder=folder),
        )
        stages = PretrainStage(configs[0]), GenerateStage(configs[1])
        return [(stage.tools(), stage.config.semantic()) for stage in stages]

    same = [parts(tiny_models.t5(tmp_path / name)) for name in "ab"]
    assert same[0] == same[1] != parts(tiny_models.t5(tmp_path / "c", seed=1))
    assert PretrainStage(PretrainConfig(training=TRAINING)).tools() == {}


def test_missing_or_other_encoder_is_an_error_before_the_first_step(store, inputs, tmp_path):
    folder, other = tiny_models.t5(tmp_path / "a"), tiny_models.t5(tmp_path / "b", seed=1)
    rank = MemoryRank(tmp_path / "rank")
    output = pretrain(store, inputs, rank, folder)
    model = commit(store, "model", "models@1", output.rows)
    for given, what in (
        (other, "the model was trained with a of digest"),
        ("", "the model needs a, the text encoder"),
        (str(tmp_path / "none"), "no such model folder"),
    ):
        with pytest.raises(ConfigError, match=what):
            generate(store, inputs, model, given)
    rank = MemoryRank(tmp_path / "second")
    for given, what in (
        (other, "b is another text encoder than a, which the start was trained with"),
        ("", "the embedded encoder is another text encoder than a"),
        (str(tmp_path / "none"), "no such model folder"),
    ):
        with pytest.raises(ConfigError, match=what):
            pretrain(store, {**inputs, "start": model}, rank, given)
    renamed = tiny_models.t5(tmp_path / "renamed")
    assert pretrain(store, {**inputs, "start": model}, rank, renamed) is not None
    embedded = commit(
        store, "embedded", "models@1", pretrain(store, inputs, MemoryRank(tmp_path / "own")).rows
    )
    with pytest.raises(ConfigError, match="trained with its own text encoder"):
        generate(store, inputs, embedded, folder)
    rank = MemoryRank(tmp_path / "third")
    wide = tiny_models.t5(tmp_path / "wide", width=48)
    with pytest.raises(ConfigError, match="width 48; the model has text_width 32"):
        pretrain(store, inputs, rank, wide)
    assert not rank.steps
    assert pretrain(store, inputs, rank, wide, model={"text_width": 48}) is not None


def test_encoder_is_no_field_of_the_model_in_a_pipeline():
    with pytest.raises(ValidationError, match="option `text_encoder` of the stage"):
        PretrainConfig(training=TRAINING, model={"text_encoder": "0"})
