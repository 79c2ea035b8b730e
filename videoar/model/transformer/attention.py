"""Attention masks and attention: dense on CPU, FlexAttention on CUDA.

One idea: a scheme compiles to two int vectors (block and frame of each token) and a table over
blocks. Every mask (training, cached decoding, windows, random frame masks) is a lookup in them, so
both back ends share one definition. Text is the table's last row and column (index -1).

    2 frames, scales 1x1 and 2x1, 2 text tokens
    token        0  1 | 2 | 3  4 | 5 | 6  7
    block       -1 -1 | 0 | 1  1 | 2 | 3  3
    frame       -1 -1 | 0 | 0  0 | 1 | 1  1
    token 6 attends to token 3 iff table[3, 1], and to text token 1 iff it is no padding

Cost: the dense mask takes B * Q * L bytes; FlexAttention skips tiles of 128 x 128 that are masked.

B batch, L all tokens (text first), Q queried tokens, T latent frames, N heads, E head width.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from videoar.model.transformer.draws import FRAMES, bernoulli
from videoar.model.transformer.schemes import TEXT, Scheme


@dataclass(frozen=True, eq=False)  # compared by identity: `compile_scheme` returns it again
class Layout:
    """A scheme compiled for one device. Vectors run over visual tokens only."""

    scheme: Scheme
    block_l: Tensor
    frame_l: Tensor
    scale_l: Tensor
    starts_l: Tensor
    """True for tokens whose block has no parent."""
    positions_l3: Tensor
    weight_l: Tensor
    """Loss weights; they sum to 1."""
    table: Tensor
    """bool [blocks + 1, blocks + 1], query by key; the last row and column are text."""
    offsets: tuple[int, ...]
    """First token of each block, and the number of tokens."""
    sees_all: tuple[bool, ...]
    """Whether each block attends to every block before it."""

    @property
    def num_frames(self) -> int:
        """Latent frames."""
        return self.scheme.blocks[-1].frame + 1

    @property
    def num_scales(self) -> int:
        """Scales of a frame."""
        return 1 + max(block.scale for block in self.scheme.blocks)

    def attends_to_all(self, start: int, stop: int) -> bool:
        """Return whether the tokens [start, stop) attend to each other and to all before them."""
        block = bisect_right(self.offsets, start) - 1
        is_block = self.offsets[block : block + 2] == (start, stop)
        return is_block and self.sees_all[block]


@lru_cache(maxsize=32)
def compile_scheme(scheme: Scheme, device: torch.device) -> Layout:
    """Expand a scheme from blocks to tokens.

    Cached because training, every sampling step and every batch ask for the same few schemes, and
    Python loops over pairs of blocks take milliseconds.
    """
    blocks = scheme.blocks
    counts = [block.num_tokens for block in blocks]
    offsets = (0, *torch.tensor(counts).cumsum(0).tolist())
    table = torch.zeros(len(blocks) + 1, len(blocks) + 1, dtype=torch.bool)
    table[:, TEXT] = True  # everything attends to text; the row of text stays empty but for itself
    for i in range(len(blocks)):
        # Later blocks are never visible, so half of the table need not be computed.
        table[i, : i + 1] = torch.tensor([scheme.visible(i, j) for j in range(i + 1)])

    def per_token(values: Sequence[float]) -> Tensor:
        return torch.tensor(values).repeat_interleave(torch.tensor(counts)).to(device)

    weight = per_token([scheme.weight(i) for i in range(len(blocks))])
    positions = [position for i in range(len(blocks)) for position in scheme.positions(i)]
    return Layout(
        scheme=scheme,
        block_l=per_token(range(len(blocks))),
        frame_l=per_token([block.frame for block in blocks]),
        scale_l=per_token([block.scale for block in blocks]),
        starts_l=per_token([block.parent is None for block in blocks]),
        positions_l3=torch.tensor(positions, dtype=torch.float32, device=device),
        weight_l=weight / weight.sum(),  # the loss is a weighted mean, whatever the schedule
        table=table.to(device),
        offsets=offsets,
        sees_all=tuple(bool(table[i, :i].all()) for i in range(len(blocks))),
    )


@dataclass(frozen=True)
class Visibility:
    """The mask of a batch, as lookups."""

    block_L: Tensor
    frame_L: Tensor
    """Block and frame of each token; `TEXT` for the prefix."""
    table: Tensor
    valid_BL: Tensor
    """False for the padding of text."""
    keep_BTT: Tensor | None = None
    """Past frames that each frame keeps (random frame masking); None keeps all."""

    @classmethod
    def of(cls, layout: Layout, text_mask_BP: Tensor, keep_BTT: Tensor | None) -> "Visibility":
        """Return the mask of a layout with a text prefix."""
        batch, prefix = text_mask_BP.shape
        text = layout.block_l.new_full((prefix,), TEXT)
        visual = text_mask_BP.new_ones(batch, len(layout.block_l))
        if keep_BTT is not None:
            # The new last row and column are those of text (frame -1): always visible.
            keep_BTT = F.pad(keep_BTT, (0, 1, 0, 1), value=True)
        return cls(
            torch.cat([text, layout.block_l]),
            torch.cat([text, layout.frame_l]),
            layout.table,
            torch.cat([text_mask_BP, visual], dim=1),
            keep_BTT,
        )

    def mask_mod(self, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Return whether token q of batch row b attends to token k; indices broadcast."""
        block_q, block_k = self.block_L[q], self.block_L[k]
        visible = self.table[block_q, block_k] & self.valid_BL[b, k]
        visible = visible & ((block_q != TEXT) | (k <= q))  # text is causal within itself
        if self.keep_BTT is None:
            return visible
        return visible & self.keep_BTT[b, self.frame_L[q], self.frame_L[k]]

    def dense(self, start: int, stop: int) -> Tensor:
        """Return the mask of the queries [start, stop) over the keys [0, stop): [B, 1, Q, L]."""
        index = torch.arange(stop, device=self.block_L.device)
        rows = torch.arange(len(self.valid_BL), device=index.device)
        return self.mask_mod(rows[:, None, None], index[start:, None], index).unsqueeze(1)


AttentionMask: TypeAlias = "Tensor | BlockMask | None"
"""Dense bool [B, 1, Q, L], tiles for FlexAttention, or None: every query attends to every key."""


def attend(q_BNQE: Tensor, k_BNLE: Tensor, v_BNLE: Tensor, mask: AttentionMask) -> Tensor:
    """Return the attention's output [B, N, Q, E]."""
    if not isinstance(mask, BlockMask):
        return F.scaled_dot_product_attention(q_BNQE, k_BNLE, v_BNLE, attn_mask=mask)
    if torch.compiler.is_compiling() or not q_BNQE.is_cuda:
        return flex_attention(q_BNQE, k_BNLE, v_BNLE, block_mask=mask)
    return _compiled_flex_attention()(q_BNQE, k_BNLE, v_BNLE, block_mask=mask)


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Tensor]:
    # Lazy: it loads inductor, which takes seconds. dynamic: static shapes would compile for each.
    return torch.compile(flex_attention, dynamic=True)


Past: TypeAlias = tuple[Tensor, int]
"""Keys and values [2, B, N, longest, E] of one layer, and the number of tokens in them so far."""


def extend(past: Past, k_BNlE: Tensor, v_BNlE: Tensor) -> tuple[Tensor, Tensor]:
    """Append keys and values of a span in place; return all of them."""
    storage, start = past
    stop = start + k_BNlE.shape[2]
    # In place: `torch.cat` would copy the whole cache in every pass.
    storage[0, :, :, start:stop] = k_BNlE
    storage[1, :, :, start:stop] = v_BNlE
    return storage[0, :, :, :stop], storage[1, :, :, :stop]


class KVCache:
    """Keys and values of all tokens decoded so far, in memory that is allocated once.

    Args:
        layers: transformer layers.
        longest: tokens of the whole sequence, including text.
        is_dense: whether no text token is padding, so that spans may need no mask.
    """

    def __init__(self, layers: int, longest: int, is_dense: bool = False) -> None:
        self.longest, self.is_dense = longest, is_dense
        self.length = 0
        """Tokens of all layers; the caller moves it when every layer has been extended."""
        self._storage: list[Tensor | None] = [None] * layers

    def past(self, layer: int, x_BlC: Tensor, heads: int) -> Past:
        """Return a layer's keys and values, of the device of a span and the dtype of its layers."""
        storage = self._storage[layer]
        if storage is None:
            batch, _, width = x_BlC.shape
            shape = (2, batch, heads, self.longest, width // heads)
            storage = x_BlC.new_empty(shape, dtype=_layer_dtype(x_BlC))
            self._storage[layer] = storage
        return storage, self.length


def _layer_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def random_frame_mask(seed_B: Tensor, num_frames: int, p_mask: float) -> Tensor:
    """Draw which past frames each frame keeps; a frame always keeps itself.

    Args:
        seed_B: int64 seed of each row, see `draws`.
        num_frames: latent frames.
        p_mask: probability of hiding a past frame. Source: 0.1 (ours).

    Returns:
        bool [B, T, T], query frame by key frame. Later frames and frames outside the window are
        masked by the scheme, whatever is drawn for them.
    Source: arXiv 2601.05966 equation 9.
    """
    hidden = bernoulli(seed_B, FRAMES, num_frames * num_frames, p_mask)
    own = torch.eye(num_frames, dtype=torch.bool, device=seed_B.device)
    return ~hidden.view(-1, num_frames, num_frames) | own
