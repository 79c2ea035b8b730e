"""Files that are damaged, incomplete or another network's are refused, never half believed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.loop_rank import commit
from videoar.core.errors import ContractError, StorageError
from videoar.media.synthetic import draw, scenes
from videoar.model.tokenizer.config import TOKENIZERS, LossWeights, TokenizerTraining
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.transformer.config import PRESETS
from videoar.storage.store import open_store
from videoar.training.model_store import (
    load_model,
    load_tokenizer,
    publish_model,
    save_model,
)
from videoar.training.tokenizer import TokenizerTrainer

torch.set_num_threads(1)
TINY = TOKENIZERS["tiny"]
CLIPS = np.stack([draw(scene, 9, 32, 8.0) for scene in scenes()[:2]])


def cuts(size):
    """Lengths to cut a file to: in safetensors the header's length, the header and the values."""
    return [0, 1, 7, 8, 9, 200, size // 2, size - 1]


def cut_at_several_lengths(path, load):
    whole = path.read_bytes()
    for length in cuts(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ContractError, match=path.name):
            load()
    path.unlink()
    with pytest.raises(ContractError, match=path.name):
        load()
    path.write_bytes(whole)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_truncated_model_is_rejected(tmp_path, name):
    save_model(VideoTokenizer(TINY), tmp_path)
    cut_at_several_lengths(tmp_path / name, lambda: load_model(tmp_path))
    assert load_model(tmp_path).cfg == TINY


def test_flipped_byte_of_a_stored_model_is_rejected(tmp_path):
    net = VideoTokenizer(TINY)
    store = open_store((tmp_path / "store").as_uri())
    row = publish_model(net, store, weights=net.state_dict(), step=0, metrics={}, history=[])
    models = commit(store, "tok", "models@1", row)
    assert load_tokenizer(models, store)[1] == row["digest"][0].as_py()
    for file in row["files"][0].as_py():
        (path,) = tmp_path.glob(f"store/**/{file['key'].rpartition('/')[2]}")
        data = path.read_bytes()
        path.chmod(0o600)
        for place in (0, 8, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(StorageError, match="damaged: wrong SHA-256"):
                load_tokenizer(models, store)
        path.write_bytes(data)


def test_weights_of_another_network_are_rejected(tmp_path):
    save_model(VideoTokenizer(TINY), tmp_path)
    config = tmp_path / "config.json"
    document = json.loads(config.read_text())
    wider = TINY.model_copy(update={"base_width": 32}).model_dump(mode="json")
    config.write_text(json.dumps({**document, "config": wider}))
    with pytest.raises(ContractError, match=r"model\.safetensors: .* size mismatch"):
        load_model(tmp_path)
    transformer = PRESETS["tiny"].model_dump(mode="json")
    config.write_text(json.dumps({"kind": "transformer", "config": transformer}))
    with pytest.raises(ContractError, match=r"model\.safetensors: .* Missing key"):
        load_model(tmp_path)
    for wrong, message in (
        ({**document, "config": {**document["config"], "scales": [[4, 4], [2, 2]]}}, "scales"),
        ({"kind": "tokenizer"}, "'config'"),
        ([], "list indices"),
    ):
        config.write_text(json.dumps(wrong))
        with pytest.raises(ContractError, match=rf"config\.json: .*{message}"):
            load_model(tmp_path)


def trainer(steps=0, gan_start=5):
    options = TokenizerTraining(
        steps=10, batch_clips=2, excerpt_frames=5, weights=LossWeights(gan=0.1, gan_start=gan_start)
    )
    made = TokenizerTrainer(TINY, options, CLIPS)
    for _ in range(steps):
        made.train_step()
    return made


@pytest.mark.parametrize("name", ["state.safetensors", "progress.json"])
def test_truncated_state_is_rejected(tmp_path, name):
    trainer(1).save(tmp_path)
    resumed = trainer()
    cut_at_several_lengths(tmp_path / name, lambda: resumed.load(tmp_path))
    resumed.load(tmp_path)
    assert resumed.step == 1


def without(prefix):
    return lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(prefix)}


def replaced(old, new):
    return lambda tensors: {k.replace(old, new): v for k, v in tensors.items()}


def shorter(key):
    return lambda tensors: {**tensors, key: tensors[key][:1].clone()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("average/"), "'average': 0"),
        (without("average/decoder"), "'average': "),
        (without("adam/"), "'adam': 0"),
        (without("adam/0.exp_avg"), "'adam': "),
        (without("critic_adam/"), "'critic_adam': 0"),
        (without("net/"), "'net': 0"),
        (replaced("critic/", "judge/"), "'judge': "),
        (
            replaced("average/encoder", "average/coder"),
            "average/coder.* is in the file or in the network",
        ),
        (replaced("net/encoder", "net/coder"), "Missing key"),
        (replaced("adam/0.", "adam/999."), "IndexError"),
        (shorter("average/encoder.conv_in.weight"), "average/encoder.conv_in.weight has shape"),
        (shorter("adam/0.exp_avg"), "adam/0.exp_avg has shape"),
        (shorter("net/encoder.conv_in.weight"), "size mismatch"),
    ],
)
def test_incomplete_or_changed_state_is_rejected(tmp_path, change, message):
    trainer(1, gan_start=0).save(tmp_path)
    path = tmp_path / "state.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(ContractError, match=rf"state\.safetensors: .*{message}"):
        trainer(gan_start=0).load(tmp_path)


def test_state_of_other_parts_is_rejected(tmp_path):
    trainer(1).save(tmp_path)
    alone = TokenizerTrainer(TINY, TokenizerTraining(batch_clips=2, excerpt_frames=5), CLIPS)
    with pytest.raises(ContractError, match="critic"):
        alone.load(tmp_path)
    alone.save(tmp_path)
    with pytest.raises(ContractError, match="critic"):
        trainer().load(tmp_path)


def test_discriminator_before_its_first_step_has_no_optimizer_state(tmp_path):
    straight = trainer(1, gan_start=2)
    straight.save(tmp_path)
    assert not any(
        key.startswith("critic_adam/") for key in load_file(tmp_path / "state.safetensors")
    )
    resumed = trainer(gan_start=2)
    resumed.load(tmp_path)
    for _ in range(2):
        assert resumed.train_step() == straight.train_step()
