"""AdamW as both networks use it: parameter groups, non-finite steps, moving average of weights.

The moving average is what is published; the optimizer's own weights are only a means.
Source: arXiv 2601.05966 section 6.1 (betas, learning rate, cosine, weight decay); warm-up, final
fraction, skipping and averaging are ours.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor, nn

from videoar.core.errors import StageError
from videoar.training.config import OptimizerConfig
from videoar.training.parallel import local

logger = logging.getLogger(__name__)
_DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MAX_BAD_STEPS = 5  # chosen: a spike passes, a diverged run does not


def make_adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the matrices of linear layers and kernels only.

    Not on embeddings: a row that no token of a batch uses has no gradient and would only shrink.
    """
    decayed = {id(layer.weight) for layer in model.modules() if isinstance(layer, _DECAYED)}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    # Checkpoints refer to weights by their number in this order, matrices before vectors. So
    # undecayed matrices stay where they are, as groups of their own.
    ordered = sorted(trained, key=lambda weight: weight.ndim <= 1)
    groups = [
        {"params": [*weights], "weight_decay": config.weight_decay if is_decayed else 0.0}
        for is_decayed, weights in groupby(ordered, key=lambda weight: id(weight) in decayed)
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class MovingAverage:
    """Exponential moving average of a model's weights, with a warm-up of the decay.

    Not torch's `AveragedModel`: its first update copies the model instead of averaging, it counts
    updates where ours depends on the step (skipped steps included), and it saves the names
    `module.NAME` and `n_averaged` where checkpoints hold `average/NAME`. A resumed run would get
    other bits.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: w.detach().clone() for name, w in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights of the model after a step, counted from 0.

        The decay rises from 0.1 to its final value, otherwise the random initial weights would
        dominate the average of the first thousand steps.
        """
        decay = min(self.decay, (1 + step) / (10 + step))  # Source: TensorFlow's EMA warm-up
        current: dict[str, Tensor] = model.state_dict()
        averaged = [local(weight) for weight in self.weights.values()]
        torch._foreach_lerp_(averaged, [local(current[name]) for name in self.weights], 1 - decay)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Exchange the weights of a model and of the average, and back at the end."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        current = model.state_dict()
        for name, averaged in self.weights.items():
            # one tensor at a time: a copy of the whole model may not fit
            own, other = local(current[name]), local(averaged)
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)

    @torch.no_grad()
    def copy_from(self, other: "MovingAverage") -> None:
        """Take the weights of another average of the same model."""
        own, others = ([local(w) for w in average.weights.values()] for average in (self, other))
        torch._foreach_copy_(own, others)


class NonFiniteGuard:
    """Accepts steps whose numbers are finite and stops a run of too many others.

    All ranks must pass the same numbers; then they skip the same steps.
    """

    def __init__(self) -> None:
        self.bad_steps = 0
        """Skipped since the last accepted one; part of a checkpoint's progress."""

    def accept(self, step: int, numbers: Mapping[str, float]) -> bool:
        """Return whether a step may change weights.

        Raises:
            StageError: it may not, and neither might the steps before it.
        """
        bad = [f"{name} is {n}" for name, n in numbers.items() if not math.isfinite(n)]
        self.bad_steps = self.bad_steps + 1 if bad else 0
        if self.bad_steps >= _MAX_BAD_STEPS:
            what = f"not finite, as were {_MAX_BAD_STEPS - 1} steps before it: {', '.join(bad)}"
            raise StageError(f"training step {step}", what, "lower the learning rate")
        if bad:
            logger.warning("training step %d is skipped: %s", step, ", ".join(bad))
        return not bad


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the finite metrics: JSON has no NaN, and a curve cannot show one."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
