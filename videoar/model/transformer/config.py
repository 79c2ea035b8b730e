"""Shape of the transformer, the strength of error correction, and the named sizes. Torch-free.

Fields have upper bounds far above any preset: a config may come with a model from elsewhere, and
building a network of `depth: 1000000` would take 12 GB before the first weight is read.

Source: depth, width and heads of L, XL and 4B arXiv 2601.05966 table 1; `ff_width` is ours, solved
to hit the stated parameter counts; tiny and small are ours.
"""

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from videoar.core.types import Frozen
from videoar.model.schedule import SMALL_SQUARE, Scales, latent_frames, scale_schedule
from videoar.model.tokenizer.config import TokenizerConfig
from videoar.model.transformer.schemes import SCHEMES, History, InputDown, RopeLayout, Scheme

GuidanceName = Literal["ucf", "t2v"]
"""Named guidance schedules, see `sampling.GUIDANCE`."""
_MAX_LAYER_WEIGHTS = 10**11  # chosen: 20 times the 4B preset
OF_TOKENIZER = ("num_bits", "scales", "time_stride")
"""Fields of a model that are those of its tokenizer."""


class ModelConfig(Frozen):
    """Shapes of the weights and order of prediction."""

    depth: int = Field(ge=1, le=1024)
    """Transformer layers."""
    width: int = Field(ge=1, le=65_536)
    """Channels of a token."""
    heads: int = Field(ge=1, le=4096)
    """Attention heads; width / heads must be a multiple of 16."""
    ff_width: int = Field(ge=1, le=1 << 20)
    """Hidden channels of the SwiGLU layer."""
    num_bits: int = Field(default=48, ge=1, le=1024)
    """Bits per position; must equal the tokenizer's."""
    scales: Scales = SMALL_SQUARE
    """Scale schedule; must equal the tokenizer's."""
    time_stride: int = Field(default=4, ge=1, le=256)
    """Pixel frames per latent frame, except for the first one; must equal the tokenizer's."""
    max_scales: int = Field(default=16, ge=1, le=1024)
    """Number of scale embeddings; more than `scales` allow a later phase at higher resolution."""
    text_width: int = Field(default=2048, ge=1, le=65_536)
    """Channels of the text encoder. Source: flan-t5-xl."""
    max_text_tokens: int = Field(default=512, ge=1, le=65_536)
    """Longest text prefix; as many unconditional embeddings are trained. Source: Infinity."""
    word_buckets: int = Field(default=4096, ge=1, le=1 << 24)
    """Hash buckets of the embedded text encoder; unused with a frozen one."""
    # Both are set from the folder of the encoder, so they are no options of a pipeline.
    text_encoder: SkipJsonSchema[str] = ""
    """Digest of the frozen text encoder, which is no part of the model; empty: the embedded one."""
    text_encoder_name: SkipJsonSchema[str] = ""
    """Name of the frozen text encoder's folder, for messages."""
    scheme: str = "videoar"
    """Order of prediction, a key of `SCHEMES`."""
    history: History = "full"
    """Which scales of past frames are visible."""
    window: int | None = Field(default=None, ge=1)
    """Past latent frames that are visible; None is all. Source: None on UCF (paper), else 8
    (ours)."""
    rope: RopeLayout = "raw"
    """How grid cells become positions."""
    input_down: InputDown = "bilinear"
    """How the rebuilt latent, a block's input, is reduced to the block's grid: `bilinear` reads
    the nearest cells (4 of 64 from 8 x 8 to 1 x 1), `area` the mean of all. Source: bilinear
    Infinity; area is an ablation arm (ours)."""
    rope_base: float = Field(default=10_000.0, gt=1)
    """Base of the rotary spectrum. Source: LLaMA."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % (16 * self.heads):
            raise ValueError(f"width={self.width} is not a multiple of 16 x heads={self.heads}")
        if len(self.scales) > self.max_scales:
            raise ValueError(f"{len(self.scales)} scales, more than max_scales={self.max_scales}")
        if self.scheme not in SCHEMES:
            raise ValueError(f"unknown scheme={self.scheme!r}; use one of {sorted(SCHEMES)}")
        # Attention has 4 matrices of width x width, SwiGLU 3 of width x ff_width.
        weights = self.depth * self.width * (4 * self.width + 3 * self.ff_width)
        if weights > _MAX_LAYER_WEIGHTS:
            what = f"the layers have {weights:.1e} weights"
            raise ValueError(f"{what}; the limit is {_MAX_LAYER_WEIGHTS:.0e}")
        return self

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    def require_fit(self, tokenizer: TokenizerConfig, *, any_scales: bool = False) -> None:
        """Check that a tokenizer has the bits, scales and time stride that the model predicts.

        Args:
            tokenizer: whose tokens.
            any_scales: for clips of another size, which have scales of their own.

        Raises:
            ValueError: names the first field that differs.
        """
        for name in OF_TOKENIZER:
            own, other = getattr(self, name), getattr(tokenizer, name)
            if own != other and not (any_scales and name == "scales"):
                raise ValueError(f"has {name} {own}, its tokenizer {other}")

    def scheme_for(self, num_frames: int, scales: Scales | None = None) -> Scheme:
        """Return the order of prediction of a clip.

        Args:
            num_frames: pixel frames, 1 for an image.
            scales: schedule of the clip's size and orientation, if not `self.scales`. Scale i has
                embedding i in every schedule.

        Raises:
            ValueError: `scales` are more than `max_scales`; or see `latent_frames`.
        """
        scales = scales or self.scales
        if len(scales) > self.max_scales:
            raise ValueError(f"{len(scales)} scales, more than max_scales={self.max_scales}")
        return SCHEMES[self.scheme](
            latent_frames(num_frames, self.time_stride),
            scales,
            self.history,
            self.window,
            self.rope,
            self.input_down,
        )


class CFECConfig(Frozen):
    """Strength of the corruption (`corruption.py`). Source: arXiv 2601.05966 sec. 6.1."""

    p_min: float = Field(default=0.0, ge=0, le=1)
    """Least flip probability in the first frame, at most `p_max`."""
    p_max: float = Field(default=0.25, ge=0, le=1)
    """Largest flip probability in the first frame."""
    delta: float = Field(default=0.01, ge=0, le=1)
    """Growth of both per latent frame."""
    inherit: bool = True
    """Whether the first scale of a frame is corrupted at least as much as the last scale of the
    frame before."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.p_min > self.p_max:
            raise ValueError(f"p_min={self.p_min} is above p_max={self.p_max}")
        return self

    @property
    def is_clean(self) -> bool:
        """Whether no bit can flip in any frame; p_min is at most p_max."""
        return self.p_max == 0 and self.delta == 0


# Billions of parameters of L, XL and 4B: 0.91, 2.0 and 4.0 here (pinned by a test), 0.93, 2.0 and 4
# in the paper.
PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        depth=2, width=64, heads=4, ff_width=192, num_bits=8,
        text_width=32, max_text_tokens=16, word_buckets=512,
    ),
    "small": ModelConfig(depth=8, width=512, heads=8, ff_width=2048, num_bits=16),
    "L": ModelConfig(depth=24, width=1536, heads=12, ff_width=6144),
    "XL": ModelConfig(depth=32, width=2048, heads=16, ff_width=7424),
    "4B": ModelConfig(
        depth=36, width=2560, heads=32, ff_width=11008, scales=scale_schedule(24, 42), window=8
    ),
}  # fmt: skip
