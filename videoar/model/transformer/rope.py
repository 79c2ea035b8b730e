"""MT-RoPE: rotary positions over text, time, height and width.

One idea: there is one shared 1-D spectrum, and its frequency slots are distributed over the three
axes. A text token has the same coordinate on all axes, so on text this *is* 1-D RoPE; with a
spectrum per axis it would not be. Every axis gets fast and slow slots, in the ratio t:h:w = 2:3:3.

    slot        0   1   2   3   4   5   6   7   8 ...        head width 32: slots 0 to 15
    axis        t   h   w   h   w   t   h   w   t ...
    frequency   1   base^(-1/16)   base^(-2/16)   ...   angle = position on the axis * frequency

B batch, L tokens, N heads, E head width.
Source: arXiv 2601.05966 section 4.2; the distribution over slots is ours.
"""

from functools import lru_cache

import torch
from torch import Tensor

AXIS_OF_SLOT = (0, 1, 2, 1, 2, 0, 1, 2)
"""t h w h w t h w, repeated: hence a head width of a multiple of 16 (two channels per slot)."""


def rotation(positions_BL3: Tensor, head_width: int, base: float = 10_000.0) -> Tensor:
    """Return cosine and sine of every slot's angle.

    Args:
        positions_BL3: (t, h, w) of each token.
        head_width: E, a multiple of 16.
        base: slowest wavelength over 2 pi. Source: LLaMA.

    Returns:
        float32 [2, B, 1, L, E / 2].
    """
    axis, frequency = _spectrum(head_width, base, positions_BL3.device)
    angle = (positions_BL3.float()[..., axis] * frequency).unsqueeze(1)
    return torch.stack([angle.cos(), angle.sin()])


@lru_cache(maxsize=16)
def _spectrum(head_width: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return axis and frequency of every slot; cached, as a copy to a GPU waits for it."""
    slots = torch.arange(head_width // 2, device=device)
    frequency = base ** (-2.0 * slots / head_width)
    return torch.tensor(AXIS_OF_SLOT, device=device)[slots % len(AXIS_OF_SLOT)], frequency


def rotate(x_BNLE: Tensor, rotation_2B1Le: Tensor) -> Tensor:
    """Rotate channel i of each head's vector against channel i + E / 2, by the angle of slot i."""
    cos, sin = rotation_2B1Le.to(x_BNLE.dtype)
    a, b = x_BNLE.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
