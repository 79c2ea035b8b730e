"""AdamW as both networks use it: parameter groups, warm-up and cosine, clipping, moving average.

The moving average is what is published; the optimizer's own weights are only a means.
Source: arXiv 2601.05966 section 6.1 (betas, learning rate, cosine, weight decay); warm-up, final
share, clipping and averaging are ours.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from videoar.training.config import OptimizerConfig


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
