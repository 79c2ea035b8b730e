"""How transformers are trained, as validated values. Torch-free, so that stages stay light."""

import math
from typing import Literal

from pydantic import Field

from videoar.core.types import Frozen
from videoar.model.transformer.config import CFECConfig


class OptimizerConfig(Frozen):
    """How weights are updated."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak of the schedule."""
    warmup_fraction: float = Field(default=0.02, ge=0, le=1)
    """Share of the steps over which the rate rises linearly."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak at the end of the cosine."""
    weight_decay: float = Field(default=0.05, ge=0)
    """On matrices of linear layers and kernels only, not on embeddings, norms and biases."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of gradient and squared gradient."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient."""
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


class Phase(Frozen):
    """One part of the curriculum; the paper's "training stage"."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=8, ge=1)
    """Clips per step, over all ranks."""
    num_frames: int | None = Field(default=None, ge=1)
    """Pixel frames from the start of each clip; None uses all that are stored."""
    p_mask: float = Field(default=0.0, ge=0, le=1)
    """Probability of hiding a past frame from attention. Source: 0 on UCF (paper), else 0.1
    (ours)."""


class TransformerTraining(Frozen):
    """How a transformer is trained."""

    phases: tuple[Phase, ...] = Field(min_length=1)
    """One after the other; each has its own warm-up and cosine."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Learning rate, weight decay, gradient clipping, moving average."""
    corruption: CFECConfig = CFECConfig()
    """Cross-frame error correction."""
    drop_text: float = Field(default=0.1, ge=0, le=1)
    """Share of captions replaced by the unconditional features. Source: Infinity."""
    seed: int = 0
    """Seed of the first weights, the order of clips, and the random choices of each step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the layers; quantizer and bit head are always fp32."""
    checkpoint_activations: bool = False
    """Recompute layers in the backward pass: less memory, a third more compute."""
    compile: bool = False
    """Compile the network with torch.compile."""

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[int, int]:
        """Return the phase of a step and the step's number inside it."""
        for index, phase in enumerate(self.phases):
            if step < phase.steps:
                return index, step
            step -= phase.steps
        raise ValueError("the step is after the last phase")
