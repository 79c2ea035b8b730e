"""Prediction schemes: a video as ordered blocks of tokens and a rule which block attends to which.

One idea: a scheme only states *what* is predicted *in which order from what* (blocks, visibility,
waves, positions, loss weights), as pure functions of shapes, without a tensor. Mask builder, cache,
trainer and sampler read this and mention no particular scheme. A new scheme is one module here and
one line in `SCHEMES`.
"""

from videoar.model.transformer.schemes.base import (
    TEXT,
    Block,
    History,
    InputDown,
    Position,
    RopeLayout,
    Scheme,
    attention_cells,
)
from videoar.model.transformer.schemes.next_scale import NextFrameNextScale

__all__ = [
    "SCHEMES", "TEXT", "Block", "History", "InputDown", "NextFrameNextScale", "Position",
    "RopeLayout", "Scheme", "attention_cells",
]  # fmt: skip

SCHEMES = {"videoar": NextFrameNextScale}
"""Scheme by the name that `ModelConfig.scheme` takes."""
