"""LPIPS features: AlexNet's five activations, weighted by trained heads, if weights are given.

The one idea: the distance is a weighted sum of squares, so features scaled by the square roots of
the heads' weights need no special case in the loss. The operator provides the weights:
torchvision's AlexNet (`features.*`) and the heads of LPIPS v0.1 (`lin*.model.1.weight`), in one
state dict.

Shape suffixes: N images, C channels, H W height and width.
Source: arXiv 1801.03924 equation 1; richzhang/PerceptualSimilarity `lpips/lpips.py`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from videoar.core.errors import ConfigError

_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # Source: lpips ScalingLayer
_LAYERS = ((0, 64, 11, 4, 2), (3, 192, 5, 1, 2), (6, 384, 3, 1, 1), (8, 256, 3, 1, 1),
           (10, 256, 3, 1, 1))  # fmt: skip
"""Index in torchvision's `features`, channels, kernel, stride, padding."""


class LpipsAlex(nn.Module):
    """A frozen `FeatureNet`.

    Args:
        weights: state dict with the trunk's and the heads' weights.

    Raises:
        KeyError: a weight is missing.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        channels = 3
        for i, (index, out, kernel, stride, padding) in enumerate(_LAYERS):
            conv = nn.Conv2d(channels, out, kernel, stride, padding)
            keys = {name: f"features.{index}.{name}" for name in ("weight", "bias")}
            conv.load_state_dict({name: weights[full] for name, full in keys.items()})
            self.convs.append(conv)
            head = weights[f"lin{i}.model.1.weight"].clamp(min=0)  # LPIPS trains them non-negative
            self.register_buffer(f"head{i}", head.sqrt())
            channels = out
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1))
        self.requires_grad_(requires_grad=False)

    def forward(self, images_N3HW: Tensor) -> list[Tensor]:
        """Return the five weighted features of images in [-1, 1], of at least 35 px per side."""
        x = (images_N3HW - self.get_buffer("mean")) / self.get_buffer("std")
        features = []
        for i, conv in enumerate(self.convs):
            x = F.max_pool2d(x, 3, 2) if i in {1, 2} else x  # AlexNet pools after layers 1 and 2
            x = F.relu(conv(x))
            features.append(normalize_features(x) * self.get_buffer(f"head{i}"))
        return features


def load_lpips(path: Path) -> LpipsAlex:
    """Load a safetensors file with AlexNet's weights and the heads of LPIPS.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    try:
        net = LpipsAlex(load_file(path))
        net(torch.zeros(1, 3, 64, 64))  # heads for another trunk load; only running them fails
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise ConfigError(str(path), f"holds no AlexNet with heads of LPIPS: {error}") from error
    return net


def normalize_features(features_NCHW: Tensor) -> Tensor:
    """Scale the feature vector of every position to unit L2 norm."""
    return F.normalize(features_NCHW, dim=1, eps=1e-10)
