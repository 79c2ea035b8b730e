"""Convolution blocks that are causal in time: one network for images, clips and streams.

The one idea: a causal convolution needs nothing of the past but its own last inputs. On a whole
video it pads zeros on the left; on a stream it takes those inputs from a `Carry`, and the result is
the same. Normalisation has statistics per frame: anything pooled over time would break this.

    kernel 3, a stream in chunks of 2 frames; (0) is padding, [x] is carried from the chunk before

    chunk 1    (0) (0)  a   b     ->  A B      carry [a b]
    chunk 2    [a] [b]  c   d     ->  C D      carry [c d]

Shape suffixes: B batch, C channels, T frames (of any level), H W height and width.
Source: arXiv 2601.05966 section 4.1; block layout of FoundationVision/Infinity's flux-style VAE.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.model.tokenizer.config import Resampling

Carry = dict[nn.Module, Tensor]
"""Last inputs of each layer of one stream. A stream starts with an empty dict; layers fill it."""


class CausalConv3d(nn.Conv3d):
    """3D convolution with zeros on the left of time and symmetric zeros in space.

    Frame j of the output depends on frames up to `j * time_stride` of the input. Initial weights
    are those of an inflated image network: zero but for the last slice in time.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        time_kernel: extent in time.
        space_kernel: extent in space, odd.
        time_stride: 2 maps 1 + 2m frames to 1 + m.
        space_stride: stride in height and width.
        pad_end: pad space only on the right and at the bottom, for a stride of 2 (Infinity).
    """

    def __init__(  # noqa: PLR0913 - those of a convolution
        self,
        in_channels: int,
        out_channels: int,
        time_kernel: int = 3,
        space_kernel: int = 3,
        *,
        time_stride: int = 1,
        space_stride: int = 1,
        pad_end: bool = False,
    ) -> None:
        border = 0 if pad_end else space_kernel // 2
        super().__init__(
            in_channels,
            out_channels,
            (time_kernel, space_kernel, space_kernel),
            stride=(time_stride, space_stride, space_stride),
            padding=(0, border, border),
        )
        self._end = space_kernel // 2 if pad_end else 0
        with torch.no_grad():
            # The initialisation of torch's Conv2d, with the fan of the one slice that is used.
            nn.init.kaiming_uniform_(self.weight[:, :, -1:], a=5**0.5)
            self.weight[:, :, :-1] = 0

    def forward(self, x_BCTHW: Tensor, carry: Carry | None = None) -> Tensor:
        """Convolve a whole video, or the next frames of the stream of `carry`."""
        history = self.kernel_size[0] - 1
        if self._end:
            x_BCTHW = F.pad(x_BCTHW, (0, self._end, 0, self._end))
        if carry is not None and self in carry:
            x_BCTHW = torch.cat([carry[self], x_BCTHW], dim=2)
        elif history:
            x_BCTHW = F.pad(x_BCTHW, (0, 0, 0, 0, history, 0))
        if carry is not None:
            # With stride 2 the next window starts 2 frames later, so one frame less is shared.
            overlap = self.kernel_size[0] - self.stride[0]
            # A copy: a view would keep the whole input alive, in every layer.
            carry[self] = x_BCTHW[:, :, x_BCTHW.shape[2] - overlap :].clone()
        return super().forward(x_BCTHW)


class FrameNorm(nn.GroupNorm):
    """Group normalisation with statistics per frame."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Normalise over the channels of a group and space."""
        batch, channels, frames, height, width = x_BCTHW.shape
        x_NCHW = x_BCTHW.transpose(1, 2).reshape(batch * frames, channels, height, width)
        x_NCHW = super().forward(x_NCHW)
        return x_NCHW.reshape(batch, frames, channels, height, width).transpose(1, 2)


class ResBlock(nn.Module):
    """Pre-norm residual block: twice norm, SiLU, convolution."""

    def __init__(self, in_channels: int, out_channels: int, time_kernel: int, groups: int) -> None:
        super().__init__()
        self.norm1 = FrameNorm(in_channels, groups)
        self.conv1 = CausalConv3d(in_channels, out_channels, time_kernel)
        self.norm2 = FrameNorm(out_channels, groups)
        self.conv2 = CausalConv3d(out_channels, out_channels, time_kernel)
        nn.init.zeros_(self.conv2.weight)  # starts as the identity: faster first steps
        self.shortcut = (
            CausalConv3d(in_channels, out_channels, 1, 1) if in_channels != out_channels else None
        )

    def forward(self, x_BCTHW: Tensor, carry: Carry | None = None) -> Tensor:
        """Return the input plus the block's residual."""
        y_BCTHW = self.conv1(F.silu(self.norm1(x_BCTHW)), carry)
        y_BCTHW = self.conv2(F.silu(self.norm2(y_BCTHW)), carry)
        return y_BCTHW + (x_BCTHW if self.shortcut is None else self.shortcut(x_BCTHW))


class Downsample(nn.Module):
    """Strided causal convolution: 1 + 2m frames to 1 + m, half the height and width, or both."""

    def __init__(self, channels: int, how: Resampling) -> None:
        super().__init__()
        self.conv = CausalConv3d(
            channels,
            channels,
            *how.kernel,
            time_stride=1 + how.time,
            space_stride=1 + how.space,
            pad_end=how.pad_end,
        )

    def forward(self, x_BCTHW: Tensor, carry: Carry | None = None) -> Tensor:
        """Return the smaller video."""
        return self.conv(x_BCTHW, carry)


class Upsample(nn.Module):
    """Repeat, then convolve: 1 + m frames to 1 + 2m, twice the height and width, or both.

    The first frame of a video becomes one frame, every other frame two.
    """

    def __init__(self, channels: int, how: Resampling) -> None:
        super().__init__()
        self.how = how
        self.conv = CausalConv3d(channels, channels, *how.kernel)

    def forward(self, x_BCTHW: Tensor, carry: Carry | None = None) -> Tensor:
        """Return the larger video."""
        is_start = carry is None or self.conv not in carry
        if self.how.time:
            x_BCTHW = x_BCTHW.repeat_interleave(2, dim=2)
            # Drop the first copy of frame 0: it would precede the first frame of the video.
            x_BCTHW = x_BCTHW[:, :, 1:] if is_start else x_BCTHW
        if self.how.space:
            x_BCTHW = F.interpolate(x_BCTHW, scale_factor=(1, 2, 2), mode="nearest")
        return self.conv(x_BCTHW, carry)
