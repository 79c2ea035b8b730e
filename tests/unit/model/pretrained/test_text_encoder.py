"""Tiny random T5 and UMT5 models through the real loading code."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import tiny_models
from videoar.core.errors import ConfigError
from videoar.model.pretrained.model_folder import folder_digest, text_encoder_fields
from videoar.model.pretrained.text_encoder import T5TextEncoder, load_text_encoder
from videoar.model.transformer.config import PRESETS
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.text import WordEncoder

PROMPTS = ["a red circle moving left", "blue square", ""]
TINY = PRESETS["tiny"].model_copy(update={"scales": ((1, 1), (2, 2))})
KINDS = pytest.mark.parametrize("make", [tiny_models.t5, tiny_models.umt5])


def with_encoder(folder, **changes):
    return TINY.model_copy(update={**text_encoder_fields(folder), **changes})


@KINDS
def test_features_are_the_last_hidden_states_of_the_encoder(make, tmp_path):
    folder = make(tmp_path)
    text = T5TextEncoder(folder, 32, 16)(PROMPTS)
    assert text.lengths.tolist() == [6, 3, 1]  # each with its end token
    assert text.features_BPD.dtype == torch.float16
    tokenizer = tiny_models.transformers.AutoTokenizer.from_pretrained(folder)
    kind = f"{make.__name__.upper()}EncoderModel"
    net = getattr(tiny_models.transformers, kind).from_pretrained(folder)
    for prompt, row, length in zip(PROMPTS, text.features_BPD, text.lengths, strict=True):
        with torch.no_grad():
            own = net(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(row[:length].float(), own, atol=2e-3, rtol=2e-3)
        assert not row[length:].any()


@KINDS
def test_long_prompts_are_cut_and_an_empty_one_has_a_token(make, tmp_path):
    encoder = T5TextEncoder(make(tmp_path, ends=False), 32, 4)
    assert encoder(PROMPTS).lengths.tolist() == [4, 2, 1]
    assert encoder([""]).features_BPD.any()


def test_encoder_of_another_width_is_an_error_with_both_numbers(tmp_path):
    folder = tiny_models.t5(tmp_path, width=48)
    with pytest.raises(ConfigError, match=r"width 48; the model has text_width 32") as caught:
        T5TextEncoder(folder, 32, 16)
    assert str(caught.value).startswith(folder)


def lose_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def spoil_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["encoder.final_layer_norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def grow_vocabulary(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["green"] = len(tokenizer["model"]["vocab"])
    path.write_text(json.dumps(tokenizer))


def rename_kind(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bart"}))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lose_a_weight, "lacks 1 weights"),
        (spoil_a_weight, "not finite"),
        (truncate, "not usable"),
        (drop_tokenizer, "holds none of tokenizer.json"),
        (grow_vocabulary, "the tokenizer has 14 tokens, the model 13"),
        (rename_kind, "not one of"),
    ],
)
def test_damaged_folder_is_one_error_line(damage, what, tmp_path):
    folder = tiny_models.t5(tmp_path)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=what) as caught:
        T5TextEncoder(folder, 32, 16)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "\n" not in str(caught.value)


def test_frozen_encoder_is_no_part_of_the_model(tmp_path):
    cfg = with_encoder(tiny_models.t5(tmp_path))
    encoder = load_text_encoder(cfg, str(tmp_path))
    before = encoder(PROMPTS).features_BPD
    model = VideoAR(cfg, encoder)
    assert torch.equal(encoder(PROMPTS).features_BPD, before)  # not initialised
    own = {name for name in VideoAR(TINY).state_dict() if not name.startswith("text_encoder.")}
    assert model.state_dict().keys() == own
    assert {name for name, _ in model.named_parameters()} == own
    assert model.num_parameters() == VideoAR(TINY).num_parameters()
    model.load_state_dict(VideoAR(cfg).state_dict())  # strict
    assert torch.equal(model.train().encode_text(PROMPTS).features_BPD, before.float())


def test_module_given_as_encoder_is_frozen_and_not_registered():
    torch.manual_seed(0)
    encoder = WordEncoder(32, 16, 64)
    encoder.digest = "words"
    model = VideoAR(TINY.model_copy(update={"text_encoder": "words"}), encoder)
    model.train()
    assert not encoder.training
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert not any(name.startswith("text_encoder") for name in model.state_dict())
    with pytest.raises(ValueError, match="the model has 32 and ''"):
        VideoAR(TINY, encoder)


def test_embedded_encoder_is_trained_and_saved_under_its_name():
    model = VideoAR(TINY)
    assert model.state_dict()["text_encoder.table.weight"].shape == (512, 32)
    assert model.text_encoder.table.weight.requires_grad


def test_prompts_without_the_encoder_of_the_model_are_an_error(tmp_path):
    model = VideoAR(with_encoder(tiny_models.t5(tmp_path / "tiny-t5")))
    with pytest.raises(ValueError, match="needs its text encoder 'tiny-t5'"):
        model.encode_text(PROMPTS)


def test_longer_text_than_the_model_has_positions_for_is_an_error(tmp_path):
    cfg = with_encoder(tiny_models.t5(tmp_path), max_text_tokens=4)
    model = VideoAR(cfg, T5TextEncoder(str(tmp_path), 32, 16))
    with pytest.raises(ValueError, match="6 text tokens; max_text_tokens is 4"):
        model.encode_text(PROMPTS)


def test_other_encoder_than_that_of_the_model_is_an_error(tmp_path):
    folder, other = tiny_models.t5(tmp_path / "a"), tiny_models.t5(tmp_path / "b", seed=1)
    assert folder_digest(folder) != folder_digest(other)
    cfg = with_encoder(folder)
    with pytest.raises(ConfigError, match="the model was trained with a of digest") as caught:
        load_text_encoder(cfg, other)
    assert caught.value.where == other
    with pytest.raises(ConfigError, match="text_encoder: the model needs a, the text encoder"):
        load_text_encoder(cfg, "")
    with pytest.raises(ConfigError, match="its own text encoder"):
        load_text_encoder(TINY, folder)
    with pytest.raises(ConfigError, match="no such model folder"):
        load_text_encoder(cfg, str(tmp_path / "c"))
    assert load_text_encoder(TINY, "") is None
