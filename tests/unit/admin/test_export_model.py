"""An exported model is the store's model, checked byte by byte, with its card."""

import dataclasses
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import videoar
from tests.support.child_process import exit_code, preload
from tests.support.published_model import (
    SAMPLER,
    digest_of,
    published,
    scored,
    tokenizer,
    transformer,
)
from videoar.admin.export import export
from videoar.admin.loaded_model import load_export, load_stored
from videoar.admin.model_card import from_markdown, to_markdown
from videoar.admin.model_records import card_of
from videoar.cli.app import app
from videoar.core.errors import ConfigError, ContractError, DamagedError, VideoARError
from videoar.core.ids import sha256_hex
from videoar.media.decode import decode_clip
from videoar.model.transformer.sampling import sample
from videoar.storage.store import open_store
from videoar.training.model_store import ClipShape, load_tokenizer, load_transformer

# Each test runs a whole stage or model.
pytestmark = pytest.mark.slow

preload(__name__)
FOLDER = {
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer/config.json",
    "tokenizer/model.safetensors",
}
FILE = {"videoar.safetensors"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.set_num_threads(1)
    return open_store((tmp_path_factory.mktemp("store")).as_uri())


@pytest.fixture(scope="module")
def model(store):
    made = published(store)
    scored(store, made)
    return made


@pytest.fixture(scope="module")
def exports(store, model, tmp_path_factory):
    """Return the folder of each layout by the value of `single_file`."""
    root = tmp_path_factory.mktemp("exports")
    for single in (False, True):
        export(store, model.id, "safetensors", str(root / f"{single}"), single_file=single)
    return {single: root / f"{single}" for single in (False, True)}


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def expected_video(store, model, prompt="a red circle", num_frames=9, seed=3):
    """Sample from the store's networks, without the code under test."""
    net, _ = load_transformer(model, store)
    (parent,) = (v for k, v in model.commit.provenance.parents.items() if k == "tokenizer")
    coder, _ = load_tokenizer(store.snapshot(parent), store)
    return sample(net, coder, [prompt], num_frames, seeds=[seed], **SAMPLER)


@pytest.mark.parametrize(("single", "files"), [(False, FOLDER), (True, FILE)])
def test_export_samples_equal_those_of_the_store(store, model, exports, single, files):
    assert names(exports[single]) == files
    expected = expected_video(store, model)
    for path in (exports[single], *((exports[True] / "videoar.safetensors",) if single else ())):
        made = videoar.load(path).sample("a red circle", seconds=1, seed=3)
        assert torch.equal(made.video_B3THW, expected.video_B3THW)
        assert (made.steps, made.rate_fps) == (expected.steps, 8.0)
    other = videoar.load(str(exports[single])).sample("a red circle", seconds=1, seed=4)
    assert not torch.equal(other.video_B3THW, expected.video_B3THW)


def test_model_of_the_store_is_loaded_by_name(store, model):
    loaded = videoar.load(model.id, store=store)
    assert loaded.text_encoder is None
    assert loaded.card == card_of(store, "model")
    expected = expected_video(store, model)
    made = loaded.sample("a red circle", seconds=1, seed=3)
    assert torch.equal(made.video_B3THW, expected.video_B3THW)


def test_loading_an_export_opens_no_store(exports, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDEOAR_STORE", "s3://nowhere")
    assert videoar.load(exports[True]).card.rate_fps == 8.0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "frames"), [(None, 9), (0.1, 1), (0.5, 5), (1, 9), (1.1, 9), (2, 17)]
)
def test_number_of_frames_follows_from_seconds_and_frame_rate(exports, seconds, frames):
    made = load_export(exports[False]).sample("p", seconds=seconds)
    assert made.video_B3THW.shape == (1, 3, frames, 32, 32)


def test_sampler_options_override_those_of_the_scored_samples(exports):
    loaded = load_export(exports[False])
    assert loaded.card.sampler == SAMPLER
    plain = loaded.sample("p", seconds=1).video_B3THW
    for change in ({"guidance": "ucf"}, {"temperature": 2.0}):
        assert not torch.equal(loaded.sample("p", seconds=1, **change).video_B3THW, plain)
    same = loaded.sample("p", seconds=1, **SAMPLER).video_B3THW
    assert torch.equal(same, plain)


def test_prompt_is_put_into_the_template_of_the_training(exports):
    loaded = load_export(exports[False])
    card = loaded.card.model_copy(update={"caption_template": "a video of {caption}"})
    framed = dataclasses.replace(loaded, card=card).sample("a cat", seconds=1).video_B3THW
    assert torch.equal(framed, loaded.sample("a video of a cat", seconds=1).video_B3THW)
    assert not torch.equal(framed, loaded.sample("a cat", seconds=1).video_B3THW)


def test_saved_video_has_its_frames_at_its_rate(exports, tmp_path):
    made = load_export(exports[False]).sample("p", seconds=1)
    path = made.save(tmp_path / "x.mp4")
    assert decode_clip(path.read_bytes()).shape == (9, 32, 32, 3)
    with pytest.raises(ConfigError, match="cannot be written"):
        made.save(tmp_path / "missing" / "x.mp4")
    with pytest.raises(ConfigError, match="seconds=0: is not above 0"):
        load_export(exports[False]).sample("p", seconds=0)


def test_card_has_the_lineage_of_the_model(store, model, exports):
    text = (exports[False] / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["model"]["digest"] == digest_of(model)
    contracts = [data["contract"] for data in front["data"]]
    assert contracts == ["clips@1", "tokens@1"]
    assert [data["rows"] for data in front["data"]] == [3, 3]
    licences = {"CC-BY-4.0": 1, "CC0-1.0": 1, "not stated": 1}
    assert front["sources"] == {"videos": 3, "forgotten": 0, "licences": licences}
    assert front["metrics"] == {"loss": 0.5}
    assert front["scores"] == {
        "recon/psnr": {"value": 21.5, "ci_low": 21.0, "ci_high": 22.0, "num_samples": 64}
    }
    assert (front["gate"]["passed"], front["gate"]["ref"]) == (True, "champion")
    assert (front["rate_fps"], front["num_frames"], front["size_px"]) == (8.0, 9, [32, 32])
    assert front["checksums"] == {
        name: sha256_hex((exports[False] / name).read_bytes()) for name in FOLDER - {"README.md"}
    }
    for word in ("CC-BY-4.0", "recon/psnr", "21 to 22", "passed its gate", "Intended use"):
        assert word in text.split("---\n")[2]
    assert socket.gethostname() not in text
    assert not re.search(r"(?<![\w.])/\w|file:|\\\\", text.replace("rows / ", ""))
    assert str(Path(store.url.removeprefix("file://")).parent) not in text


def test_card_survives_its_file(store, model):
    card = card_of(store, model.id)
    assert from_markdown(to_markdown(card), "x") == card
    odd = card.sources.model_copy(update={"licences": {"a | b\n# c": 1, "null": 2, "1e3": 3}})
    odd_card = card.model_copy(update={"sources": odd})
    assert from_markdown(to_markdown(odd_card), "x") == odd_card
    assert "| a \\| b # c | 1 |" in to_markdown(odd_card)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("# a model", "has no YAML front matter"),
        ("---\nmodel: 3\n---\n", "Field required|should be a valid"),
        ("---\nmodel: [\n---\n", "README.md"),
        ("---\ncard_version: 2\n---\n", "card_version"),
    ],
)
def test_file_that_is_no_card_is_rejected(exports, tmp_path, text, what):
    folder = shutil.copytree(exports[False], tmp_path / "copy")
    (folder / "README.md").write_text(text)
    with pytest.raises(ContractError, match=what):
        load_export(folder)


@pytest.mark.parametrize("name", sorted(FOLDER - {"README.md"}))
def test_folder_with_a_damaged_or_missing_file_is_rejected(exports, tmp_path, name):
    folder = shutil.copytree(exports[False], tmp_path / "copy")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(DamagedError, match=f"{name}: damaged"):
        load_export(folder)
    (folder / name).unlink()
    with pytest.raises(ContractError, match=name):
        load_export(folder)


def test_single_file_with_a_damaged_byte_is_rejected(exports, tmp_path):
    path = tmp_path / "x.safetensors"
    whole = (exports[True] / "videoar.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little")
    config = whole.index(b'\\"depth\\": 2') + len(b'\\"depth\\": ')
    offsets = [3, 9, config, *range(8 + header, len(whole), len(whole) // 40), len(whole) - 1]
    for offset in offsets:
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(VideoARError, match=r"x\.safetensors"):
            load_export(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(VideoARError, match=r"x\.safetensors"):
        load_export(path)


def test_single_file_with_an_additional_tensor_is_rejected(exports, tmp_path):
    whole = exports[True] / "videoar.safetensors"
    tensors = load_file(whole) | {"tokenizer.more": torch.zeros(1)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    with pytest.raises(ContractError, match="cannot be used"):
        load_export(tmp_path / "x.safetensors")


def test_tokenizer_of_another_export_is_rejected(store, model, exports, tmp_path):
    """A whole export of another tokenizer passes its own checksums, and fails by its digest."""
    folder = shutil.copytree(exports[False], tmp_path / "copy")
    weights = folder / "tokenizer" / "model.safetensors"
    tensors = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights)
    card = from_markdown((folder / "README.md").read_text(), "x")
    sums = card.checksums | {"tokenizer/model.safetensors": sha256_hex(weights.read_bytes())}
    (folder / "README.md").write_text(to_markdown(card.model_copy(update={"checksums": sums})))
    with pytest.raises(ContractError, match="its checksums are not those of"):
        load_export(folder)


def test_networks_of_different_shapes_are_rejected(store, model):
    coder = store.snapshot(model.commit.provenance.parents["tokenizer"])
    for change in ({"num_bits": 4}, {"scales": [(1, 1), (4, 4)]}, {"time_stride": 2}):
        odd = transformer(store, digest_of(coder), f"odd-{next(iter(change))}", **change)
        with pytest.raises(ContractError, match=f"has {next(iter(change))} .*, its tokenizer"):
            load_stored(store, odd.id)


def test_model_whose_tokenizer_is_gone_is_rejected(tmp_path):
    store = open_store((tmp_path / "other").as_uri())
    lost = transformer(store, "5" * 64)
    for call in (
        lambda: export(store, lost.id, "safetensors", str(tmp_path / "out")),
        lambda: load_stored(store, lost.id),
    ):
        with pytest.raises(ConfigError, match=f"its tokenizer {'5' * 64} is not in"):
            call()
    assert not (tmp_path / "out").exists()


def test_model_without_tokens_or_scores_has_a_card_that_says_so(tmp_path):
    store = open_store((tmp_path / "other").as_uri())
    bare = transformer(store, digest_of(tokenizer(store)))
    export(store, bare.id, "safetensors", str(tmp_path / "out"))
    card = load_export(tmp_path / "out").card
    assert (card.rate_fps, card.num_frames, card.gate, card.scores) == (None, None, None, {})
    assert "No gate has decided" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ConfigError, match="its frame rate is not known"):
        load_export(tmp_path / "out").sample("p")


def test_model_knows_its_clips_without_the_tokens(tmp_path):
    store = open_store((tmp_path / "other").as_uri())
    made = transformer(store, digest_of(tokenizer(store)), clips=ClipShape(12.0, 5))
    loaded = load_stored(store, made.id)
    assert (loaded.card.rate_fps, loaded.card.num_frames) == (12.0, 5)
    assert loaded.sample("p", seconds=0.7).video_B3THW.shape[2] == 9  # 8.4 frames


def test_export_of_something_else_or_in_another_format_is_rejected(store, model, tmp_path):
    coder, tokens = model.commit.provenance.parents["tokenizer"], "tokens"
    out = str(tmp_path / "out")
    for name, form, single, what in (
        (coder, "safetensors", False, "is a tokenizer, not a transformer"),
        (model.id, "parquet", False, "not a format of models@1 .use safetensors"),
        (tokens, "safetensors", False, "not a format of tokens@1 .use webdataset or parquet"),
        (tokens, "parquet", True, "only a model can be one file"),
        (model.id, "safetensor", False, "did you mean safetensors"),
    ):
        with pytest.raises(ConfigError, match=what):
            export(store, name, form, out, single_file=single)
    with pytest.raises(ConfigError, match="to a local folder only"):
        export(store, model.id, "safetensors", "s3://bucket/x")
    assert not Path(out).exists()


def test_existing_target_is_kept(store, model, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"has thesis\.txt in it"):
        export(store, model.id, "safetensors", str(own))
    assert names(own) == {"thesis.txt"}
    with pytest.raises(ConfigError, match="cannot be used: Not a directory"):
        export(store, model.id, "safetensors", str(own / "thesis.txt"))
    (own / "link").symlink_to(own / "missing")
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        export(store, model.id, "safetensors", str(own / "link" / "out"))
    (tmp_path / "empty").mkdir()
    export(store, model.id, "safetensors", (tmp_path / "empty").as_uri())
    assert names(tmp_path / "empty") == FOLDER
    assert {path.name for path in tmp_path.iterdir()} == {"own", "empty"}


def test_export_of_a_damaged_model_leaves_nothing(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    made = published(store)
    (file, *_) = made.table(["files"])["files"][0].as_py()
    store.objects.put(file["key"], b"{}" + store.objects.get(file["key"])[2:])
    with pytest.raises(DamagedError, match=file["key"]):
        export(store, made.id, "safetensors", str(tmp_path / "exports" / "out"))
    assert not list((tmp_path / "exports").iterdir())


def killed(store_url, model, out, single):
    export(open_store(store_url), model, "safetensors", out, single_file=single)


@pytest.mark.parametrize("single", [False, True])
def test_killed_export_is_not_visible_and_the_next_one_removes_it(store, model, tmp_path, single):
    out = tmp_path / "out"
    arguments = (store.url, model.id, str(out), single)
    code = exit_code(killed, *arguments, VIDEOAR_CRASH_AT="export-written")
    assert code == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    killed(*arguments)
    assert list(tmp_path.iterdir()) == [out]


def test_export_command_prints_the_manifest(store, model, tmp_path):
    call = ["--store", store.url, "--json", "export", model.id, "--format", "safetensors", "--to"]
    done = CliRunner().invoke(app, [*call, str(tmp_path / "out"), "--single-file"])
    assert done.exit_code == 0
    manifest = json.loads(done.stdout)
    path = tmp_path / "out" / "videoar.safetensors"
    sha256 = sha256_hex(path.read_bytes())
    assert manifest.keys() == {"format", "snapshot", "digest", "rows", "files"}
    (file,) = manifest["files"]
    assert (file["name"], file["sha256"]) == (path.name, sha256)
    assert file["size_bytes"] == path.stat().st_size


def test_missing_path_is_rejected(tmp_path):
    for path in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere"):
        with pytest.raises(ConfigError, match="nowhere: no exported model"):
            videoar.load(path)


def test_import_of_videoar_loads_nothing_heavy():
    code = (
        "import sys, videoar; assert callable(videoar.load);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pyarrow', 'ray', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_frozen_text_encoder_is_named_and_given_again(store, model, tmp_path):
    pytest.importorskip("transformers")
    from tests.support.tiny_models import t5
    from videoar.model.pretrained.model_folder import folder_digest

    folder, other = t5(tmp_path / "t5-tiny"), t5(tmp_path / "other", seed=1)
    named = {"text_encoder": folder_digest(folder), "text_encoder_name": "t5-tiny"}
    coder = store.snapshot(model.commit.provenance.parents["tokenizer"])
    tokens = {"tokens": model.commit.provenance.parents["tokens"]}
    clips = ClipShape(8.0, 9)
    made = transformer(store, digest_of(coder), "frozen", tokens, clips=clips, **named)
    export(store, made.id, "safetensors", str(tmp_path / "out"))
    assert 'text_encoder="FOLDER OF t5-tiny"' in (tmp_path / "out" / "README.md").read_text()
    loaded = videoar.load(tmp_path / "out", text_encoder=folder)
    assert loaded.card.text_encoder.model_dump() == {
        "name": "t5-tiny",
        "digest": folder_digest(folder),
    }
    assert loaded.text_encoder.digest == folder_digest(folder)
    in_store = videoar.load(made.id, text_encoder=Path(folder), store=store)
    expected = in_store.sample("is this a", seconds=0.5).video_B3THW
    assert torch.equal(loaded.sample("is this a", seconds=0.5).video_B3THW, expected)
    for wrong, what in (("", "the model needs t5-tiny"), (other, "was trained with t5-tiny")):
        with pytest.raises(ConfigError, match=what):
            videoar.load(tmp_path / "out", text_encoder=wrong)
    with pytest.raises(ConfigError, match="trained with its own text encoder"):
        load_stored(store, model.id, text_encoder=folder)
