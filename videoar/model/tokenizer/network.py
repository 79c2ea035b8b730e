"""The causal 3D video tokenizer: pixels to latents to bits, and back.

The one idea: encoder and decoder are causal in time, so latent frame 0 stands for pixel frame 0 and
every later latent frame for the next `time_stride` pixel frames, never for anything after them. An
image is a video of one frame, a long video is a stream of chunks, and both give exactly what the
whole video gives. The quantizer between the two (`MultiScaleBSQ`) works on single latent frames.

Shape suffixes: B batch, T frames (pixel or latent), H W height and width, C channels, K bits.
Source: arXiv 2601.05966 section 4.1 and appendix A.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from videoar.core.errors import ConfigError
from videoar.model.tokenizer.causal_conv import (
    Carry,
    CausalConv3d,
    Downsample,
    FrameNorm,
    ResBlock,
    Upsample,
)
from videoar.model.tokenizer.config import TokenizerConfig
from videoar.model.tokenizer.quantizer import MultiScaleBSQ


class _Encoder(nn.Module):
    """Levels of residual blocks, each but the last followed by its downsampling."""

    def __init__(self, cfg: TokenizerConfig) -> None:
        super().__init__()
        widths = [cfg.base_width * multiplier for multiplier in cfg.multipliers]
        kernel, width = cfg.time_kernel, widths[0]
        self.conv_in = CausalConv3d(3 * cfg.patch_px**2, width, kernel)
        self.layers = nn.ModuleList()
        for level, next_width in enumerate(widths):
            for _ in range(cfg.num_res_blocks):
                self.layers.append(ResBlock(width, next_width, kernel, cfg.norm_groups))
                width = next_width
            if level in (*cfg.space_downs, *cfg.time_downs):
                self.layers.append(Downsample(width, cfg.resampling(level)))
        for _ in range(2 * cfg.infinity_layout):
            self.layers.append(ResBlock(width, width, kernel, cfg.norm_groups))
        self.norm_out = FrameNorm(width, cfg.norm_groups)
        self.conv_out = CausalConv3d(width, cfg.num_bits, kernel)

    def forward(self, x_BCTHW: Tensor, carry: Carry | None) -> Tensor:
        x_BCTHW = self.conv_in(x_BCTHW, carry)
        for layer in self.layers:
            x_BCTHW = layer(x_BCTHW, carry)
        return self.conv_out(F.silu(self.norm_out(x_BCTHW)), carry)


class _Decoder(nn.Module):
    """The encoder backwards."""

    def __init__(self, cfg: TokenizerConfig) -> None:
        super().__init__()
        widths = [cfg.base_width * multiplier for multiplier in cfg.multipliers]
        kernel, width = cfg.time_kernel, widths[-1]
        self.conv_in = CausalConv3d(cfg.num_bits, width, kernel)
        self.layers = nn.ModuleList()
        for _ in range(2 * cfg.infinity_layout):
            self.layers.append(ResBlock(width, width, kernel, cfg.norm_groups))
        for level, next_width in reversed(list(enumerate(widths))):
            if level in (*cfg.space_downs, *cfg.time_downs):
                self.layers.append(Upsample(width, cfg.resampling(level)))
            for _ in range(cfg.num_res_blocks + cfg.infinity_layout):
                self.layers.append(ResBlock(width, next_width, kernel, cfg.norm_groups))
                width = next_width
        self.norm_out = FrameNorm(width, cfg.norm_groups)
        self.conv_out = CausalConv3d(width, 3 * cfg.patch_px**2, kernel)

    def forward(self, x_BCTHW: Tensor, carry: Carry | None) -> Tensor:
        x_BCTHW = self.conv_in(x_BCTHW, carry)
        for layer in self.layers:
            x_BCTHW = layer(x_BCTHW, carry)
        return self.conv_out(F.silu(self.norm_out(x_BCTHW)), carry)


class VideoTokenizer(nn.Module):
    """Encoder, multi-scale bitwise quantizer and decoder.

    Args:
        cfg: shape of the network.
    """

    def __init__(self, cfg: TokenizerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = _Encoder(cfg)
        self.decoder = _Decoder(cfg)
        self.quantizer = MultiScaleBSQ(cfg.num_bits, cfg.scales)

    def encode(self, video_B3THW: Tensor, carry: Carry | None = None) -> Tensor:
        """Return the latents of a video, an image (T = 1) or the next chunk of a stream.

        Args:
            video_B3THW: values in [-1, 1]; T is 1 + a multiple of the time stride, and a plain
                multiple for every chunk after a stream's first.
            carry: state of the stream, filled in place; None for a whole video.

        Returns:
            latent_BKTHW.

        Raises:
            ValueError: size or length does not fit.
        """
        frames = video_B3THW.shape[2]
        if tuple(video_B3THW.shape[-2:]) != self.cfg.size_px:
            found = "x".join(map(str, video_B3THW.shape[-2:]))
            raise ValueError(f"a {found} px video does not fit a tokenizer for {self.cfg.size_px}")
        self.cfg.num_latent_frames(frames + 1 if carry else frames)
        return self.encoder(_fold(video_B3THW, self.cfg.patch_px), carry)

    def decode(self, latent_BKTHW: Tensor, carry: Carry | None = None) -> Tensor:
        """Return the video [B, 3, T, H, W], about [-1, 1], of latents or of a stream's next."""
        return _unfold(self.decoder(latent_BKTHW, carry), self.cfg.patch_px)

    def encode_chunks(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode a video of any length, given in parts as `encode` takes them.

        The latents are those of the whole video; memory is that of one part and a few frames.
        """
        carry: Carry = {}
        for chunk_B3THW in chunks:
            yield self.encode(chunk_B3THW, carry)

    def decode_chunks(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode latents of any length, given in parts of whole latent frames."""
        carry: Carry = {}
        for chunk_BKTHW in chunks:
            yield self.decode(chunk_BKTHW, carry)

    def tokenize(self, video_B3THW: Tensor) -> list[Tensor]:
        """Return the bits of a video: per scale bool [B, T, h, w, K]."""
        return self.quantizer.encode(self.encode(video_B3THW))

    def detokenize(self, bits: Sequence[Tensor]) -> Tensor:
        """Return the video of bits."""
        return self.decode(self.quantizer.decode(list(bits)))

    def for_size(self, height_px: int, width_px: int) -> "VideoTokenizer":
        """Return this network for videos of another size: the same weights, not a copy of them.

        Only the quantizer knows the size, and it has no weights.

        Raises:
            ValueError: the size is no multiple of the space stride.
        """
        cfg = self.cfg.for_size(height_px, width_px)
        if cfg is self.cfg:
            return self
        other = copy(self)
        other.cfg = cfg
        other._modules = {**self._modules, "quantizer": MultiScaleBSQ(cfg.num_bits, cfg.scales)}
        return other

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self.parameters())


def _fold(video_BCTHW: Tensor, patch_px: int) -> Tensor:
    """Move squares of pixels into channels (channel, row, column)."""
    batch, channels, frames, height, width = video_BCTHW.shape
    x = video_BCTHW.reshape(
        batch, channels, frames, height // patch_px, patch_px, width // patch_px, patch_px
    )
    x = x.permute(0, 1, 4, 6, 2, 3, 5)
    return x.reshape(batch, -1, frames, height // patch_px, width // patch_px)


def _unfold(x_BCTHW: Tensor, patch_px: int) -> Tensor:
    """Undo `_fold`."""
    batch, channels, frames, height, width = x_BCTHW.shape
    x = x_BCTHW.reshape(batch, channels // patch_px**2, patch_px, patch_px, frames, height, width)
    x = x.permute(0, 1, 4, 5, 2, 6, 3)
    return x.reshape(batch, -1, frames, height * patch_px, width * patch_px)


@torch.no_grad()
def inflate(
    tokenizer: VideoTokenizer,
    image_weights: Mapping[str, Tensor],
    *,
    rest: Literal["zeros", "random"] = "zeros",
    fresh: Sequence[str] = (),
) -> None:
    """Load an image tokenizer's weights: each 2D kernel becomes the last slice in time.

    With `rest="zeros"` an image, and every frame of a static video, is treated exactly as the image
    tokenizer treats it. The paper leaves the other slices random (`rest="random"`).

    Args:
        tokenizer: changed in place.
        image_weights: state dict of a `VideoTokenizer` with `cfg.as_image()`; kernels may also be
            plain 2D [out, in, h, w]. See `load_image_weights`.
        rest: what the earlier slices are.
        fresh: prefixes of weights that keep their random start, e.g. because the number of bits
            differs (`encoder.conv_out`, `decoder.conv_in`).

    Raises:
        ValueError: a weight is missing or has another shape.
    Source: arXiv 2601.05966 appendix A.
    """
    for name, weight in tokenizer.named_parameters():
        if name.startswith(tuple(fresh)):
            continue
        image = image_weights.get(name)
        if image is None:
            raise ValueError(f"the image tokenizer has no {name}; list it in `fresh`")
        last = weight[:, :, -1] if weight.ndim == 5 else weight
        image = image.squeeze(2) if image.ndim == 5 else image
        if image.shape != last.shape:
            raise ValueError(f"{name} is {tuple(image.shape)}, not {tuple(last.shape)}")
        if weight.ndim == 5 and weight.shape[2] > 1:
            earlier = weight[:, :, :-1]
            earlier.zero_() if rest == "zeros" else nn.init.kaiming_uniform_(earlier, a=5**0.5)
        last.copy_(image)


def load_image_weights(path: Path, cfg: TokenizerConfig) -> dict[str, Tensor]:
    """Read the weights that `inflate` takes: a safetensors file with our names or Infinity's.

    Raises:
        ConfigError: the file is not there, or is something else.
    """
    hint = "weights are read as .safetensors; a pickled .pth has to be saved anew"
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(str(path), f"holds no image tokenizer: {error}", hint) from error
    plain = {_WRAPPERS.sub(r"\1", name): weight for name, weight in weights.items()}
    theirs = [name for name in plain if name.startswith(("encoder.down.", "decoder.up."))]
    if not theirs:
        return weights
    if foreign := sorted(name for name in plain if ".attn" in name):
        raise ConfigError(str(path), f"has attention ({foreign[0]}), this network has none")
    if not cfg.infinity_layout:
        hint = "set infinity_layout: true"
        raise ConfigError(str(path), f"is laid out as Infinity's ({theirs[0]})", hint)
    names = dict(_infinity_names(cfg))
    ours = {}
    for name, weight in plain.items():
        layer, _, rest = name.replace(".nin_shortcut.", ".shortcut.").rpartition(".")
        for prefix in (layer, layer.rpartition(".")[0]):
            if prefix in names:
                ours[f"{names[prefix]}{layer[len(prefix) :]}.{rest}"] = weight
    return ours


_WRAPPERS = re.compile(r"(?:\.conv|\.norm)+(\.(?:weight|bias))$")
"""Infinity wraps each convolution and norm in a module of its own; others of its kind do not."""


def _infinity_names(cfg: TokenizerConfig) -> Iterator[tuple[str, str]]:
    """Yield Infinity's and our name of each layer."""
    halves = {*cfg.space_downs, *cfg.time_downs}
    levels = range(len(cfg.multipliers))
    mid = ["mid.block_1", "mid.block_2"]
    down, up = [], list(mid)
    for level in levels:
        down += [f"down.{level}.block.{block}" for block in range(cfg.num_res_blocks)]
        down += [f"down.{level}.downsample"] * (level in halves)
    for level in reversed(levels):
        up += [f"up.{level + 1}.upsample"] * (level in halves)
        up += [f"up.{level}.block.{block}" for block in range(cfg.num_res_blocks + 1)]
    for half, layers in (("encoder", [*down, *mid]), ("decoder", up)):
        for name in ("conv_in", "norm_out", "conv_out"):
            yield f"{half}.{name}", f"{half}.{name}"
        for number, name in enumerate(layers):
            is_resampling = name.endswith("sample")
            yield f"{half}.{name}", f"{half}.layers.{number}" + ".conv" * is_resampling


def video_from_frames(frames_BTHWC: Tensor) -> Tensor:
    """Return uint8 RGB frames as video_B3THW in [-1, 1]."""
    return frames_BTHWC.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def frames_from_video(video_B3THW: Tensor) -> Tensor:
    """Return a video as uint8 RGB frames [B, T, H, W, C]; values outside [-1, 1] are clipped."""
    levels = (video_B3THW.permute(0, 2, 3, 4, 1) + 1) * 127.5
    return levels.round().clamp(0, 255).to(torch.uint8)
