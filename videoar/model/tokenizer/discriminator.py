"""The tokenizer's discriminator: a 3D PatchGAN with hinge losses and LeCAM regularisation.

The one idea: it scores overlapping blocks of space and time, each by itself, so it discriminates by
texture and flicker, not by content. LeCAM penalises scores far from the running mean of the other
side, which keeps the discriminator from overfitting when there is little data.

Shape suffixes: B batch, T frames, H W height and width.
Source: arXiv 2601.05966 equation 4; PatchGAN arXiv 1611.07004; LeCAM arXiv 2104.03310 equation 5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Score every block of a video.

    Args:
        width: channels of the first layer.
        num_downs: strided layers; each halves height and width, all but the first also time.
    """

    def __init__(self, width: int = 64, num_downs: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i in range(num_downs):
            out = width * min(2**i, 8)
            stride = (2 if i else 1, 2, 2)  # excerpts have few frames: time is halved less often
            layers.append(nn.Conv3d(channels, out, (3, 4, 4), stride, padding=1))
            # One group: batch statistics would couple real and rebuilt videos and the parts.
            layers += [nn.GroupNorm(1, out)] if i else []
            layers.append(nn.LeakyReLU(0.2))
            channels = out
        layers.append(nn.Conv3d(channels, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, video_B3THW: Tensor) -> Tensor:
        """Return logits [B, 1, t, h, w] in fp32, positive for real.

        The last layer never runs in bf16: on CPUs, torch 2.13 then returns uninitialised memory in
        the gradient of its weight for inputs of two frames (time padded by the convolution itself,
        stride 1).
        """
        features = self.layers[:-1](video_B3THW)
        with torch.autocast(video_B3THW.device.type, enabled=False):
            logits: Tensor = self.layers[-1](features.float())
        return logits


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the discriminator's loss: 0 if real scores are above 1 and fake scores below -1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """Return the tokenizer's adversarial term: the negative mean score."""
    return -fake_logits.mean()


class LeCam(nn.Module):
    """Running means of the discriminator's scores, and the penalty of scores far above or below.

    The penalty of a step uses the means of the steps before it, so that it is the same for a batch
    as a whole, in parts or on several ranks; `update` then adds the batch's own means.

    Args:
        decay: of the means. Source: 0.999 in arXiv 2104.03310's code.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.real: Tensor
        self.fake: Tensor
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Return the penalty, a mean over scores: equation 5 of arXiv 2104.03310."""
        above = F.relu(real_logits - self.fake).square().mean()
        below = F.relu(self.real - fake_logits).square().mean()
        return above + below

    @torch.no_grad()
    def update(self, real_mean: Tensor, fake_mean: Tensor) -> None:
        """Update the running means by a batch's mean scores."""
        self.real.lerp_(real_mean, 1 - self.decay)
        self.fake.lerp_(fake_mean, 1 - self.decay)
