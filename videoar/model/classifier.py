"""A small 3D convolutional classifier of clips, whose features measure distances within a domain.

Features of a network that was trained on the labels of a corpus separate what its classes are made
of, motion included. They mean nothing on another corpus, so a distance of them is named with the
digest of the weights.

Shape suffixes: B batch, T frames, H W height and width, C channels, D features, K classes.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from videoar.core.types import Frozen


class ClassifierConfig(Frozen):
    """Shape of the network."""

    classes: tuple[str, ...] = Field(min_length=2)
    """Labels, sorted."""
    width: int = Field(default=24, ge=8, multiple_of=8)
    """Channels of the first layer; the last has eight times as many, which are the features."""
    size_px: int = Field(default=64, ge=16)
    """Clips are resized to this height and width."""
    num_frames: int = Field(default=16, ge=8)
    """First frames of a clip that are read; the last frame of a shorter clip is repeated."""


class ClipClassifier(nn.Module):
    """Four strided convolutions, the mean over positions, a linear layer.

    Group normalization: the features of a clip do not depend on the others of its batch.
    """

    def __init__(self, cfg: ClassifierConfig) -> None:
        super().__init__()
        self.cfg = cfg
        widths = [3, cfg.width, 2 * cfg.width, 4 * cfg.width, 8 * cfg.width]
        strides = [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
        self.trunk = nn.Sequential()
        for width_in, width, stride in zip(widths, widths[1:], strides, strict=False):
            self.trunk.append(nn.Conv3d(width_in, width, 3, stride, padding=1, bias=False))
            self.trunk.append(nn.GroupNorm(8, width))
            self.trunk.append(nn.ReLU())
        self.head = nn.Linear(widths[-1], len(cfg.classes))

    def forward(self, frames_BTHWC: Tensor) -> Tensor:
        """Return logits [B, K] of RGB frames, uint8."""
        logits_BK: Tensor = self.head(self.features(frames_BTHWC))
        return logits_BK

    def features(self, frames_BTHWC: Tensor) -> Tensor:
        """Return features [B, D] of RGB frames, uint8, of any size and length."""
        cfg, batch = self.cfg, len(frames_BTHWC)
        frames = frames_BTHWC[:, : cfg.num_frames]
        images = rearrange(frames, "b t h w c -> (b t) c h w").float() / 127.5 - 1
        images = F.interpolate(images, (cfg.size_px, cfg.size_px), mode="bilinear", antialias=True)
        video_BCTHW = rearrange(images, "(b t) c h w -> b c t h w", b=batch)
        missing = cfg.num_frames - video_BCTHW.shape[2]
        video_BCTHW = F.pad(video_BCTHW, (0, 0, 0, 0, 0, missing), mode="replicate")
        maps_BDthw: Tensor = self.trunk(video_BCTHW)
        return maps_BDthw.mean(dim=(2, 3, 4))

    def loss(self, frames_BTHWC: Tensor, label_B: Tensor) -> Tensor:
        """Return the cross entropy, mean over the batch."""
        return F.cross_entropy(self(frames_BTHWC), label_B)

    @torch.no_grad()
    def predict(self, frames_BTHWC: Tensor) -> Tensor:
        """Return the number of the likeliest class of each clip, [B]."""
        return self(frames_BTHWC).argmax(dim=1)
