"""VideoAR's own scheme: frame by frame, and inside a frame scale by scale.

Source: arXiv 2601.05966 equations 6-7 and figure 2.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from videoar.model.schedule import Scales
from videoar.model.transformer.schemes.base import Block, History, InputDown, Position, RopeLayout


@dataclass(frozen=True)
class NextFrameNextScale:
    """Next frame, next scale.

    `last_scale` with window 1 is the visibility of InfinityStar (arXiv 2511.04675).
    """

    num_frames: int
    """Latent frames, T'."""
    scales: Scales
    history: History = "full"
    window: int | None = None
    """Past latent frames that a frame attends to; None is all."""
    rope: RopeLayout = "raw"
    input_down: InputDown = "bilinear"

    requires = frozenset({"latent"})

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every scale of frame 0, then of frame 1, and so on.

        The parent of a frame's first scale is the last scale of the frame before: its input is the
        finished previous frame, resized to the coarsest grid (equation 7).
        """
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
        """Own frame up to the own scale; past frames inside the window, scales by `history`."""
        q, k = self.blocks[query], self.blocks[key]
        if q.frame == k.frame:
            return k.scale <= q.scale
        age = q.frame - k.frame
        in_window = 0 < age <= (self.window or self.num_frames)
        return in_window and (self.history == "full" or k.scale == len(self.scales) - 1)

    def positions(self, block: int) -> tuple[Position, ...]:
        """Return positions by `rope`.

        `raw`: grid coordinates of the block's own scale. `center`: the centres of its cells on the
        finest grid, so that one place of the picture has one position at all scales (ERNIE 5,
        arXiv 2602.04705 section 2.2). `seq1d`: the running token index on all axes, the baseline
        without spatial positions (arm A of the paper's table 4).
        """
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
        """Return the square root of the finest grid's tokens per token of the block.

        With plain means the last scale would have most of the loss: it has most of the tokens.
        Source: FoundationVision/Infinity.
        """
        return math.sqrt(math.prod(self.scales[-1]) / self.blocks[block].num_tokens)
