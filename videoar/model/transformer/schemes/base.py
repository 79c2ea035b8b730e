"""What every prediction scheme provides, and nothing about any one of them.

Text is block -1: every block attends to it, it attends to no block. A block is predicted in one
forward pass, its tokens independently given everything visible. Blocks of one wave share a pass and
never attend to each other; so a finished wave can be appended to the cache and never changes.

Example, 2 latent frames with scales 1x1 and 2x2 (`next_scale`):

    block          0        1        2        3
    frame, scale   0, 0     0, 1     1, 0     1, 1
    tokens         1        4        1        4
    parent         -        0        1        2      the rebuilt latent that is the block's input
    attends to     text     text     text     text
                   0        0 1      0 1 2    0 1 2 3    (history "full")
                                     1 2      1 2 3      (history "last_scale")
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

History = Literal["full", "last_scale"]
"""Scales of past frames that are visible: all, or the last one, which sums up the others."""
RopeLayout = Literal["raw", "center", "seq1d"]
"""How grid cells of a block become positions, see `NextFrameNextScale.positions`."""
InputDown = Literal["bilinear", "area"]
"""How a rebuilt latent is reduced to the grid of a block, whose input it is."""
Position = tuple[float, float, float]
"""Time, row, column."""

TEXT = -1
"""Index of the text prefix in a table over blocks: the last row and column."""


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
    """An order of prediction."""

    requires: frozenset[str]
    """Columns of the token store that training reads."""

    @property
    def input_down(self) -> InputDown:
        """How inputs of blocks are reduced to their grids."""

    @property
    def blocks(self) -> Sequence[Block]:
        """Blocks in decode order; they cover every target token exactly once."""

    @property
    def waves(self) -> Sequence[tuple[int, ...]]:
        """Blocks that are decoded in the same forward pass; a partition of the blocks in order."""

    def __hash__(self) -> int:
        """Hash by value: equal schemes share one compiled layout."""

    def visible(self, query: int, key: int) -> bool:
        """Return whether a block's tokens attend to another block's; never to a later one."""

    def positions(self, block: int) -> Sequence[Position]:
        """Return the position of each token, before the offset of the text prefix."""

    def weight(self, block: int) -> float:
        """Return the loss weight of each token of a block, before normalisation."""


def attention_cells(scheme: Scheme) -> int:
    """Return the number of visible (query, key) token pairs between blocks."""
    blocks = scheme.blocks
    return sum(
        q.num_tokens * k.num_tokens
        for i, q in enumerate(blocks)
        for j, k in enumerate(blocks)
        if scheme.visible(i, j)
    )
