"""Per-frame multi-scale bitwise residual quantizer (binary spherical quantization, BSQ).

One idea: a latent frame is rebuilt coarse to fine; at every scale the *signs* of the remaining
residual are the code, so there is no codebook. Bits are canonical: latents are rebuilt from them
bit-exactly, so everything here runs in fp32. Frames are quantized independently.

    residual = latent
    for each scale:  bits     = area-downsampled residual > 0
                     code     = (2 * bits - 1) / sqrt(K)           norm 1 at every position
                     residual = residual - bilinear upsampled code

Cost: latents of small norm overshoot. A code has norm 1 whatever the residual's norm is. At norm 3
the residual falls with every scale, at norm 1 it rises again at the last ones; the encoder must
learn the norm, which training logs as `latent_norm`.

Infinity and InfinityStar L2-normalize the residual before taking signs, in the straight-through
path and in the commitment and entropy terms. This does not: validation PSNR was 30.5 dB instead of
29.7 to 30.0, and .30 of the latent's norm remained after the last scale instead of .60 to .73. A
small remainder is what error correction relies on: labels after a flip come from the residual.

B batch, T latent frames, H W latent grid, h w grid of one scale, K bits.
Source: arXiv 2601.05966 section 3; FoundationVision/Infinity `bsq_vae/multiscale_bsq.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videoar.model.schedule import Scales


@dataclass(frozen=True)
class Pyramid:
    """A latent as bits, and the latent rebuilt after each scale."""

    bits: list[Tensor]
    """Per scale: bool [B, T, h, w, K], the signs of the scale's residual."""
    accumulated: list[Tensor]
    """Per scale: float32 [B, T, K, H, W], the sum of upsampled codes up to and including it."""


@dataclass(frozen=True)
class Quantized:
    """Quantized latent and loss, for training the tokenizer."""

    latent_BKTHW: Tensor
    """Rebuilt latent, with a straight-through gradient to the encoder."""
    loss: Tensor
    """Commitment plus entropy terms, mean over scales."""
    mean_p_SK: Tensor
    """Mean soft bit per scale and bit, without gradient; 0 at a scale that was omitted."""


def resize(x_nKHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly; the identity at equal size."""
    if x_nKHW.shape[-2:] == size:
        return x_nKHW
    return F.interpolate(x_nKHW, size=size, mode="bilinear", align_corners=False)


def binary_entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats of Bernoulli(sigmoid(logits)).

    In this form it is finite, with finite gradients, for logits of any size; -p log p is not.
    """
    return F.softplus(logits) - logits * torch.sigmoid(logits)


class MultiScaleBSQ(nn.Module):
    """Quantizes latents to bits and back; has no parameters.

    Args:
        num_bits: K, the latent's channels. Source: 48 in arXiv 2601.05966 section 6.1.
        scales: grids from coarse to fine; the last one is the latent grid.
    """

    COMMIT_WEIGHT = 0.25  # Source: Infinity bsq_vae
    ENTROPY_WEIGHT = 0.1  # Source: Infinity bsq_vae
    INVERSE_TEMPERATURE = 100.0  # Source: Infinity bsq_vae

    def __init__(self, num_bits: int, scales: Scales) -> None:
        super().__init__()
        self.num_bits = num_bits
        self.scales = tuple((h, w) for h, w in scales)

    @property
    def grid(self) -> tuple[int, int]:
        """The latent grid (H, W)."""
        return self.scales[-1]

    def codes(self, bits: Tensor) -> Tensor:
        """Map bits [..., K] to float32 codes of unit norm."""
        return (bits.float() * 2 - 1) / math.sqrt(self.num_bits)

    def code_map(self, bits_BThwK: Tensor) -> Tensor:
        """Return one scale's codes upsampled to the latent grid, [B, T, K, H, W]."""
        codes = rearrange(self.codes(bits_BThwK), "b t h w k -> (b t) k h w")
        up = resize(codes, self.grid)
        return rearrange(up, "(b t) k h w -> b t k h w", b=bits_BThwK.shape[0])

    @torch.no_grad()
    def pyramid(self, latent_BKTHW: Tensor, flips: Sequence[Tensor] | None = None) -> Pyramid:
        """Quantize scale by scale, optionally with flipped bits (CFEC).

        Args:
            latent_BKTHW: continuous latent, any float dtype.
            flips: per scale bool [B, T, h, w, K]. A flipped bit enters the rebuilt latent flipped,
                so the residuals of later scales contain the correction; the returned bit, its
                label, is the unflipped one.
        Source: arXiv 2601.05966 equation 8; Infinity's bitwise self-correction.
        """
        latent = latent_BKTHW.float().transpose(1, 2)
        batch = latent.shape[0]
        accumulated = torch.zeros_like(latent)
        result = Pyramid([], [])
        for k, scale in enumerate(self.scales):
            residual = rearrange(latent - accumulated, "b t k h w -> (b t) k h w")
            is_positive = self._down(residual, scale) > 0
            bits = rearrange(is_positive, "(b t) k h w -> b t h w k", b=batch)
            accumulated = accumulated + self.code_map(bits ^ flips[k] if flips else bits)
            result.bits.append(bits)
            result.accumulated.append(accumulated)
        return result

    def encode(self, latent_BKTHW: Tensor) -> list[Tensor]:
        """Return the bits of a latent: per scale bool [B, T, h, w, K]."""
        return self.pyramid(latent_BKTHW).bits

    def accumulate(self, bits: Sequence[Tensor]) -> list[Tensor]:
        """Return the rebuilt latent after each scale, float32 [B, T, K, H, W]."""
        accumulated = [self.code_map(bits[0])]
        for scale_bits in bits[1:]:
            accumulated.append(accumulated[-1] + self.code_map(scale_bits))
        return accumulated

    def decode(self, bits: Sequence[Tensor]) -> Tensor:
        """Return the latent [B, K, T, H, W] that the bits encode."""
        return self.accumulate(bits)[-1].transpose(1, 2)

    def forward(
        self,
        latent_BKTHW: Tensor,
        kept: Sequence[bool] | None = None,
        batch_mean_p_SK: Tensor | None = None,
    ) -> Quantized:
        """Quantize with a straight-through gradient, for training the tokenizer.

        Args:
            latent_BKTHW: continuous latent.
            kept: which scales take part, all by default. If late ones are omitted at random, early
                ones carry more. Source: "stochastic quantizer depth", arXiv 2511.04675.
            batch_mean_p_SK: `mean_p_SK` of the global batch that this is a part of. The entropy of
                a mean is not the mean of entropies; given this, the gradients of parts add up to
                that of the batch.
        """
        # fp32: bits are signs of small differences, which bf16 rounds to either side.
        with torch.autocast(latent_BKTHW.device.type, enabled=False):
            batch = latent_BKTHW.shape[0]
            latent = rearrange(latent_BKTHW.float(), "b k t h w -> (b t) k h w")
            rebuilt = torch.zeros_like(latent)
            loss = latent.new_zeros(())
            mean_p_SK = latent.new_zeros((len(self.scales), self.num_bits))
            for k, scale in enumerate(self.scales):
                if kept is not None and not kept[k]:
                    continue
                # Detached: a scale's loss trains the latent, not the codes of earlier scales.
                z = self._down(latent - rebuilt.detach(), scale)
                code = torch.where(z > 0, 1.0, -1.0) / math.sqrt(self.num_bits)
                # Straight-through: z - z.detach() is exactly 0, so the value is that of the code.
                rebuilt = rebuilt + resize(code + (z - z.detach()), self.grid)
                of_batch = None if batch_mean_p_SK is None else batch_mean_p_SK[k]
                penalty, mean_p_SK[k] = self._penalty(z, code, of_batch)
                loss = loss + penalty
        latent_BKTHW = rearrange(rebuilt, "(b t) k h w -> b k t h w", b=batch)
        num_kept = len(self.scales) if kept is None else sum(kept)
        return Quantized(latent_BKTHW, loss / num_kept, mean_p_SK)

    @staticmethod
    def _down(residual_nKHW: Tensor, scale: tuple[int, int]) -> Tensor:
        # Area interpolation; the identity at the latent grid.
        return F.adaptive_avg_pool2d(residual_nKHW, scale)

    def _penalty(
        self, z_nKhw: Tensor, code_nKhw: Tensor, batch_mean_p_K: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the commitment and entropy terms, and the mean soft bits without gradient.

        Commitment pulls residuals to their codes. The entropy term lowers that of single bits and
        raises that of their mean: each bit is decided, and both values are used equally often. For
        independent bits the entropy over the 2^K codes is the sum over K bits.

        Source: Infinity and InfinityStar (arXiv 2511.04675).
        """
        # Soft bit, the probability of the code -c with c = 1 / sqrt(K) at inverse temperature t:
        # exp(-t(z + c)^2) / (exp(-t(z + c)^2) + exp(-t(z - c)^2)) = sigmoid(-4tzc).
        logits = -4 * z_nKhw * self.INVERSE_TEMPERATURE / math.sqrt(self.num_bits)
        mean_p = torch.sigmoid(logits).mean(dim=(0, 2, 3))
        own_mean_p = mean_p.detach()
        if batch_mean_p_K is not None:
            mean_p = batch_mean_p_K + (mean_p - own_mean_p)  # value of the batch, own gradient
        per_sample = binary_entropy(logits).mean(dim=(0, 2, 3)).sum()
        per_codebook = binary_entropy(torch.logit(mean_p, eps=1e-6)).sum()  # eps: mean_p may be 0
        entropy = (per_sample - per_codebook) / self.INVERSE_TEMPERATURE
        commit = F.mse_loss(z_nKhw, code_nKhw)
        return self.COMMIT_WEIGHT * commit + self.ENTROPY_WEIGHT * entropy, own_mean_p
