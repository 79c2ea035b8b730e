"""Guidance: the difference that the prompt makes, amplified.

One idea: every prompt runs twice, with and without its text. Strength 1 is the model with its text,
0 without, and above 1 the difference is extrapolated.

B batch, l tokens of a wave, K bits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Guidance = Callable[[float, float], float]
"""Strength as a function of the position of the frame in the clip and of the scale in the frame,
both from 0 (first) to 1 (last)."""


def ucf_guidance(frame: float, scale: float) -> float:
    """Rise from 1 to 5 over the frames, and from there to 10 over the scales of each.

    Source: arXiv 2601.05966 section 6.1 (end points).
    """
    first = 1 + 4 * frame
    return first + (10 - first) * scale


def t2v_guidance(frame: float, scale: float) -> float:
    """Fall from 5 to 3. Source: arXiv 2601.05966 section 6.1 (end points; formula ours)."""
    return 5 - (frame + scale)


GUIDANCE: dict[str, Guidance] = {"ucf": ucf_guidance, "t2v": t2v_guidance}


def guidance_schedule(guidance: str | float) -> Guidance:
    """Return a named schedule, or a constant one.

    Raises:
        ValueError: no schedule has this name, or the number is not finite.
    """
    if isinstance(guidance, str):
        if guidance not in GUIDANCE:
            hint = f"use a number or one of {sorted(GUIDANCE)}"
            raise ValueError(f"unknown guidance {guidance!r}; {hint}")
        return GUIDANCE[guidance]
    if not math.isfinite(guidance):
        raise ValueError(f"guidance {guidance} is not finite (1 is the model without guidance)")
    return lambda _frame, _scale: float(guidance)


@dataclass(frozen=True)
class APG:
    """Adaptive projected guidance: the difference is shortened, and only a part of it is amplified.

    Large strengths saturate; most of that comes from the part of the difference that is parallel to
    the conditional logits.

    Source: arXiv 2410.02416 section 4; over all logits of a scale, with the root mean square as the
    norm, as FoundationVision/InfinityStar (strength 34, eta 0, threshold 0.05). No momentum.

    Raises:
        ValueError: eta is not finite, or the threshold is not above 0.
    """

    eta: float = 0.0
    """Share of the parallel part that is kept; 1 keeps all of it."""
    norm_threshold: float = 0.05
    """Longest difference, as root mean square over tokens, bits and both values."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eta) and self.norm_threshold > 0):
            raise ValueError(f"{self}: eta must be finite and norm_threshold above 0")

    def guide(self, with_BlK2: Tensor, without_BlK2: Tensor, strength_l1: Tensor) -> Tensor:
        """Return guided logits from those with and without the prompt, divided by temperature."""
        dims = (1, 2, 3)
        difference = with_BlK2 - without_BlK2
        length = difference.square().mean(dims, keepdim=True).sqrt()
        difference = difference * (self.norm_threshold / length).clamp(max=1)
        squared = with_BlK2.square().sum(dims, keepdim=True).clamp(min=1e-30)
        parallel = (difference * with_BlK2).sum(dims, keepdim=True) / squared * with_BlK2
        update = difference - (1 - self.eta) * parallel
        return with_BlK2 + (strength_l1[..., None] - 1) * update


def guide(with_BlK: Tensor, without_BlK: Tensor, strength_l1: Tensor) -> Tensor:
    """Return g * with + (1 - g) * without; at g = 1 exactly the log-odds with the prompt."""
    guided = without_BlK + strength_l1 * (with_BlK - without_BlK)
    return torch.where(strength_l1 == 1, with_BlK, guided)


def log_odds(logits_BlK2: Tensor) -> Tensor:
    """Return the log-odds of 1 against 0."""
    return logits_BlK2[..., 1] - logits_BlK2[..., 0]
