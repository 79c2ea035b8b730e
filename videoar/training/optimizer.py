"""AdamW as both networks use it: parameter groups, warm-up and cosine, clipping, moving average.

The moving average is what is published; the optimizer's own weights are only a means.
Source: arXiv 2601.05966 section 6.1 (betas, learning rate, cosine, weight decay); warm-up, final
share, clipping and averaging are ours.
"""

import math
from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

from videoar.core.types import Frozen


class OptimizerConfig(Frozen):
    """How weights are updated."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak of the schedule."""
    warmup_fraction: float = Field(default=0.02, ge=0, le=1)
    """Share of the steps over which the rate rises."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak that is left at the end of the cosine."""
    weight_decay: float = Field(default=0.05, ge=0)
    """On matrices and kernels alone; vectors are not decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Averaging of gradient and squared gradient."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the moving average of weights."""

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup = max(1, round(self.warmup_fraction * steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * cosine)


def make_adamw(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices and kernels alone."""
    weights = [weight for weight in parameters if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class MovingAverage:
    """Exponential moving average of a model's weights, short at first so that it soon is useful."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: w.detach().clone() for name, w in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))  # Source: TensorFlow's EMA warm-up
        current: dict[str, Tensor] = model.state_dict()
        averaged = list(self.weights.values())
        torch._foreach_lerp_(averaged, [current[name] for name in self.weights], 1 - decay)
