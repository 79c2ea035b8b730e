"""Shape of the tokenizer, its loss weights and the named sizes.

Torch-free, so that stages and pipelines validate a configuration without loading torch. Fields that
shape the network have upper bounds far above any preset: a config may come with a model from
elsewhere, and its size must bound the memory that building the network takes.
"""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from videoar.core.types import Frozen
from videoar.model.schedule import SMALL_SQUARE, Scales, latent_frames, scale_schedule


class Resampling(NamedTuple):
    """What a resampling layer halves (encoder) or doubles (decoder)."""

    time_kernel: int
    time: bool
    """The number of frames."""
    space: bool
    """Height and width."""
    pad_end: bool = False
    """If it halves space, pad only on the right and at the bottom."""

    @property
    def kernel(self) -> tuple[int, int]:
        """Extent in time and space; a layer that resamples time only has no extent in space."""
        return self.time_kernel, 3 if self.space else 1


class TokenizerConfig(Frozen):
    """Shape of a tokenizer. The defaults are the paper's widths, strides and bits."""

    num_bits: int = Field(default=48, ge=1, le=1024)
    """Channels of a latent; each becomes one bit per scale and position."""
    scales: Scales = SMALL_SQUARE
    """Height and width of the scales."""
    patch_px: int = Field(default=1, ge=1, le=64)
    """Pixels per side that are folded into channels before the first convolution. The paper has 1;
    larger values save the layers at full resolution, which makes training on a CPU possible."""
    base_width: int = Field(default=128, ge=1, le=8192)
    """Channels of the first level."""
    multipliers: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        default=(1, 2, 4, 4, 4), min_length=1, max_length=16
    )
    """Channels of each level, in units of `base_width`."""
    num_res_blocks: int = Field(default=2, ge=1, le=64)
    """Residual blocks per level, in the encoder and in the decoder."""
    space_downs: tuple[int, ...] = (0, 1, 2, 3)
    """Levels (from 0) after which height and width are halved."""
    time_downs: tuple[int, ...] = (2, 3)
    """Levels after which the number of frames is halved; the first frame stays a frame of its
    own."""
    time_kernel: int = Field(default=3, ge=1, le=16)
    """Extent in time of the convolutions that keep the number of frames. With 1 only the layers
    that halve it mix frames, for a third of the work; without those, too, it is an image
    tokenizer."""

    infinity_layout: bool = False
    """Arrange blocks as Infinity's image tokenizers do, so that their weights fit (`inflate`): two
    more residual blocks next to the latents, one more per level of the decoder, and downsampling
    that pads only on the right and at the bottom. Source: FoundationVision/Infinity."""
    norm_groups: int = Field(default=32, ge=1, le=1024)
    """Groups of the normalisation. Groups of few channels lose a frame's brightness, so narrow
    networks need few groups."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # After the last level nothing is resampled: its output is the latent.
        last = len(self.multipliers) - 1
        if any(not 0 <= level < last for level in (*self.space_downs, *self.time_downs)):
            raise ValueError(f"space_downs and time_downs must be between 0 and {last - 1}")
        if any(self.base_width * multiplier % self.norm_groups for multiplier in self.multipliers):
            raise ValueError(f"norm_groups={self.norm_groups} must divide the width of every level")
        return self

    @property
    def space_stride(self) -> int:
        """Pixels per latent position, in height and in width."""
        return self.patch_px * 2 ** len(set(self.space_downs))

    @property
    def time_stride(self) -> int:
        """Pixel frames per latent frame, except for the first one."""
        return 2 ** len(set(self.time_downs))

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the videos."""
        height, width = self.scales[-1]
        return height * self.space_stride, width * self.space_stride

    def num_latent_frames(self, num_frames: int) -> int:
        """Return the latent frames of a video.

        Raises:
            ValueError: the length is not 1 + a multiple of `time_stride`.
        """
        return latent_frames(num_frames, self.time_stride)

    def latent_frames_in(self, num_pixels: int) -> int:
        """Return how many latent frames decode to at most so many pixels, at least 1."""
        height_px, width_px = self.size_px
        return max(1, num_pixels // (height_px * width_px * self.time_stride))

    def for_size(self, height_px: int, width_px: int) -> "TokenizerConfig":
        """Return the config of the same network for videos of another size.

        Weights fit, because all layers are convolutions. Its own size keeps its own scales, any
        other grid gets those of `scale_schedule`.

        Raises:
            ValueError: the size is no multiple of `space_stride`.
        """
        stride = self.space_stride
        if height_px % stride or width_px % stride or min(height_px, width_px) < stride:
            raise ValueError(f"{height_px}x{width_px} px are not a multiple of {stride} px")
        if (height_px, width_px) == self.size_px:
            return self
        scales = scale_schedule(height_px // stride, width_px // stride)
        return self.model_copy(update={"scales": scales})

    def as_image(self) -> "TokenizerConfig":
        """Return the image tokenizer of the same shape, whose weights `inflate` takes.

        Raises:
            ValueError: there is none, because a level halves time only.
        """
        if set(self.time_downs) - set(self.space_downs):
            raise ValueError("no image tokenizer has a level that halves time only")
        return self.model_copy(update={"time_kernel": 1, "time_downs": ()})

    def resampling(self, level: int) -> Resampling:
        """Return what the layer after a level halves; the decoder's doubles the same."""
        halves_time = level in self.time_downs
        # A stride of 2 with a kernel of 1 would drop every other frame.
        kernel = max(3, self.time_kernel) if halves_time else self.time_kernel
        halves_space = level in self.space_downs
        at_end = self.infinity_layout and halves_space
        return Resampling(kernel, time=halves_time, space=halves_space, pad_end=at_end)


class LossWeights(Frozen):
    """Weights of the terms; a term of weight 0 is not computed."""

    l1: float = Field(default=1.0, ge=0)
    """Mean absolute error. Source: OmniTokenizer, Infinity (there 4)."""
    l2: float = Field(default=0.0, ge=0)
    """Mean squared error. Not in the paper: on the synthetic corpus, 75 CPU seconds of training
    gave 24.0 dB with it and 21.5 dB with the absolute error, which neglects small bright
    figures."""
    perceptual: float = Field(default=0.0, ge=0)
    """Distance of deep features: LPIPS if its weights are given, else of a frozen random net."""
    gan: float = Field(default=0.0, ge=0)
    """Adversarial term; 0.1 for full-size tokenizers, after `gan_start`."""
    gan_start: int = Field(default=0, ge=0)
    """Step at which the discriminator and its term begin."""
    lecam: float = Field(default=0.05, ge=0)
    """LeCAM penalty, in the discriminator's loss."""
    quantizer: float = Field(default=1.0, ge=0)
    """Commitment and entropy terms, together."""


class TokenizerTraining(Frozen):
    """How a tokenizer is trained."""

    steps: int = Field(default=100_000, ge=1)
    """Optimizer steps."""
    batch_clips: int = Field(default=128, ge=1)
    """Clips per step, over all ranks. Source: arXiv 2601.05966 section 6.1."""
    excerpt_frames: int = Field(default=17, ge=1)
    """Frames of the excerpt of each clip; 1 + a multiple of the time stride."""
    image_steps: int = Field(default=0, ge=0)
    """Steps on single frames before those on excerpts, with as many frames per step. A new network
    is an inflated image network, so this is the paper's start from an image tokenizer: on the
    synthetic corpus, with half of the steps on images PSNR rose from 24.7 to 28.2 dB at equal cost
    (one seed)."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak of the schedule (Adam, betas 0.9 and 0.95, no weight decay)."""
    image_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of every step's items that are single frames, after `image_steps`. Every item has the
    same weight in the loss, whatever its length."""
    drop_scales: int = Field(default=0, ge=0)
    """Number of last scales of which each is omitted from a step with `drop_probability`; so early
    scales carry more. Source: "stochastic quantizer depth", arXiv 2511.04675 (VBench 81.07 to
    81.28)."""
    drop_probability: float = Field(default=0.5, ge=0, le=1)
    """See `drop_scales`. Chosen: every set of the last scales is equally likely."""
    accumulate: int = Field(default=1, ge=1)
    """Parts into which a rank divides its share of a batch (gradient accumulation): less memory,
    the same step up to rounding, one more pass through the encoder (for the entropy of the global
    batch)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the layers; the quantizer and all losses are always fp32. (fp32 convolutions use TF32 on
    GPUs that have it, which is torch's default; the quantizer has no convolutions.)"""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the moving average of weights."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights, the order of clips and the random feature net."""
    weights: LossWeights = LossWeights()
    """Weights of the loss terms."""


TOKENIZERS: dict[str, TokenizerConfig] = {
    "tiny": TokenizerConfig(
        num_bits=8, scales=((1, 1), (2, 2), (4, 4)), patch_px=4, base_width=16,
        multipliers=(1, 1, 1), num_res_blocks=1, space_downs=(1,), time_downs=(0, 1),
        time_kernel=1, norm_groups=2,
    ),
    "demo": TokenizerConfig(
        num_bits=8, scales=((1, 1), (2, 2), (4, 4), (8, 8)), patch_px=4, base_width=48,
        multipliers=(1, 1, 1), num_res_blocks=1, space_downs=(), time_downs=(0, 1),
        time_kernel=1, norm_groups=4,
    ),
    "small": TokenizerConfig(
        num_bits=16, patch_px=2, base_width=64, multipliers=(1, 2, 2), num_res_blocks=1,
        space_downs=(0, 1), time_downs=(0, 1), norm_groups=8,
    ),
    "ucf": TokenizerConfig(infinity_layout=True),
    "512": TokenizerConfig(infinity_layout=True, scales=scale_schedule(24, 42)),
}  # fmt: skip
"""`ucf` and `512` are the paper's (128 x 128 and 384 x 672 px); they start from Infinity's weights
and so have its layout. `small` has the tokens of `ucf` at 64 x 64 px: one GPU or hours of a CPU.
`demo` is the best of about 20 that were tried for 32 px clips and minutes of CPU time. `tiny` is
for tests."""
