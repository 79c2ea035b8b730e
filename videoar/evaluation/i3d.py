"""The I3D network of FVD: architecture, loader with identity check, random initialization.

Modules have the names of the published TensorFlow graph, so the checkpoint needs no key map: a
bundle data file is the concatenation of all float32 variables in order of their names, and the
module tree yields the same order. Nothing is unpickled and TensorFlow is not needed.

A 16 x 224 x 224 clip costs 55.6 GFLOP, 1 to 2 CPU-seconds on one thread.
Axes: B clips, T frames, H W pixels, K classes.
Source: TF-hub deepmind/i3d-kinetics-400/1; google-deepmind/kinetics-i3d (Apache-2.0).
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from videoar.core.errors import ConfigError

Triple = tuple[int, int, int]

FVD_BLOB = "fa7df95674dbf3579e7fccd954e51e706b4734c1"
"""git blob id of `rgb_scratch/model.ckpt.data-00000-of-00001`: the network that defines FVD."""
NUM_BYTES = 50_818_176
# Published beside it and often taken for it, but pretrained on ImageNet: other features.
_OTHER_CHECKPOINTS = {"2958652e0c9c48a65010c0ebda5c9cfd4edc7c18": "rgb_imagenet"}
MIN_FRAMES = 9
"""The last pooling spans 2 of ceil(T / 8) time steps, so 8 frames fail."""
NUM_CLASSES = 400
_BN_EPS = 1e-3  # Source: Sonnet default of the published graph; ports with 1e-5 shift the logits

_BLOCKS = {
    # Source: kinetics-i3d i3d.py. Widths: 1x1 | 1x1, 3x3 | 1x1, 3x3 | 1x1 after pooling
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def _pad_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Pad like TensorFlow's SAME: ceil(size / stride) outputs, the odd pixel at the end.

    PyTorch's `padding` is symmetric, which shifts the samples of a strided convolution by one.
    """
    pads: list[int] = []
    for size, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads)


class _Conv(nn.Module):
    def __init__(self, width_in: int, width: int, kernel: Triple, *, bias: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(width, width_in, *kernel))
        self.b = nn.Parameter(torch.empty(width)) if bias else None


class _Norm(nn.Module):
    """Batch normalization in inference form; the graph has no gamma."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.empty(width))
        self.moving_mean = nn.Parameter(torch.empty(width))
        self.moving_variance = nn.Parameter(torch.empty(width))
        self.eps = _BN_EPS

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.moving_mean, self.moving_variance, bias=self.beta, eps=self.eps
        )


class _Unit(nn.Module):
    """SAME convolution, normalization, ReLU; the logits have only a bias."""

    def __init__(
        self, width_in: int, width: int, size: int = 1, stride: int = 1, *, is_last: bool = False
    ) -> None:
        super().__init__()
        self.kernel, self.stride = (size,) * 3, (stride,) * 3
        self.conv_3d = _Conv(width_in, width, self.kernel, bias=is_last)
        self.batch_norm = None if is_last else _Norm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = _pad_same(x, self.kernel, self.stride)
        x = functional.conv3d(x, self.conv_3d.w, self.conv_3d.b, self.stride)
        return x if self.batch_norm is None else functional.relu(self.batch_norm(x))


class _MaxPool(nn.Module):
    """SAME max pooling. Inputs follow a ReLU, so padding with 0 equals padding with -inf."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool3d(
            _pad_same(x, self.kernel, self.stride), self.kernel, self.stride
        )


class _Mixed(nn.Module):
    def __init__(self, name: str, width_in: int) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3 = _BLOCKS[name]
        # Source: the graph itself; one scope of block 5b is misspelt there
        third = "Conv3d_0a_3x3" if name == "5b" else "Conv3d_0b_3x3"
        branches: tuple[dict[str, nn.Module], ...] = (
            {"Conv3d_0a_1x1": _Unit(width_in, b0)},
            {"Conv3d_0a_1x1": _Unit(width_in, b1a), "Conv3d_0b_3x3": _Unit(b1a, b1b, 3)},
            {"Conv3d_0a_1x1": _Unit(width_in, b2a), third: _Unit(b2a, b2b, 3)},
            {"MaxPool": _MaxPool((3, 3, 3), (1, 1, 1)), "Conv3d_0b_1x1": _Unit(width_in, b3)},
        )
        for i, branch in enumerate(branches):
            self.add_module(f"Branch_{i}", _chain(branch))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], dim=1)


def _chain(modules: dict[str, nn.Module]) -> nn.Sequential:
    chain = nn.Sequential()
    for name, module in modules.items():
        chain.add_module(name, module)
    return chain


class I3D(nn.Module):
    """Inflated Inception v1 up to its 400 logits, in inference form.

    Parameters are uninitialized: use `load_i3d` or `random_i3d`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _chain({
            "Conv3d_1a_7x7": _Unit(3, 64, 7, 2),
            "MaxPool3d_2a_3x3": _MaxPool((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": _Unit(64, 64),
            "Conv3d_2c_3x3": _Unit(64, 192, 3),
            "MaxPool3d_3a_3x3": _MaxPool((1, 3, 3), (1, 2, 2)),
            "Mixed_3b": _Mixed("3b", 192),
            "Mixed_3c": _Mixed("3c", 256),
            "MaxPool3d_4a_3x3": _MaxPool((3, 3, 3), (2, 2, 2)),
            "Mixed_4b": _Mixed("4b", 480),
            "Mixed_4c": _Mixed("4c", 512),
            "Mixed_4d": _Mixed("4d", 512),
            "Mixed_4e": _Mixed("4e", 512),
            "Mixed_4f": _Mixed("4f", 528),
            "MaxPool3d_5a_2x2": _MaxPool((2, 2, 2), (2, 2, 2)),
            "Mixed_5b": _Mixed("5b", 832),
            "Mixed_5c": _Mixed("5c", 832),
            "AvgPool": nn.AvgPool3d((2, 7, 7), stride=1),
            "Logits": _chain({"Conv3d_0c_1x1": _Unit(1024, NUM_CLASSES, is_last=True)}),
        })
        self.requires_grad_(requires_grad=False)

    def forward(self, video_BTHWC: Tensor) -> Tensor:
        """Return logits [B, K].

        Args:
            video_BTHWC: RGB in [-1, 1], 224 x 224, at least `MIN_FRAMES` frames.
        """
        logits_BKt11 = self.trunk(video_BTHWC.permute(0, 4, 1, 2, 3))
        return torch.as_tensor(logits_BKt11.mean(dim=(2, 3, 4)))

    def variables(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name in the TensorFlow graph, tensor) in the order of the bundle file."""
        named = {
            f"RGB/inception_i3d/{name.removeprefix('trunk.').replace('.', '/')}": tensor
            for name, tensor in self.named_parameters()
        }
        yield from sorted(named.items())

    def digest(self) -> str:
        """Return the SHA-256 over all variables, in bundle order and PyTorch layout."""
        sha = hashlib.sha256()
        for _, tensor in self.variables():
            sha.update(tensor.cpu().numpy().tobytes())
        return sha.hexdigest()


def random_i3d(seed: int) -> I3D:
    """Return the network with seeded random weights: He convolutions, identity normalization.

    Its distance detects regressions without downloaded weights. It does not agree with human
    ranking, so it is never called FVD.
    """
    network = I3D()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.variables():
        if name.endswith("conv_3d/w"):
            tensor.normal_(0, math.sqrt(2 / tensor[0].numel()), generator=generator)
        else:
            tensor.fill_(1.0 if name.endswith("moving_variance") else 0.0)
    return network.eval()


def load_i3d(path: str) -> I3D:
    """Load the FVD network from its TensorFlow checkpoint data file.

    Raises:
        ConfigError: no such file, or a file other than the FVD checkpoint.
    """
    if not Path(path).is_file():
        raise ConfigError(path or "fvd", "no I3D weights", "set VIDEOAR_I3D_WEIGHTS")
    data = Path(path).read_bytes()
    check_identity(data, path)
    return read_bundle(data)


def check_identity(data: bytes, where: str) -> None:
    """Raise unless the bytes are the one checkpoint that defines FVD.

    Raises:
        ConfigError: size or git blob id differ.
    """
    hint = "FVD needs kinetics-i3d rgb_scratch/model.ckpt.data-00000-of-00001"
    if len(data) != NUM_BYTES:
        raise ConfigError(where, f"{len(data)} bytes, not {NUM_BYTES}", hint)
    header = f"blob {len(data)}\0".encode()
    # SHA-1 as git computes a blob id, so that the id can be looked up in the published repository.
    blob = hashlib.sha1(header + data, usedforsecurity=False).hexdigest()
    if blob != FVD_BLOB:
        what = _OTHER_CHECKPOINTS.get(blob, "unknown content")
        raise ConfigError(where, f"this is {what} (git blob {blob[:12]}), not rgb_scratch", hint)


def read_bundle(data: bytes) -> I3D:
    """Return the network with variables read in the layout of the published checkpoint."""
    network, offset = I3D(), 0
    for _, tensor in network.variables():
        flat = np.frombuffer(data, dtype="<f4", count=tensor.numel(), offset=offset)
        offset += flat.nbytes
        # Copied, because PyTorch has no read-only tensors and the buffer of `bytes` is read-only.
        tensor.copy_(_torch_layout(torch.from_numpy(flat.copy()), tensor))
    return network.eval()


def _torch_layout(flat: Tensor, like: Tensor) -> Tensor:
    """Permute [t, h, w, in, out] to [out, in, t, h, w]; return vectors unchanged."""
    if like.ndim == 1:
        return flat
    out, width_in, *kernel = like.shape
    return flat.reshape(*kernel, width_in, out).permute(4, 3, 0, 1, 2)
