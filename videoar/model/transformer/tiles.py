"""Which tiles of 128 x 128 tokens FlexAttention computes, from the ranges of blocks.

One idea: a tile holds whole ranges of blocks, so the number of its visible pairs is a sum over
pairs of blocks, and no mask is evaluated per token. The tiles of a layout are built once on the
CPU, in milliseconds, and serve every batch: text that is padding and frames that are hidden by
random frame masking only ever hide more, and tiles in which they can are *partial*.

    rows of a tile     block 3: 100 tokens, block 4: 28 tokens
    columns            block 2: 128 tokens
    visible pairs      100 * 128 * table[3, 2] + 28 * 128 * table[4, 2]
                       0: skipped    128 * 128: full, no mask is read    else: partial

Text is the table's last row and column, as in `attention`.
"""

from copy import copy
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from videoar.model.transformer.attention import Layout, Visibility
from videoar.model.transformer.schemes import TEXT

TILE = 128
"""Tokens of a side; FlexAttention's default."""


@lru_cache(maxsize=64)
def tiles(layout: Layout, prefix: int, hides_frames: bool) -> BlockMask:
    """Return the tiles of a whole sequence, on the layout's device, for any batch.

    Args:
        layout: order of prediction.
        prefix: text tokens, padding included.
        hides_frames: whether past frames can be hidden from single samples.
    """
    partial, full = classify(layout, prefix, hides_frames)
    length = prefix + layout.offsets[-1]
    mask = BlockMask.from_kv_blocks(
        *_ordered(partial), *_ordered(full), BLOCK_SIZE=TILE, seq_lengths=(length, length)
    )
    return mask.to(layout.block_l.device)


def classify(layout: Layout, prefix: int, hides_frames: bool) -> tuple[Tensor, Tensor]:
    """Return which tiles are partial and which are full: bool, rows by columns."""
    counts = _counts(layout, prefix)
    table = layout.host_table.clone()
    table[TEXT, TEXT] = False
    text = counts[:, TEXT] > 0
    causal = (text[:, None] & text).tril()  # text is causal within itself
    visible = (_pairs(counts, table) > 0) | causal
    table[:, TEXT] = False  # any token of the text may be padding
    if hides_frames:
        frame = torch.tensor([block.frame for block in layout.scheme.blocks] + [TEXT])
        table &= frame[:, None] == frame
    full = _pairs(counts, table) == TILE * TILE
    return visible & ~full, full


def _counts(layout: Layout, prefix: int) -> Tensor:
    """Return how many tokens of each block, and last of the text, each tile has."""
    edges = torch.tensor([*(prefix + offset for offset in layout.offsets)])
    first = torch.cat([edges[:-1], torch.tensor([0])])
    last = torch.cat([edges[1:], torch.tensor([prefix])])
    start = torch.arange(0, int(edges[-1]), TILE)[:, None]
    return (last.minimum(start + TILE) - first.maximum(start)).clamp(min=0).double()


def _pairs(counts: Tensor, table: Tensor) -> Tensor:
    """Return the number of visible pairs of every tile; exact, they are far below 2^53."""
    return counts @ table.double() @ counts.T


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return number and indices of the chosen columns of each row, as FlexAttention reads them."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1).int()[None, None], order.int()[None, None]


def tile_mask(layout: Layout, visibility: Visibility) -> BlockMask:
    """Return the mask of a batch over the whole sequence, for FlexAttention."""
    prefix = len(visibility.block_L) - layout.offsets[-1]
    mask = copy(tiles(layout, prefix, visibility.keep_BTT is not None))

    def mask_mod(b: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visibility.mask_mod(b, q, k)

    mask.mask_mod = mask_mod
    return mask
