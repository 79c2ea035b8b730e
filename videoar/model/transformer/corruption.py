"""Cross-Frame Error Correction: train on histories with the errors that sampling will make.

One idea: flip bits of the history and let later labels repair the damage. The flip probability
grows with time, as errors do, and the first scale of a frame inherits the probability at which its
predecessor ended. The label of a flipped bit is the bit itself, so the model never learns noise.

B batch, T latent frames, S scales, K bits.
Source: arXiv 2601.05966 equation 8. Ours: t counts from 0, drawn per sample, all scales. (The
range in the paper's figure 3 contradicts its equation 8; this follows the equation.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar.model.transformer.config import CFECConfig


def flip_probabilities(
    shape_BTS: tuple[int, int, int], config: CFECConfig, generator: torch.Generator
) -> Tensor:
    """Draw p(t, k) of equation 8, [B, T, S]."""
    uniform = torch.rand(shape_BTS, generator=generator)
    growth = config.delta * torch.arange(shape_BTS[1]).float()[:, None]
    low, high = config.p_min + growth, config.p_max + growth
    p = (low + (high - low) * uniform).clamp(max=1.0)
    if config.inherit:
        for t in range(1, shape_BTS[1]):
            inherited, top = p[:, t - 1, -1], high[t].clamp(max=1.0)
            p[:, t, 0] = inherited + (top - inherited) * uniform[:, t, 0]
    return p


def draw_flips(
    p_BTS: Tensor, shapes: Sequence[tuple[int, int, int]], generator: torch.Generator
) -> list[Tensor]:
    """Draw which bits flip.

    Args:
        p_BTS: flip probability of each frame and scale.
        shapes: (h, w, K) of each scale.
        generator: source of randomness, on the CPU.

    Returns:
        Per scale bool [B, T, h, w, K].
    """
    batch, frames, _ = p_BTS.shape
    return [
        torch.rand(batch, frames, *shape, generator=generator) < p_BTS[:, :, k, None, None, None]
        for k, shape in enumerate(shapes)
    ]
