"""Keys and values of decoded blocks, for as long as a later block attends to them.

One idea: which blocks are kept follows from the scheme's `visible` alone. Before a pass, blocks
that neither it nor a later pass attends to are dropped and the others move together. So a pass over
one block computes the visible pairs of tokens and no others, and with a window memory does not
grow.

    scales 1x1 and 2x2, `last_scale`, window 1                stored (T text)
    pass of frame 1, scale 0     T | 0,1 0,1 0,1 0,1
    pass of frame 1, scale 1     T | 0,1 0,1 0,1 0,1 | 1,0
    pass of frame 2, scale 0     T | 1,1 1,1 1,1 1,1          frame 0 and scale 0 were dropped

B batch, N heads, L stored tokens, l tokens of a span, E head width, C channels.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, groupby
from typing import TypeAlias

import torch
from torch import Tensor

from videoar.model.transformer.attention import Layout, Visibility
from videoar.model.transformer.text import Text

Past: TypeAlias = tuple[Tensor, int]
"""Keys and values [2, B, N, capacity, E] of one layer, and the number of tokens in them."""


def extend(past: Past, k_BNlE: Tensor, v_BNlE: Tensor) -> tuple[Tensor, Tensor]:
    """Append keys and values of a span in place; return all of them."""
    storage, start = past
    stop = start + k_BNlE.shape[2]
    # In place: `torch.cat` would copy the whole cache in every pass.
    storage[0, :, :, start:stop] = k_BNlE
    storage[1, :, :, start:stop] = v_BNlE
    return storage[0, :, :, :stop], storage[1, :, :, :stop]


class KVCache:
    """The state of decoding one batch, in memory that is allocated once.

    Args:
        layout: order of prediction.
        text: prefix of every sample.
        rotation: of all tokens, see `rope.rotation`.
        layers: transformer layers.
        given: blocks that the first pass processes before those of its own wave.
    """

    def __init__(
        self, layout: Layout, text: Text, rotation: Tensor, layers: int, given: int = 0
    ) -> None:
        self.layout, self.rotation, self.layers = layout, rotation, layers
        self.visibility = Visibility.of(layout, text.mask_BP, None)
        self.prefix = text.mask_BP.shape[1]
        self.is_dense = text.is_dense
        self._loaded = self.rotation, self.visibility.valid_BL
        self.blocks: list[int] = []
        """Stored blocks; their tokens follow those of the text, in this order."""
        self.next_block = 0
        """First block that no pass has processed."""
        self.length = 0
        """Stored tokens, including text; 0 before the first pass."""
        self.capacity = self.prefix + max(self._needed(given))
        """Most tokens that are stored at a time."""
        self._storage: Tensor | None = None

    def _needed(self, given: int) -> Iterator[int]:
        """Yield the stored visual tokens of every pass: its own, and what it or later ones see."""
        waves = self.layout.scheme.waves
        number = [n for n, wave in enumerate(waves) for _ in wave]  # of the wave of each block
        first_pass = number[given]  # passes before it do not take place
        change = [0] * (len(waves) + 1)
        for block, last in enumerate(self.layout.last_query):
            change[max(number[block], first_pass)] += self._count([block])
            change[max(number[last], first_pass) + 1] -= self._count([block])
        return accumulate(change[:-1])

    def _count(self, blocks: Iterable[int]) -> int:
        offsets = self.layout.offsets
        return sum(offsets[i + 1] - offsets[i] for i in blocks)

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys and values of all layers."""
        return 0 if self._storage is None else self._storage.nbytes

    def begin(self, num_tokens: int) -> range:
        """Return the next blocks, of so many tokens in all; drop what they and later ones ignore.

        Raises:
            ValueError: the tokens end inside of a block.
        """
        offsets = self.layout.offsets
        stop = bisect_left(offsets, offsets[self.next_block] + num_tokens)
        blocks = range(self.next_block, stop)
        if self._count(blocks) != num_tokens:
            raise ValueError(f"{num_tokens} tokens from block {blocks.start} are no whole blocks")
        if self.next_block:
            self._drop()
        return blocks

    def end(self, blocks: range) -> None:
        """Count blocks as stored, after every layer has been extended by them."""
        self.blocks += blocks
        self.next_block = blocks.stop
        self.length = self.prefix + self._count(self.blocks)

    def _drop(self) -> None:
        """Drop blocks that no block from here on attends to; close the gaps they leave."""
        kept = [i for i in self.blocks if self.layout.last_query[i] >= self.next_block]
        sources, targets = (self._starts(each) for each in (self.blocks, kept))
        for shift, run in groupby(kept, key=lambda i: sources[i] - targets[i]):
            moved = list(run)
            self._move(sources[moved[0]], self._count(moved), shift)
        self.blocks = kept
        self.length = self.prefix + self._count(kept)

    def _starts(self, blocks: Iterable[int]) -> dict[int, int]:
        """Return the position of the first token of each of some stored blocks."""
        starts, position = {}, self.prefix
        for block in blocks:
            starts[block] = position
            position += self._count([block])
        return starts

    def _move(self, first: int, count: int, shift: int) -> None:
        """Move tokens of all layers to the front."""
        if self._storage is None or not shift:
            return
        for start in range(first, first + count, shift):  # parts do not overlap their targets
            stop = min(start + shift, first + count)
            self._storage[..., start - shift : stop - shift, :] = self._storage[..., start:stop, :]

    def mask(self, blocks: range) -> Tensor | None:
        """Return the mask of the next blocks over all stored tokens and themselves.

        None if they attend to all of them: SDPA then chooses its fastest kernel.
        """
        keys = [*self.blocks, *blocks]
        table = self.layout.host_table
        sees_all = all(table[query][key] for query in blocks for key in keys)
        if self.is_dense and self.next_block and sees_all:
            return None
        starts = [self.prefix + offset for offset in self.layout.offsets]
        spans = [(0, self.prefix), *((starts[i], starts[i + 1]) for i in keys)]
        device = self.visibility.block_L.device
        key_l = torch.cat([torch.arange(*span, device=device) for span in spans])
        first = starts[self.next_block] if self.next_block else 0
        return self.visibility.dense(first, starts[blocks.stop], key_l)

    def past(self, layer: int, x_BlC: Tensor, heads: int) -> Past:
        """Return a layer's keys and values, of the device of a span and the dtype of its layers."""
        if self._storage is None:
            batch, _, width = x_BlC.shape
            shape = (self.layers, 2, batch, heads, self.capacity, width // heads)
            self._storage = x_BlC.new_empty(shape, dtype=_layer_dtype(x_BlC))
        return self._storage[layer], self.length

    def load(self, rotation: Tensor, text_mask_BP: Tensor) -> None:
        """Replace what depends on the text, in place, for passes that are replayed."""
        own_rotation, valid_BL = self._loaded
        own_rotation.copy_(rotation)
        valid_BL[:, : self.prefix] = text_mask_BP

    def keep_rows(self, count: int) -> None:
        """Keep the first rows of the batch only."""
        self.rotation = self.rotation[:, :count]
        self.visibility = replace(self.visibility, valid_BL=self.visibility.valid_BL[:count])
        if self._storage is not None:
            self._storage = self._storage[:, :, :count]


def _layer_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
