"""Prediction schemes: a video as ordered blocks of tokens and a rule who sees whom.

One idea: a scheme says only *what* is predicted *in which order from what* - blocks, visibility,
waves, positions, weights - as pure functions of shapes, without a tensor in sight. Mask builder,
cache, trainer and sampler read this and contain no word of any particular scheme. Adding a scheme
is one class here and one line in `SCHEMES`.

Text is block -1: every block sees it, it sees no block. A block is predicted in one forward pass,
its tokens independently given everything visible; blocks of one wave share a pass and never see
each other, so a finished wave can be appended to the cache and never changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from videoar.model.schedule import Scales

History = Literal["full", "last_scale"]
RopeLayout = Literal["raw", "center", "seq1d"]
Position = tuple[float, float, float]

TEXT = -1
"""Block and frame number of the text prefix."""


@dataclass(frozen=True)
class Block:
    """Tokens that are predicted together: one scale of one latent frame."""

    frame: int
    scale: int
    grid: tuple[int, int]
    parent: int | None
    """Block after which the rebuilt latent is this block's input; None starts from nothing."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the block, in raster order."""
        return self.grid[0] * self.grid[1]


class Scheme(Protocol):
    """What every order of prediction must say."""

    requires: frozenset[str]
    """Columns of the token store that training reads."""

    @property
    def blocks(self) -> Sequence[Block]:
        """Blocks in decode order; they cover every target token exactly once."""
        ...

    @property
    def waves(self) -> Sequence[tuple[int, ...]]:
        """Blocks that are decoded in the same forward pass; a partition of the blocks in order."""
        ...

    def __hash__(self) -> int:
        """Equal schemes compile once."""
        ...

    def visible(self, query: int, key: int) -> bool:
        """Say whether a block's tokens attend to another block's; never to a later one."""
        ...

    def positions(self, block: int) -> Sequence[Position]:
        """Return (t, h, w) of each token, before the offset of the text prefix."""
        ...

    def weight(self, block: int) -> float:
        """Return the loss weight of each token of a block, before normalisation."""
        ...


@dataclass(frozen=True)
class NextFrameNextScale:
    """VideoAR: frame by frame, and inside a frame scale by scale.

    Source: arXiv 2601.05966 equations 6-7 and figure 2; loss weights FoundationVision/Infinity;
    `last_scale` with window 1 is the visibility of InfinityStar, arXiv 2511.04675; `center` is
    ERNIE 5, arXiv 2602.04705 section 2.2.
    """

    num_frames: int
    scales: Scales
    history: History = "full"
    window: int | None = None
    """Past latent frames that a frame sees; None is all."""
    rope: RopeLayout = "raw"

    requires = frozenset({"latent"})

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every scale of frame 0, then of frame 1, and so on; each continues its predecessor."""
        order = [(t, k) for t in range(self.num_frames) for k in range(len(self.scales))]
        return tuple(
            Block(t, k, self.scales[k], parent=i - 1 if i else None)
            for i, (t, k) in enumerate(order)
        )

    @property
    def waves(self) -> tuple[tuple[int, ...], ...]:
        """Each block alone: T' * S sequential passes."""
        return tuple((i,) for i in range(len(self.blocks)))

    def visible(self, query: int, key: int) -> bool:
        """Own frame up to the own scale; past frames inside the window as `history` says."""
        q, k = self.blocks[query], self.blocks[key]
        if q.frame == k.frame:
            return k.scale <= q.scale
        age = q.frame - k.frame
        in_window = 0 < age <= (self.window or self.num_frames)
        return in_window and (self.history == "full" or k.scale == len(self.scales) - 1)

    def positions(self, block: int) -> tuple[Position, ...]:
        """Raw grid coordinates; or scaled to a shared centre; or the running index on all axes."""
        at = self.blocks[block]
        cells = [(row, column) for row in range(at.grid[0]) for column in range(at.grid[1])]
        if self.rope == "seq1d":
            first = sum(earlier.num_tokens for earlier in self.blocks[:block])
            return tuple((first + i,) * 3 for i in range(at.num_tokens))
        if self.rope == "raw":
            return tuple((at.frame, row, column) for row, column in cells)
        step_h, step_w = (full / own for full, own in zip(self.scales[-1], at.grid, strict=True))
        return tuple(
            (at.frame, (row + 0.5) * step_h - 0.5, (column + 0.5) * step_w - 0.5)
            for row, column in cells
        )

    def weight(self, block: int) -> float:
        """Emphasise coarse scales by the square root of their share of the grid."""
        return math.sqrt(math.prod(self.scales[-1]) / self.blocks[block].num_tokens)


SCHEMES = {"videoar": NextFrameNextScale}


def attention_cells(scheme: Scheme) -> int:
    """Return how many (query, key) token pairs between blocks are visible."""
    blocks = scheme.blocks
    return sum(
        q.num_tokens * k.num_tokens
        for i, q in enumerate(blocks)
        for j, k in enumerate(blocks)
        if scheme.visible(i, j)
    )
