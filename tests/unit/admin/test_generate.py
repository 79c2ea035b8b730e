"""`videoar generate`: a model's samples in a folder, equal to those of the stage."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from tests.support.child_process import exit_code, preload
from tests.support.hostile import video
from tests.support.published_model import published
from videoar import api
from videoar.admin.export import export
from videoar.cli.app import app
from videoar.core.errors import VideoARError
from videoar.core.ids import seed_from, sha256_hex
from videoar.media.decode import decode_clip
from videoar.media.transcode import encode
from videoar.model.tokenizer.network import frames_from_video, video_from_frames
from videoar.pipeline.context import StageContext
from videoar.stages.generate.config import GenerateConfig
from videoar.stages.generate.stage import GenerateStage
from videoar.storage.store import open_store
from videoar.training.prompts import Prompt

# Each test runs a whole stage or model.
pytestmark = pytest.mark.slow

preload(__name__)
OPTIONS = ["--seconds", "0.5", "--guidance", "2", "--temperature", "0.7"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.set_num_threads(1)
    return open_store((tmp_path_factory.mktemp("store")).as_uri())


@pytest.fixture(scope="module")
def model(store):
    return published(store)


@pytest.fixture(scope="module")
def exported(store, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export(store, model.id, "safetensors", str(folder))
    return folder


def command(model, *options, store=None, code=0):
    """Call the verb; return its JSON."""
    head = ["--json", *(["--store", store.url] if store else [])]
    call = [*head, "generate", "--model", str(model), *map(str, options)]
    done = CliRunner().invoke(app, call, prog_name="videoar")
    if code == 0:
        assert done.exit_code == 0, done.exception
        return json.loads(done.stdout)
    return done.exception if isinstance(done.exception, VideoARError) else done


def rows_of(folder):
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_samples_of_the_command_are_those_of_the_stage(store, model, exported, tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("a cat\na dog\n")
    out = tmp_path / "out"
    result = command(exported, "--prompts", file, "--num", 2, "--seed", 3, *OPTIONS, "--out", out)
    assert result.keys() == {"samples", "steps", "seconds"}
    assert [sample["prompt"] for sample in result["samples"]] == ["a cat"] * 2 + ["a dog"] * 2
    assert result["samples"][1]["seed"] == seed_from("sample", 3, "a cat", 1)
    assert result["samples"][0]["path"] == str(out / "00000.mp4")
    assert names(out) == [*(f"0000{i}.mp4" for i in range(4)), "manifest.jsonl", "samples.parquet"]
    rows = rows_of(out)
    assert pq.read_table(out / "samples.parquet")["sample_id"].to_pylist() == [
        row["sample_id"] for row in rows
    ]
    for row in rows:
        assert sha256_hex((out / row["path"]).read_bytes()) == row["video_sha256"]
    config = GenerateConfig(
        num_frames=5, seed=3, num_per_prompt=2, guidance=2.0, temperature=0.7, prompts=str(file)
    )
    stage = GenerateStage(config)
    clips = store.snapshot(model.commit.provenance.parents["tokenizer"]).commit.provenance.parents
    ports = {"model": model, "reference": store.snapshot(clips["clips"])}
    (shard,) = stage.shards(ports)
    made = stage.open(ports, StageContext(store))(pa.Table.from_pylist(list(shard.rows)))
    for ours, theirs in zip(rows, made.rows.to_pylist(), strict=True):
        del ours["path"], theirs["video_key"]
        assert ours == theirs
    one = api.load(exported).sample("a dog", seconds=0.5, seed=rows[2]["seed"], guidance=2.0,
                                    temperature=0.7)  # fmt: skip
    assert one.save(tmp_path / "one.mp4").read_bytes() == (out / "00002.mp4").read_bytes()


def test_file_names_its_prompt_model_and_seed(store, model, tmp_path):
    odd = 'a "cat" = 1; #\\ 50% größer <b>'
    command(model.id, "--prompt", odd, *OPTIONS, "--out", tmp_path / "out", store=store)
    with av.open(str(tmp_path / "out" / "00000.mp4")) as file:
        tags = file.metadata
    assert tags["title"] == odd
    seed = seed_from("sample", 0, odd, 0)
    assert json.loads(tags["comment"]) == {"model": model.id, "seed": seed}


def test_labels_are_classes_of_the_training(exported, tmp_path):
    card = api.load(exported).card
    seed = seed_from("sample", 0, "a", 0)
    call = ["generate", "--model", str(exported), "--prompt", "a", "--out", str(tmp_path / "a")]
    assert str(seed) in CliRunner().invoke(app, call).stdout
    assert card.labels == sorted({*card.labels}) != []
    first = card.labels[0]
    out = tmp_path / "out"
    result = command(exported, "--labels", first, "--greedy", "--seconds", 0.5, "--out", out)
    assert result["samples"][0]["prompt"] == f"Generate a video of {first}"
    (row,) = rows_of(out)
    assert (row["label"], json.loads(row["sampler_json"])["greedy"]) == (first, True)


def killed(model, prompts, out, fail):
    request = {"prompts": Path(prompts), "batch": 1}
    api.generate(api.load(Path(model)), out, request, seconds=0.5)


def test_killed_call_is_completed_by_the_same_call_only(exported, tmp_path):
    prompts, out = tmp_path / "p.txt", tmp_path / "out"
    prompts.write_text("a cat\na dog\na bird\n")
    arguments = (str(exported), str(prompts), str(out), None)
    assert exit_code(killed, *arguments, VIDEOAR_CRASH_AT="samples-written") == -signal.SIGKILL
    assert names(out) == ["00000.mp4", "manifest.jsonl"]
    assert rows_of(out) == []  # the kill was between the video and its row
    killed(*arguments)
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(rows_of(out)) == 3
    (out / "samples.parquet").unlink()
    (out / "00001.mp4").write_bytes(b"damaged")
    before = (out / "00000.mp4").stat().st_mtime_ns
    request = {"prompts": prompts, "batch": 1}
    result = api.generate(api.load(exported), out, request, seconds=0.5)
    passes = 3 * 2  # scales x latent frames
    assert result["steps"] == passes
    assert (out / "00000.mp4").stat().st_mtime_ns == before
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    for options, what in (
        (["--prompts", prompts, "--seconds", 0.5, "--seed", 1], "manifest.jsonl of other samples"),
        (["--prompt", "a cat", "--seconds", 0.5], r"has 00001\.mp4 in it"),
    ):
        error = command(exported, *options, "--out", out, code=2)
        assert (error.exit_code, what.replace("\\", "") in error.what) == (2, True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole


def picture(path, size="64x48"):
    filters = ["-f", "lavfi", "-i", f"testsrc=size={size}:rate=8", "-frames:v", "1"]
    subprocess.run(["ffmpeg", "-v", "error", *filters, str(path)], check=True)
    return path


def test_longer_video_has_a_sliding_window(exported):
    loaded = api.load(exported)
    trained = loaded.card.num_frames
    long = loaded.generator(seconds=3)
    assert long.columns["num_frames"] == 25 > trained
    assert long.settings["window"] == trained
    assert loaded.sample("a cat", seconds=3).video_B3THW.shape[2] == 25
    assert loaded.generator(seconds=trained / 8).window is None


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_image_is_the_first_frame(exported, tmp_path, name):
    image = picture(tmp_path / name)
    loaded = api.load(exported)
    made = loaded.sample("a cat", seconds=1, init=image)
    assert made.steps == 3 * 2  # of three latent frames, the first is given
    other = loaded.sample("a cat", seconds=1)
    assert not torch.equal(made.video_B3THW, other.video_B3THW)
    (frame,) = frames_from_video(made.video_B3THW)[:, 0].numpy()
    with av.open(str(image)) as file:
        original = next(file.decode(video=0)).reformat(43, 32, "rgb24").to_ndarray()[:, 5:37]
    coded = loaded.tokenizer.tokenize(
        video_from_frames(torch.from_numpy(original.copy())[None, None])
    )
    expected = frames_from_video(loaded.tokenizer.detokenize(coded))[0, 0].numpy()
    assert np.abs(frame.astype(int) - expected).mean() < 20
    assert loaded.generator(seconds=1, init=image).settings["init"] == sha256_hex(
        image.read_bytes()
    )


def test_video_is_continued_from_its_end(exported, tmp_path):
    loaded = api.load(exported)
    moving = np.zeros((7, 32, 32, 3), np.uint8)
    for t in range(7):
        moving[t, :, 4 * t : 4 * t + 4] = 255
    encode(moving, tmp_path / "in.mp4", 8.0)
    made = loaded.sample("a cat", seconds=1, init=tmp_path / "in.mp4")
    given = torch.from_numpy(decode_clip(tmp_path / "in.mp4")[2:])  # 1 + 4 of 7 frames
    bits = loaded.tokenizer.tokenize(video_from_frames(given[None]))
    expected = loaded.tokenizer.detokenize(bits).clamp(-1, 1)
    assert made.steps == 3
    assert torch.allclose(made.video_B3THW[:, :, :5], expected, atol=1e-5)


def _init(kind):
    def make(folder):
        path = folder / f"init-{kind}"
        if kind == "empty":
            path.write_bytes(b"")
        elif kind == "text":
            path.write_text("no video")
        elif kind == "gif":
            path.write_bytes(b"GIF89a" + bytes(100))
        elif kind == "cut.png":
            path.write_bytes(picture(folder / "a.png").read_bytes()[:60])
        elif kind == "large.png":
            return str(picture(folder / "large.png", "8400x8400"))
        elif kind == "long":
            return str(video(folder / "long.mp4", num_frames=60))
        elif kind == "thin.png":
            return str(picture(folder / "thin.png", "2000x2"))
        return str(path)

    return make


BAD = {
    "no prompt": ([], 2, "give one of"),
    "two kinds": (["--prompt", "a", "--labels", "b"], 2, "give one of"),
    "empty": (["--prompt", ""], 2, "is empty"),
    "blank": (["--prompt", " \t"], 2, "control characters"),
    "over-long": (["--prompt", "x" * 5000], 2, "5000 characters"),
    "not UTF-8": (["--prompt", "a\udcff"], 2, "not UTF-8"),
    "control": (["--prompt", "a\x1b[2J"], 2, "control characters"),
    "prompts missing": (["--prompts", "nowhere.txt"], 2, "no such file"),
    "prompts folder": (["--prompts", "."], 2, "is not a file"),
    "unknown label": (["--labels", "no_such_class"], 2, "knows no such class"),
    "empty label": (["--labels", ","], 2, "knows no such class"),
    "zero": (["--seconds", "0"], 2, "not above 0"),
    "negative": (["--seconds", "-1"], 2, "not above 0"),
    "NaN": (["--seconds", "nan"], 2, None),
    "infinite": (["--seconds", "inf"], 2, None),
    "huge": (["--seconds", "1e12"], 2, "at most 600"),
    "guidance": (["--guidance", "strong"], 2, "'ucf' or 't2v'"),
    "guidance NaN": (["--guidance", "nan"], 2, "finite number"),
    "temperature": (["--temperature", "0"], 2, "greater than 0"),
    "no temperature": (["--temperature", "warm"], 2, "valid number"),
    "temperatures": (["--temperature", "1,1"], 2, "2 temperatures for 3 scales"),
    "interval": (["--guidance-interval", "1,0"], 2, "1 is more than 0"),
    "half an interval": (["--guidance-interval", "1"], 2, "valid tuple"),
    "projected": (["--apg", "0,0"], 2, "greater than 0"),
    "num": (["--num", "0"], 2, None),
    "seed": (["--seed", "-1"], 2, None),
    "batch": (["--batch", "0"], 2, None),
    "init missing": (["--init", "nowhere.png"], 3, "No such file"),
    "init folder": (["--init", "."], 3, "not a regular file"),
    "init http": (["--init", "http://localhost/a.png"], 2, "no image or video"),
    "init empty": (["--init", _init("empty")], 3, "is empty"),
    "init text": (["--init", _init("text")], 3, "no known video container"),
    "init gif": (["--init", _init("gif")], 3, "is an image"),
    "init cut": (["--init", _init("cut.png")], 3, ""),
    "init large": (["--init", _init("large.png")], 3, "8400x8400"),
    "init thin": (["--init", _init("thin.png")], 3, "2000x2"),
    "init long": (["--init", _init("long")], 2, "cut the file"),
    "model missing": (["--model", "/nowhere"], 2, "no exported model"),
    "encoder": (["--text-encoder", "/nowhere"], 2, ""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_rejected_and_nothing_is_written(exported, tmp_path, case):
    options, code, what = BAD[case]
    options = [option(tmp_path) if callable(option) else option for option in options]
    out = tmp_path / "out"
    if not {"--prompt", "--prompts", "--labels"} & set(options) and case != "no prompt":
        options = [*options, "--prompt", "a cat"]
    error = command(exported, *options, "--out", out, code=code)
    assert getattr(error, "exit_code", None) == code, error
    assert what is None or what in str(error)
    assert "\n" not in str(error)
    assert not out.exists()


def test_out_that_is_in_use_is_rejected(exported, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("x")
    for out, what in ((own, r"has thesis.txt in it"), (own / "thesis.txt", "Not a directory")):
        error = command(exported, "--prompt", "a", "--out", out, code=2)
        assert (error.exit_code, what in error.what) == (2, True)
    assert names(own) == ["thesis.txt"]
    shutil.rmtree(own)


def test_name_of_the_store_is_looked_up_there(store, model, tmp_path):
    store.refs.advance("champion", model.id, expect=None, evidence={})
    out = tmp_path / "out"
    assert command("champion", "--prompt", "a", *OPTIONS, "--out", out, store=store)["samples"]
    error = command("no-such-ref", "--prompt", "a", "--out", tmp_path / "b", store=store, code=2)
    assert error.exit_code == 2
    assert Prompt(prompt="a").row("x")["prompt_id"] == rows_of(out)[0]["prompt_id"]
