"""Batches of `generate` as a run: resumed by the shard, the same samples everywhere, bad input."""

import json
import math
import shutil
import signal

import pyarrow as pa
import pytest
import torch

from tests.support.child_process import exit_code, preload
from tests.support.published_model import digest_of, published, transformer
from videoar import api
from videoar.contracts.contract import load_contract
from videoar.core.errors import SnapshotNotFoundError, StorageError, VideoARError
from videoar.engine.inline import InlineEngine
from videoar.pipeline.context import StageContext
from videoar.pipeline.fingerprint import ShardFingerprints, compute_parts
from videoar.pipeline.spec import parse_pipeline
from videoar.records.names import find_snapshot
from videoar.records.run import ShardCounts
from videoar.runner.execute import Execution
from videoar.stages.generate.config import GenerateConfig
from videoar.stages.generate.stage import GenerateStage
from videoar.storage.store import open_store
from videoar.training.model_store import ClipShape

# Each test runs a whole stage.
pytestmark = pytest.mark.slow

preload(__name__)
TEXTS = ["a cat", "a dog", "a bird", "a fish", "a horse", "a cow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("store")
    store = open_store(folder.as_uri())
    parents = published(store).commit.provenance.parents
    coder = digest_of(store.snapshot(parents["tokenizer"]))
    transformer(store, coder, "rated", parents, clips=ClipShape(8.0, 9))
    return folder


@pytest.fixture
def store(folder, tmp_path):
    """A copy, with the model and no samples."""
    return open_store(shutil.copytree(folder, tmp_path / "store").as_uri())


def model_of(store):
    return find_snapshot(store, "rated")


def run(url, prompts, **options):
    store = open_store(url)
    stage = {
        "stage": "generate", "from": {"model": "model", "prompts": "prompts"}, "num_frames": 5,
        "shard_samples": 2, **options,
    }  # fmt: skip
    document = {
        "pipeline": "p",
        "inputs": {"model": f"snapshot://{model_of(store).id}", "prompts": str(prompts)},
        "stages": {"samples": stage},
    }
    return Execution(parse_pipeline(document, "p.yaml"), store, InlineEngine()).run()


def prompts_file(path, texts):
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def test_run_killed_in_a_shard_resumes_to_the_same_snapshot_without_the_finished_shards(
    store, folder, tmp_path
):
    prompts = prompts_file(tmp_path / "p.txt", TEXTS[:2])
    run(store.url, prompts)
    prompts_file(prompts, TEXTS)
    killed = exit_code(run, store.url, prompts, VIDEOAR_CRASH_AT="shard-written")
    assert killed == -signal.SIGKILL
    resumed = run(store.url, prompts)
    stage = resumed.stage("samples")
    assert stage.shards == ShardCounts(planned=3, cached=1, done=2)
    whole = shutil.copytree(folder, tmp_path / "whole").as_uri()
    assert run(whole, prompts).outputs == resumed.outputs
    assert stage.metrics["accelerator_items"] == len(TEXTS)
    assert {"decode_s", "encode_s", "upload_s"} <= stage.metrics.keys()


def test_prompts_added_to_a_file_leave_the_shards_before_them_as_they_are(folder, tmp_path):
    ports, names = {"model": model_of(open_store(folder.as_uri()))}, []
    for texts in (TEXTS[:4], TEXTS):
        file = prompts_file(tmp_path / "p.txt", texts)
        stage = GenerateStage(GenerateConfig(prompts=str(file), shard_samples=2))
        parts = compute_parts(stage, ports)
        shards = stage.shards(ports)
        names.append(list(map(ShardFingerprints(parts, stage.sharded).of, shards)))
    assert names[0] == names[1][:2]
    assert len({*names[1]}) == 3


OPTIONS = {
    "plain": {},
    "whole number": {"guidance": 2},
    "greedy": {"greedy": True},
    "temperature per scale": {"temperature": [1.0, 0.8, 0.6]},
    "interval": {"guidance_interval": [0.0, 0.5]},
    "projected": {"guidance": 4, "apg": {"eta": 0.5, "norm_threshold": 0.1}},
    "long": {"seconds": 3},
}


def test_every_option_is_recorded_and_gives_the_same_samples_in_the_stage_and_from_python(store):
    model, found = model_of(store), {}
    loaded = api.load(model.id, store=store)
    (row,) = loaded.templates.samples(
        [{"prompt_id": "x", "prompt": "a cat", "label": None, "index": 0, "seed": 3}], 0, 1
    )
    for name, options in OPTIONS.items():
        given = {"guidance": "t2v", "temperature": 1.0, "seconds": 1, **options}
        stage = GenerateStage(GenerateConfig(**given))
        mapper = stage.open({"model": model}, StageContext(store))
        ours = mapper(pa.Table.from_pylist([row])).rows
        (ours,) = load_contract("samples@1").conform(ours, "samples").to_pylist()
        (theirs,) = loaded.generator(**given)([row]).rows
        del ours["video_key"]
        assert ours == theirs
        found[name] = ours
    assert len({row["sample_id"] for row in found.values()}) == len(OPTIONS)
    assert len({row["video_sha256"] for row in found.values()}) == len(OPTIONS)
    recorded = {name: json.loads(row["sampler_json"]) for name, row in found.items()}
    assert recorded["plain"] == {"guidance": "t2v", "temperature": 1.0}
    assert recorded["whole number"]["guidance"] == 2.0
    assert recorded["projected"]["apg"] == OPTIONS["projected"]["apg"]
    assert (recorded["long"]["window"], found["long"]["num_frames"]) == (9, 25)


BAD = {
    "no prompts": ({}, b"", "holds no prompt"),
    "blank": ({}, b"  \n\n", "holds no prompt"),
    "over-long": ({}, b"x" * 5000, "5000 characters"),
    "not UTF-8": ({}, b"a \xff", "is not UTF-8"),
    "control": ({}, b"a \x1b[2J", "control characters"),
    "zero": ({"seconds": 0}, b"a", "seconds: must be"),
    "negative": ({"seconds": -1}, b"a", "seconds: must be"),
    "NaN": ({"seconds": math.nan}, b"a", "seconds: must be"),
    "huge": ({"seconds": 1e12}, b"a", "seconds: must be"),
    "frames": ({"num_frames": 6}, b"a", "6 frames"),
    "no frames": ({"num_frames": 0}, b"a", "num_frames: must be"),
    "huge frames": ({"num_frames": 10**9}, b"a", "num_frames: must be"),
    "guidance": ({"guidance": "strong"}, b"a", "guidance: must be"),
    "guidance NaN": ({"guidance": math.nan}, b"a", "guidance: must be"),
    "temperature": ({"temperature": 0}, b"a", "temperature: must be"),
    "no temperatures": ({"temperature": []}, b"a", "0 temperatures for 3 scales"),
    "temperatures": ({"temperature": [1, 1]}, b"a", "2 temperatures for 3 scales"),
    "interval": ({"guidance_interval": [1, 0]}, b"a", "1 is more than 0"),
    "threshold": ({"apg": {"norm_threshold": 0}}, b"a", "apg.norm_threshold: must be"),
    "unknown field": ({"guidence": 2}, b"a", "did you mean guidance?"),
    "unknown model": ({"from": {"model": "modell"}}, b"a", "did you mean model?"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_the_stage_is_an_error_of_use_and_leaves_no_samples(folder, tmp_path, case):
    (options, data, what), store = BAD[case], open_store(folder.as_uri())
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(VideoARError) as caught:
        run(store.url, tmp_path / "p.txt", **options)
    assert (caught.value.exit_code, what in str(caught.value)) == (2, True), caught.value
    with pytest.raises(SnapshotNotFoundError):
        find_snapshot(store, "samples")


def test_model_that_is_a_tokenizer_is_rejected(store):
    ports = {"model": find_snapshot(store, "tokenizer")}
    with pytest.raises(VideoARError) as caught:
        GenerateStage(GenerateConfig()).open(ports, StageContext(store))
    assert caught.value.exit_code == 2


def test_store_that_is_gone_during_a_batch_is_an_error_of_the_store(store, tmp_path):
    mapper = GenerateStage(GenerateConfig(num_frames=5)).open(
        {"model": model_of(store)}, StageContext(store)
    )
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    (tmp_path / "store").write_text("no folder")
    row = {"prompt_id": "x", "prompt": "a cat", "label": None, "index": 0, "seed": 3}
    with pytest.raises(StorageError):
        mapper(pa.Table.from_pylist([row]))
