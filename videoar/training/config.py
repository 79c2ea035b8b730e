"""How transformers are trained, as validated values. Torch-free, so that stages stay light."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from videoar.core.types import Frozen
from videoar.model.schedule import Scales
from videoar.model.transformer.config import CFECConfig
from videoar.training.prompts import PromptTemplates
from videoar.training.sampler_options import SamplerOptions

MAIN_STORE = "tokens"
"""Name of the store at the port `tokens`; a store at `tokens.NAME` is called `NAME`."""


Decay = Annotated[float, Field(ge=0, lt=1)]


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
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the running means of gradient and squared gradient."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient."""
    ema: Decay = 0.999
    """Decay of the moving average of weights."""

    def rate(self, done: int, budget: int, peak: float | None = None) -> float:
        """Return the learning rate of a step.

        Args:
            done: steps (or tokens) before it.
            budget: steps (or tokens) of the whole schedule.
            peak: largest rate, by default `learning_rate`.
        """
        peak = self.learning_rate if peak is None else peak
        warmup = max(1, round(self.warmup_fraction * budget))
        if done < warmup:
            return peak * (done + 1) / warmup
        progress = min(1.0, (done - warmup) / max(1, budget - warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return peak * (self.final_fraction + (1 - self.final_fraction) * cosine)


class PhaseStore(Frozen):
    """What a phase trains on of one token store."""

    weight: float = Field(default=1.0, gt=0)
    """Share of the steps, on any scale."""
    num_frames: int | None = Field(default=None, ge=1)
    """Pixel frames from the start of each clip, 1 for images; None: those of the phase."""
    batch_size: int | None = Field(default=None, ge=1)
    """Clips per step, over all ranks; None: those of the phase."""
    grids: tuple[tuple[int, int], ...] = ()
    """Latent grids (height, width) whose rows are read; empty: all of the store."""


class Phase(Frozen):
    """One part of the curriculum; the paper's "training stage"."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; give either `steps` or `tokens`."""
    tokens: int | None = Field(default=None, ge=1)
    """Visual tokens over all steps: the phase ends with the step that reaches them."""
    batch_size: int = Field(default=8, ge=1)
    """Clips per step, over all ranks."""
    accumulate: int = Field(default=1, ge=1)
    """Parts into which a rank divides its share of a batch: less memory, the same step up to
    rounding."""
    num_frames: int | None = Field(default=None, ge=1)
    """Pixel frames from the start of each clip; None uses all that are stored."""
    stores: dict[str, PhaseStore] = Field(default_factory=dict)
    """By the name of their port: `tokens`, or `NAME` for the port `tokens.NAME`. Each step is a
    batch of one store. Empty: all stores of the stage, with equal weights."""
    scales: tuple[Scales, ...] = ()
    """Scale schedules that differ from the standard ones, each for the grid that it ends with. A
    schedule of a larger grid that begins with the smaller one's keeps the trained embeddings."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak of this phase; None: that of the optimizer."""
    p_mask: float = Field(default=0.0, ge=0, le=1)
    """Probability of hiding a past frame from attention. Source: 0 on UCF (paper), else 0.1
    (ours)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give either steps or tokens")
        grids = [scales[-1] for scales in self.scales]
        if twice := [grid for grid in grids if grids.count(grid) > 1]:
            raise ValueError(f"scales has two schedules of the grid {twice[0]}")
        return self

    @property
    def budget(self) -> int:
        """Steps or tokens of the phase."""
        return self.steps or self.tokens or 0

    def frames_of(self, store: str | None) -> int | None:
        """Return the pixel frames of a store's clips; None for all that are stored.

        Args:
            store: its name; None if the phase reads one store only.
        """
        only = next(iter(self.stores.values())) if len(self.stores) == 1 else PhaseStore()
        own = (only if store is None else self.stores.get(store, PhaseStore())).num_frames
        return self.num_frames if own is None else own


class Validation(Frozen):
    """Held-out measurement during training, on the rows of the split `val`."""

    points: int = Field(default=10, ge=0)
    """Evaluations of each phase, evenly over its budget, the last one at its end; 0 is none."""
    max_rows: int = Field(default=256, ge=1)
    """Rows of each store that are evaluated: the first ones of a fixed order."""
    patience: int | None = Field(default=None, ge=1)
    """End a phase after so many evaluations in a row without a lower loss in it; the weights of the
    lowest loss of the last phase are published. None trains to the end and publishes the last
    weights."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.patience and not self.points:
            raise ValueError("patience needs evaluations: points is 0")
        return self


class SpikeConfig(Frozen):
    """When a jump of the loss sends a training back to its last checkpoint."""

    factor: float = Field(default=2.0, gt=1)
    """A loss above so many times the median of the last `window` losses is a spike."""
    window: int = Field(default=100, ge=1)
    """Steps; no spike is detected in the first ones of a training."""
    max_rollbacks: int = Field(default=3, ge=1)
    """The training fails at the spike after so many."""


class SampleScoring(SamplerOptions):
    """Samples that are generated and scored during a training, and how their bits are drawn."""

    every: int = Field(ge=1)
    """Steps between the scores; the last weights are scored, too."""
    num: int = Field(default=16, ge=2)
    """Samples: of the prompts of as many val rows, which are the reference."""


class TransformerTraining(PromptTemplates):
    """How a transformer is trained."""

    phases: tuple[Phase, ...] = Field(min_length=1)
    """One after the other; each has its own warm-up and cosine."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Learning rate, weight decay, gradient clipping, moving average."""
    corruption: CFECConfig = CFECConfig()
    """Cross-frame error correction."""
    validation: Validation = Validation()
    """Held-out numbers, early stop."""
    sampling: SampleScoring | None = None
    """Score a few samples every so many steps, for a curve beside that of the loss. Rank 0 makes
    them, the others wait."""
    spike: SpikeConfig | None = None
    """Go back to the last checkpoint after a jump of the loss and skip the batches since then.
    Source: PaLM, arXiv 2204.02311 section 5.1 (there by hand)."""
    drop_text: float = Field(default=0.1, ge=0, le=1)
    """Share of captions replaced by the unconditional features. Source: Infinity."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seed of the first weights, the order of clips, and the random choices of each step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the layers; quantizer and bit head are always fp32."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Which activations of the layers are computed again in the backward pass, to save memory:
    `selective` keeps the outputs of matrix products and attention, `full` takes a third more
    compute."""
    shard: bool = False
    """Divide weights, gradients and optimizer state over the ranks (FSDP), for models that do not
    fit on one device."""
    compile: bool | None = None
    """Compile the layers with torch.compile; without a value, on a GPU only."""

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        if self.sampling and self.shard:
            raise ValueError("sampling: no samples can be made of a model that shard divides")
        return self

    @property
    def steps(self) -> int | None:
        """Steps of all phases; None if a budget is in tokens."""
        steps = [phase.steps for phase in self.phases]
        return None if None in steps else sum(step or 0 for step in steps)


class ClassifierTraining(Frozen):
    """How a clip classifier is trained."""

    width: int = Field(default=24, ge=8, multiple_of=8)
    """Channels of the first layer; the network has eight times as many features."""
    size_px: int = Field(default=64, ge=16)
    """Height and width to which clips are resized."""
    num_frames: int = Field(default=16, ge=8)
    """Frames of an excerpt."""
    steps: int = Field(default=600, ge=1)
    """Optimizer steps."""
    batch_clips: int = Field(default=16, ge=1)
    """Clips per step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak of the schedule: warm-up and cosine, as of the transformer."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights and batches."""
