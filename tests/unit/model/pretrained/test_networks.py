"""Tiny random models of real classes through the real loading code."""

import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import tiny_models
from videoar.core.errors import ConfigError
from videoar.model.pretrained.model_folder import folder_digest, pretrained_fingerprint
from videoar.model.pretrained.networks import Captioner, ImageEncoder, pick_stills

PROMPT = "what is this"
CAPTIONERS = (tiny_models.llava, tiny_models.qwen2_vl, tiny_models.blip)
ENCODERS = (tiny_models.clip, tiny_models.clip_vision, tiny_models.siglip, tiny_models.dinov2,
            tiny_models.ijepa)  # fmt: skip


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_stills_are_the_middle_frames_of_equal_parts():
    frames = np.arange(17)[:, None]
    assert pick_stills(frames, 1)[:, 0].tolist() == [8]
    assert pick_stills(frames, 4)[:, 0].tolist() == [2, 6, 10, 14]
    assert pick_stills(frames, 99)[:, 0].tolist() == list(range(17))


@pytest.mark.slow
@pytest.mark.parametrize("make", CAPTIONERS, ids=lambda make: make.__name__)
def test_captions_are_deterministic_and_without_the_prompt(make, tmp_path, no_network):
    folder = make(tmp_path)
    clips = [noise(1, 3, 20, 24), noise(2, 2, 32, 32)]  # another size, another number of stills
    captioner = Captioner(folder, PROMPT, 6)
    texts = captioner(clips)
    assert texts == captioner(clips) == Captioner(folder, PROMPT, 6)(clips)
    assert any(texts)
    for text in texts:
        assert set(text.split()) <= {*tiny_models.WORDS, *tiny_models.MADE}
        assert not text.startswith(("user", PROMPT))


@pytest.mark.slow
def test_caption_depends_on_its_own_clip_only(tmp_path):
    captioner = Captioner(tiny_models.llava(tmp_path), PROMPT, 6)
    clips = [noise(seed, 1 + seed, 16, 16) for seed in range(3)]
    assert captioner(clips) == [captioner([clip])[0] for clip in clips]


@pytest.mark.parametrize("make", [tiny_models.llava, tiny_models.qwen2_vl])
def test_caption_depends_on_stills_and_prompt(make, tmp_path):
    folder = make(tmp_path, seed=2)  # most random models say one thing whatever they see
    clips = [np.full((2, 16, 16, 3), grey, np.uint8) for grey in (0, 255)]
    clips += [noise(seed, 2, 16, 16) for seed in range(4)]
    texts = Captioner(folder, PROMPT, 8)(clips)
    assert len(set(texts)) > 1
    assert texts != Captioner(folder, "a", 8)(clips)


@pytest.mark.parametrize("make", [tiny_models.clip, tiny_models.siglip, tiny_models.dinov2])
def test_vector_of_one_still_is_the_output_of_the_model(make, tmp_path):
    folder, still = make(tmp_path), noise(1, 20, 28)
    pixels = tiny_models.transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    net = tiny_models.transformers.AutoModel.from_pretrained(folder)
    ask = net if make is tiny_models.dinov2 else net.get_image_features
    with torch.no_grad():
        own = ask(**pixels(images=still, return_tensors="pt")).pooler_output[0].numpy()
    found = ImageEncoder(folder)([still[None]])[0]
    np.testing.assert_allclose(found, own / np.linalg.norm(own), atol=1e-6)


@pytest.mark.parametrize("make", ENCODERS, ids=lambda make: make.__name__)
def test_embeddings_are_unit_vectors_of_the_stills(make, tmp_path, no_network):
    encoder = ImageEncoder(make(tmp_path))
    light, dark = np.full((2, 24, 20, 3), 250, np.uint8), noise(1, 3, 32, 32)
    vectors = encoder([light, dark, light])
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, 12 if make is tiny_models.clip else 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert vectors[0] @ vectors[2] > 0.9999 > vectors[0] @ vectors[1]
    np.testing.assert_allclose(encoder([dark[::-1]])[0], vectors[1], atol=1e-5)


def test_folder_digest_covers_the_files_that_loading_reads(tmp_path):
    folder = tiny_models.clip(tmp_path / "a")
    digest = folder_digest(folder)
    assert digest == folder_digest(tiny_models.clip(tmp_path / "b"))
    assert digest != folder_digest(tiny_models.clip(tmp_path / "c", seed=1))
    (tmp_path / "a" / "README.md").write_text("words")
    (tmp_path / "a" / ".cache").mkdir()
    (tmp_path / "a" / ".cache" / "when.json").write_text("{}")
    assert digest == folder_digest(folder)
    config = tmp_path / "a" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"projection_dim": 13}))
    assert digest != folder_digest(folder)
    assert pretrained_fingerprint(folder)["transformers"] == tiny_models.transformers.__version__


def test_unchanged_files_are_hashed_once(tmp_path):
    folder = Path(tiny_models.clip(tmp_path))
    weights = folder / "model.safetensors"
    digest, facts = folder_digest(str(folder)), weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert folder_digest(str(folder)) == digest
    os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert folder_digest(str(folder)) != digest


def drop_config(folder):
    (folder / "config.json").unlink()


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lose_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "norm" in name))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def ask_for_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('code of the folder ran')")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (drop_config, "holds no config.json"),
        (pickle_weights, "pickled weights are not read"),
        (lose_a_weight, "lacks 1 weights"),
        (truncate, "not usable"),
        (ask_for_code, "not usable"),
    ],
)
@pytest.mark.parametrize("make", [tiny_models.llava, tiny_models.dinov2])
def test_damaged_folder_is_one_error_line(make, damage, what, tmp_path, no_network):
    folder = make(tmp_path)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=what) as caught:
        Captioner(folder, PROMPT, 4) if make is tiny_models.llava else ImageEncoder(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("load", "make", "wanted"),
    [
        (lambda folder: Captioner(folder, PROMPT, 4), tiny_models.clip, "vision-language model"),
        (ImageEncoder, tiny_models.llava, "image encoder"),
    ],
)
def test_model_of_another_kind_is_one_error_line(load, make, wanted, tmp_path):
    with pytest.raises(ConfigError, match=wanted) as caught:
        load(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_encoder_with_random_output_is_rejected(tmp_path):
    folder = tiny_models.dinov2(tmp_path)
    config = tiny_models.transformers.ViTMAEConfig(**tiny_models.VISION | {"patch_size": 2})
    tiny_models.transformers.ViTMAEModel(config).save_pretrained(folder)
    with pytest.raises(ConfigError, match="different vectors for equal images"):
        ImageEncoder(folder)


def test_chat_template_without_images_is_one_error_line(tmp_path):
    folder = tiny_models.llava(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'][-1]['text'] }}")
    with pytest.raises(ConfigError, match="not usable: "):
        Captioner(folder, PROMPT, 4)


def test_missing_folder_is_one_error_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no such model folder \(give a local folder"):
        ImageEncoder("openai/clip-vit-base-patch32")


def test_missing_extra_is_an_error_with_the_package_to_install(tmp_path, monkeypatch):
    folder = tiny_models.clip(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigError, match=r"not installed \(install videoar\[caption\]\)"):
        pretrained_fingerprint(folder)
