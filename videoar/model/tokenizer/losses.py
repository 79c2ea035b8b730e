"""Terms of the tokenizer's loss: reconstruction and perceptual.

The one idea: every term is a mean over single frames, so an image and a video have equal weight.
The whole loss is `rec + perc + GAN + commit + entropy`; the last two are in `quantizer`, the
adversarial term in `discriminator`.

Shape suffixes: B batch, T frames, N images, C channels, H W height and width.
Source: arXiv 2601.05966 equation 4. The paper gives no weights.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.model.tokenizer.config import LossWeights
from videoar.model.tokenizer.lpips import normalize_features


class FeatureNet(Protocol):
    """Maps images_N3HW in [-1, 1] to feature maps [N, C, h, w] of several depths.

    Features are ready to be compared: scaled to unit length, and weighted if there are weights.
    """

    def __call__(self, images_N3HW: Tensor) -> Sequence[Tensor]:
        """Return the feature maps, shallow first."""
        ...


class RandomFeatures(nn.Module):
    """A frozen convolutional net with random weights: a perceptual net without a download.

    Args:
        seed: of the weights.
        width: channels of the first layer; each of the three layers doubles it.
    Source: distances of random features correlate with perception, arXiv 1801.03924 table 5
    ("random").
    """

    def __init__(self, seed: int = 0, width: int = 16) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(channels)
        )
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            # He initialisation of kernels, biases 0: activations keep their scale over the layers.
            scale = (2 / max(1, weight[0].numel())) ** 0.5 if weight.ndim == 4 else 0.0
            weight.data = scale * torch.randn(weight.shape, generator=generator)
        self.requires_grad_(requires_grad=False)

    def forward(self, images_N3HW: Tensor) -> list[Tensor]:
        """Return the three layers' activations."""
        features = [images_N3HW]
        for conv in self.convs:
            features.append(F.relu(conv(features[-1])))
        return [normalize_features(feature) for feature in features[1:]]


def pixel_loss(video_B3THW: Tensor, rebuilt_B3THW: Tensor, weights: LossWeights) -> Tensor:
    """Return the weighted absolute and squared errors, means over frames and pixels."""
    error = rebuilt_B3THW - video_B3THW
    return weights.l1 * error.abs().mean() + weights.l2 * error.square().mean()


def perceptual_loss(net: FeatureNet, video_B3THW: Tensor, rebuilt_B3THW: Tensor) -> Tensor:
    """Return the LPIPS distance, mean over frames, sum over depths.

    Source: arXiv 1801.03924 equation 1.
    """
    total = video_B3THW.new_zeros(())
    features = [net(_frames_as_images(video)) for video in (video_B3THW, rebuilt_B3THW)]
    for real, other in zip(*features, strict=True):
        total = total + (real - other).square().sum(dim=1).mean()
    return total


def psnr(video_B3THW: Tensor, rebuilt_B3THW: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of videos in [-1, 1], mean over the batch."""
    error = (rebuilt_B3THW.clamp(-1, 1) - video_B3THW) / 2
    mse_B = error.square().mean(dim=(1, 2, 3, 4)).clamp(min=1e-10)  # 100 dB for equal videos
    return (-10 * torch.log10(mse_B)).mean()


def _frames_as_images(video_B3THW: Tensor) -> Tensor:
    return video_B3THW.transpose(1, 2).flatten(0, 1)
