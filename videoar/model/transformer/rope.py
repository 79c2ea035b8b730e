"""MT-RoPE: rotary positions over text, time, height and width.

One idea: there is one shared 1-D spectrum, and its slots are dealt out to the three axes. A text
token has the same coordinate on all axes, so on text alone this *is* 1-D RoPE; with a spectrum per
axis it would not be. Every axis gets fast and slow slots, in the ratio t:h:w = 2:3:3.

B batch, L tokens, N heads, E head width.
Source: arXiv 2601.05966 section 4.2; the dealing is ours.
"""

import torch
from torch import Tensor

AXIS_OF_SLOT = (0, 1, 2, 1, 2, 0, 1, 2)  # t h w h w t h w, repeated


def rotation(positions_BL3: Tensor, head_width: int, base: float = 10_000.0) -> Tensor:
    """Return cosine and sine of every slot's angle.

    Args:
        positions_BL3: (t, h, w) of each token.
        head_width: E, a multiple of 16.
        base: slowest wavelength over 2 pi. Source: LLaMA.

    Returns:
        float32 [2, B, 1, L, E / 2].
    """
    slots = torch.arange(head_width // 2, device=positions_BL3.device)
    frequency = base ** (-2.0 * slots / head_width)
    axis = torch.tensor(AXIS_OF_SLOT, device=slots.device)[slots % len(AXIS_OF_SLOT)]
    angle = (positions_BL3.float()[..., axis] * frequency).unsqueeze(1)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x_BNLE: Tensor, rotation_2B1Le: Tensor) -> Tensor:
    """Rotate the halves of each head's vector against each other, slot by slot."""
    cos, sin = rotation_2B1Le.to(x_BNLE.dtype)
    a, b = x_BNLE.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
