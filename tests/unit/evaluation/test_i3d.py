"""The I3D network: equal to the published graph; only its weights are accepted for FVD."""

import hashlib

import numpy as np
import pytest
import torch

from tests.support.shared_data import shared_json
from videoar.core.errors import ConfigError
from videoar.evaluation import i3d, i3d_presets


def formula(count, number):
    """Hash-like numbers in [0, 1) that every language computes alike."""
    value = np.arange(count, dtype=np.uint64) * 2654435761
    value = (value + (number * 2654404609 + 12345) % 2**32) % 2**32
    for _ in range(2):
        value = (value ^ (value >> 16)) * 0x45D9F3B % 2**32
    return (value ^ (value >> 16)) / 2**32


def formula_bundle():
    """A data file in the layout of the published checkpoint, with formula weights."""
    parts = []
    for number, (name, tensor) in enumerate(i3d.I3D().variables()):
        values = formula(tensor.numel(), number)
        if name.endswith("/w"):
            values = (values - 0.5) * np.sqrt(24 / tensor[0].numel())
        elif name.endswith("variance"):
            values = values + 0.5
        else:
            values = 0.2 * (values - 0.5)
        parts.append(values.astype("<f4").tobytes())
    return b"".join(parts)


def formula_logits(network):
    flat = 2 * formula(10 * 224 * 224 * 3, 1000) - 1
    video = torch.from_numpy(flat.astype(np.float32).reshape(1, 10, 224, 224, 3))
    torch.set_num_threads(1)
    with torch.inference_mode():
        return network(video)[0]


@pytest.mark.slow
def test_invariant_2_i3d_formula_weights_give_logits_of_published_graph():
    network = i3d.read_bundle(formula_bundle())
    logits = formula_logits(network)
    assert logits.norm().item() == pytest.approx(101.2149, rel=1e-6)
    assert logits.argmax().item() == 395
    assert logits[:4].tolist() == pytest.approx([-0.097498, 0.482225, 0.199475, 2.264223], abs=1e-5)
    for module in network.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-5
    assert formula_logits(network).norm().item() != pytest.approx(101.2149, rel=1e-4)


@pytest.mark.shared
def test_i3d_variables_equal_published_index():
    index = shared_json("eval/i3d/i3d_rgb_scratch_index.json")
    offset = 0
    for name, tensor in i3d.I3D().variables():
        known = index["tensors"][name]
        shape = [*tensor.shape[2:], *tensor.shape[1::-1]] if tensor.ndim > 1 else [*tensor.shape]
        assert (known["offset"], known["shape"]) == (offset, shape)
        offset += known["size"]
    assert offset == index["data_file"]["bytes"] == i3d.NUM_BYTES
    assert index["data_file"]["git_blob_sha1"] == i3d.FVD_BLOB


def test_invariant_1_load_i3d_other_file_is_rejected(tmp_path, monkeypatch):
    zeros = bytes(i3d.NUM_BYTES)
    path = tmp_path / "model.ckpt"
    for content, message in ((zeros, "unknown content"), (zeros[:-1], "bytes, not")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            i3d.load_i3d(str(path))
    with pytest.raises(ConfigError, match="no I3D weights"):
        i3d.load_i3d("")
    blob = hashlib.sha1(b"blob %d\0" % len(zeros) + zeros).hexdigest()
    monkeypatch.setitem(i3d._OTHER_CHECKPOINTS, blob, "rgb_imagenet")
    with pytest.raises(ConfigError, match="rgb_imagenet"):
        i3d.check_identity(zeros, "weights")
    assert sum(tensor.abs().sum() for _, tensor in i3d.read_bundle(zeros).variables()) == 0


@pytest.mark.slow
def test_random_i3d_is_deterministic_and_distinguishes_clips():
    network = i3d.random_i3d(0)
    assert network.digest() == i3d.random_i3d(0).digest()
    assert network.digest() != i3d.random_i3d(1).digest()
    torch.set_num_threads(1)
    clips = np.zeros((2, i3d.MIN_FRAMES, 16, 16, 3), dtype=np.uint8)
    clips[1, :, 4:8] = 255
    with torch.inference_mode():
        logits = torch.cat([network(i3d_presets.common_metrics(clip)) for clip in clips])
    assert logits.shape == (2, i3d.NUM_CLASSES)
    assert torch.isfinite(logits).all()
    assert (logits[0] - logits[1]).abs().mean() > 0.1


def test_preprocess_crops_centre_and_keeps_range():
    wide = np.zeros((2, 32, 64, 3), dtype=np.uint8)
    wide[:, :, 16:48] = 255
    video = i3d_presets.common_metrics(wide)
    assert video.shape == (1, 2, 224, 224, 3)
    assert video.min() >= -1
    assert video[0, :, :, 8:-8].min() == pytest.approx(1)
