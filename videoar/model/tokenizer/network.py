"""The causal 3D video tokenizer: pixels to latents to bits, and back.

The one idea: encoder and decoder are causal in time, so latent frame 0 depends on pixel frame 0
alone and every later latent frame on the next `time_stride` pixel frames and those before them. An
image is a video of one frame, a long video is a stream of chunks, and the latents of both are
exactly those of the whole video. The quantizer (`MultiScaleBSQ`) works on single latent frames.

    time_stride 4    pixel frames   0   1 2 3 4   5 6 7 8   ...
                     latent frame   0   1         2

Shape suffixes: B batch, T frames (pixel or latent), H W height and width, C channels, K bits.
Source: arXiv 2601.05966 section 4.1 and appendix A.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

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
    """Levels of residual blocks, each but the last followed by its downsampling.

    All layers are one flat list: their numbers are the names of the weights in published models.
    """

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


CHUNK_PIXELS = 1 << 21
"""Pixels of a clip to process at a time. Chosen: 128 frames of 128 x 128 px, 8 of 384 x 672 px."""


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
            size = "x".join(map(str, video_B3THW.shape[-2:]))
            raise ValueError(f"a {size} px video does not fit a tokenizer for {self.cfg.size_px}")
        # A later chunk has m * stride frames: with the stream's first frame that is 1 + m * stride.
        self.cfg.num_latent_frames(frames + 1 if carry else frames)
        return self.encoder(_fold(video_B3THW, self.cfg.patch_px), carry)

    def decode(self, latent_BKTHW: Tensor, carry: Carry | None = None) -> Tensor:
        """Return the video of latents, or of the next latents of a stream.

        Returns:
            video_B3THW, in about [-1, 1].
        """
        return _unfold(self.decoder(latent_BKTHW, carry), self.cfg.patch_px)

    def encode_chunks(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the latents of a video of any length, given in parts as `encode` takes them.

        They are those of the whole video, in the memory of one part and a few frames.
        """
        carry: Carry = {}
        for chunk_B3THW in chunks:
            yield self.encode(chunk_B3THW, carry)

    def decode_chunks(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the video of latents of any length, given in parts of whole latent frames."""
        return map(StreamDecoder(self), chunks)

    def tokenize(self, video_B3THW: Tensor) -> list[Tensor]:
        """Return the bits of a video: per scale bool [B, T, h, w, K]."""
        return self.quantizer.encode(self.encode(video_B3THW))

    def detokenize(self, bits: Sequence[Tensor], chunk_pixels: int = CHUNK_PIXELS) -> Tensor:
        """Return the video of bits.

        It is decoded in parts, so that only the result grows with its length and with the number
        of samples, not the activations.

        Args:
            bits: per scale bool [B, T, h, w, K].
            chunk_pixels: pixels of a part, rounded down to whole latent frames.
        """
        latent_BKTHW = self.quantizer.decode(list(bits))
        chunks = latent_BKTHW.split(self.cfg.latent_frames_in(chunk_pixels), dim=2)
        return torch.cat([*map(StreamDecoder(self, chunk_pixels), chunks)], dim=2)

    def for_size(self, height_px: int, width_px: int) -> "VideoTokenizer":
        """Return this network for videos of another size; both share their weights.

        Only the quantizer depends on the size, and it has no weights.

        Raises:
            ValueError: the size is no multiple of the space stride.
        """
        cfg = self.cfg.for_size(height_px, width_px)
        if cfg is self.cfg:
            return self
        # A shallow copy shares `_modules` with the original, so replace the dict, not its entry.
        resized = copy(self)
        resized.cfg = cfg
        resized._modules = {**self._modules, "quantizer": MultiScaleBSQ(cfg.num_bits, cfg.scales)}
        return resized

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self.parameters())


class StreamDecoder:
    """Decodes a stream of latents, few samples at a time.

    Args:
        tokenizer: the network.
        chunk_pixels: pixels to decode at a time, at least those of one sample's part.
    """

    def __init__(self, tokenizer: VideoTokenizer, chunk_pixels: int = CHUNK_PIXELS) -> None:
        self._tokenizer, self._chunk_pixels = tokenizer, chunk_pixels
        self._rows: int | None = None
        self._carries: list[Carry] = []

    def __call__(self, latent_BKTHW: Tensor) -> Tensor:
        """Return the video of the next latents, in about [-1, 1]."""
        if self._rows is None:  # once, as each group of samples has its own state
            most = self._tokenizer.cfg.latent_frames_in(self._chunk_pixels)
            self._rows = max(1, most // latent_BKTHW.shape[2])
            self._carries = [{} for _ in latent_BKTHW.split(self._rows)]
        parts = zip(latent_BKTHW.split(self._rows), self._carries, strict=True)
        return torch.cat([self._tokenizer.decode(part, carry) for part, carry in parts])


def _fold(video_BCTHW: Tensor, patch_px: int) -> Tensor:
    """Move squares of pixels into channels, in the order channel, row, column."""
    return rearrange(
        video_BCTHW, "b c t (h ph) (w pw) -> b (c ph pw) t h w", ph=patch_px, pw=patch_px
    )


def _unfold(x_BCTHW: Tensor, patch_px: int) -> Tensor:
    """Undo `_fold`."""
    return rearrange(x_BCTHW, "b (c ph pw) t h w -> b c t (h ph) (w pw)", ph=patch_px, pw=patch_px)


def video_from_frames(frames_BTHWC: Tensor) -> Tensor:
    """Return uint8 RGB frames as video_B3THW in [-1, 1]."""
    return frames_BTHWC.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def frames_from_video(video_B3THW: Tensor) -> Tensor:
    """Return a video as uint8 RGB frames [B, T, H, W, C]; values outside [-1, 1] are clipped."""
    levels = (video_B3THW.permute(0, 2, 3, 4, 1) + 1) * 127.5
    return levels.round().clamp(0, 255).to(torch.uint8)
