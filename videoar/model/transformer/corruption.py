"""Cross-Frame Error Correction (CFEC): train on histories with errors like those of sampling.

One idea: flip bits of the history; labels of later scales and frames are computed from the damaged
latent and so correct the damage (`MultiScaleBSQ.pyramid`). The flip probability grows with time, as
errors of sampling do, and the first scale of a frame starts at least at the probability of the last
scale of the frame before. The label of a flipped bit is the unflipped bit: the model is not trained
to predict noise.

Probabilities are integers in units of 1 / `draws.ONE`, so that equal seeds flip equal bits on every
device.

B rows, T latent frames, S scales, K bits.
Source: arXiv 2601.05966 equation 8. Ours: t counts from 0, drawn per row, all scales. (The range in
the paper's figure 3 contradicts its equation 8; this follows the equation.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar.model.transformer.config import CFECConfig
from videoar.model.transformer.draws import BITS, FLIPS, ONE, STRENGTH, random_numbers, threshold


def flip_probabilities(
    seed_B: Tensor, num_frames: int, num_scales: int, config: CFECConfig
) -> Tensor:
    """Draw the flip probability p(t, k) of each frame and scale (equation 8).

    Args:
        seed_B: int64 seed of each row.
        num_frames: latent frames.
        num_scales: scales of a frame.
        config: range and growth.

    Returns:
        int64 [B, T, S] in units of 1 / `draws.ONE`.
    """
    numbers = random_numbers(seed_B, STRENGTH, num_frames * num_scales)
    uniform = numbers.view(-1, num_frames, num_scales)
    low, high = (
        [min(threshold(base + config.delta * t), ONE) for t in range(num_frames)]
        for base in (config.p_min, config.p_max)
    )
    frames = [_between(low[t], high[t], uniform[:, t]) for t in range(num_frames)]
    p_BTS = torch.stack(frames, dim=1)
    if config.inherit:
        # In order of time: what frame t inherits may itself be inherited.
        for t in range(1, num_frames):
            p_BTS[:, t, 0] = _between(p_BTS[:, t - 1, -1], high[t], uniform[:, t, 0])
    return p_BTS


def _between(low: Tensor | int, high: int, uniform: Tensor) -> Tensor:
    return low + ((high - low) * uniform >> BITS)


def draw_flips(
    seed_B: Tensor, num_frames: int, shapes: Sequence[tuple[int, int, int]], config: CFECConfig
) -> list[Tensor]:
    """Draw which bits flip.

    Args:
        seed_B: int64 seed of each row.
        num_frames: latent frames.
        shapes: (h, w, K) of each scale.
        config: range and growth of the probability.

    Returns:
        Per scale bool [B, T, h, w, K].
    """
    p_BTS = flip_probabilities(seed_B, num_frames, len(shapes), config)
    flips = []
    for k, (h, w, bits) in enumerate(shapes):
        numbers = random_numbers(seed_B, FLIPS + k, num_frames * h * w * bits)
        flips.append(numbers.view(-1, num_frames, h, w, bits) < p_BTS[:, :, k, None, None, None])
    return flips
