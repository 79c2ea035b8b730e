"""Which tiles of 128 x 128 tokens FlexAttention computes, from the ranges of blocks.

One idea: a tile holds ranges of blocks, so the number of its visible pairs is a sum over pairs of
blocks, and no mask is evaluated per token.

    rows of a tile     block 3: 100 tokens, block 4: 28 tokens
    columns            block 2: 128 tokens
    visible pairs      100 * 128 * table[3, 2] + 28 * 128 * table[4, 2]
                       0: skipped    128 * 128: full, no mask is read    else: partial

The tiles of a layout serve every batch and are built once: a tile with text is partial, as text may
be padding. Hidden frames (random frame masking) are drawn in every step, so then each sample has
own tiles, built on its device by two small products.

Text is the table's last row and column, as in `attention`. B batch, T latent frames.
"""

from copy import copy
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from videoar.model.transformer.attention import Layout, Visibility
from videoar.model.transformer.schemes import TEXT

TILE = 128
"""Tokens of a side; FlexAttention's default."""


def tile_mask(layout: Layout, visibility: Visibility) -> BlockMask:
    """Return the mask of a batch over the whole sequence, for FlexAttention."""
    prefix = len(visibility.block_L) - layout.offsets[-1]
    keep_BTT = visibility.keep_BTT
    if keep_BTT is None:
        mask = copy(_shared_mask(layout, prefix))
    else:
        mask = _block_mask(layout, prefix, keep_BTT)

    def mask_mod(b: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visibility.mask_mod(b, q, k)

    mask.mask_mod = mask_mod
    return mask


@lru_cache(maxsize=64)
def _shared_mask(layout: Layout, prefix: int) -> BlockMask:
    return _block_mask(layout, prefix, None)


def _block_mask(layout: Layout, prefix: int, keep_BTT: Tensor | None) -> BlockMask:
    partial, full = classify(layout, prefix, keep_BTT)
    length = prefix + layout.offsets[-1]
    return BlockMask.from_kv_blocks(
        *_ordered(partial), *_ordered(full), BLOCK_SIZE=TILE, seq_lengths=(length, length)
    )


def classify(layout: Layout, prefix: int, keep_BTT: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return which tiles are partial and which are full.

    Args:
        layout: order of prediction.
        prefix: text tokens, padding included.
        keep_BTT: as that of `Visibility`, text last; None keeps all, for any batch.

    Returns:
        Both bool [B, rows, columns], B = 1 without `keep_BTT`.
    """
    blocks = _blocks(layout, prefix)
    table_BSS = layout.table[None]
    if keep_BTT is not None:
        table_BSS = table_BSS & keep_BTT[:, blocks.frame[:, None], blocks.frame]
    # float64: exact, and autocast leaves it alone
    rows, columns = blocks.counts[:, :TEXT], blocks.counts.T
    pairs = rows @ table_BSS[:, :TEXT].double() @ columns  # without those of text by text
    of_blocks = rows @ table_BSS[:, :TEXT, :TEXT].double() @ columns[:TEXT]
    full = of_blocks == TILE * TILE
    return ((pairs > 0) | blocks.causal) & ~full, full


class _Blocks(NamedTuple):
    """The blocks of a sequence as tiles have them, on the layout's device."""

    counts: Tensor
    """Tokens of each block, and last of the text, in each tile; float64."""
    frame: Tensor
    """Of each block, and last that of text."""
    causal: Tensor
    """Tiles of text by text."""


@lru_cache(maxsize=64)
def _blocks(layout: Layout, prefix: int) -> _Blocks:
    edges = torch.tensor([prefix + offset for offset in layout.offsets])
    first = torch.cat([edges[:-1], torch.tensor([0])])
    last = torch.cat([edges[1:], torch.tensor([prefix])])
    start = torch.arange(0, int(edges[-1]), TILE)[:, None]
    counts = (last.minimum(start + TILE) - first.maximum(start)).clamp(min=0)
    text = counts[:, TEXT] > 0
    frame = torch.tensor([*(block.frame for block in layout.scheme.blocks), TEXT])
    causal = (text[:, None] & text).tril()
    return _Blocks(*(each.to(layout.table.device) for each in (counts.double(), frame, causal)))


def _ordered(chosen_Bqk: Tensor) -> tuple[Tensor, Tensor]:
    """Return number and indices of the chosen columns of each row, as FlexAttention reads them."""
    order = chosen_Bqk.int().argsort(dim=-1, descending=True, stable=True)
    return chosen_Bqk.sum(-1).int()[:, None], order.int()[:, None]
