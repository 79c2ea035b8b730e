"""Cross-Frame Error Correction (CFEC): train on histories with errors like those of sampling.

One idea: flip bits of the history; labels of later scales and frames are computed from the damaged
latent and so correct the damage (`MultiScaleBSQ.pyramid`). The flip probability grows with time, as
errors of sampling do, and the first scale of a frame starts at least at the probability of the last
scale of the frame before. The label of a flipped bit is the unflipped bit: the model is not trained
to predict noise.

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
    """Draw the flip probability p(t, k) of each frame and scale (equation 8), [B, T, S]."""
    uniform = torch.rand(shape_BTS, generator=generator)
    growth = config.delta * torch.arange(shape_BTS[1]).float()[:, None]
    low, high = config.p_min + growth, config.p_max + growth
    p = (low + (high - low) * uniform).clamp(max=1.0)
    if config.inherit:
        # In order of time: what frame t inherits may itself be inherited.
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
        generator: on the CPU.

    Returns:
        Per scale bool [B, T, h, w, K].
    """
    batch, frames, _ = p_BTS.shape
    return [
        torch.rand(batch, frames, *shape, generator=generator) < p_BTS[:, :, k, None, None, None]
        for k, shape in enumerate(shapes)
    ]
