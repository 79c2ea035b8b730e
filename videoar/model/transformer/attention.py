"""Attention masks and attention: dense on CPU, FlexAttention on CUDA.

One idea: a scheme compiles to two int vectors (block and frame of each token) and a table over
blocks. Every mask (training, cached decoding, windows, random frame masks) is a lookup in them, so
both back ends share one definition. Text is the table's last row and column.

    2 frames, scales 1x1 and 2x1, 2 text tokens
    token        0  1 | 2 | 3  4 | 5 | 6  7
    block        4  4 | 0 | 1  1 | 2 | 3  3
    frame        2  2 | 0 | 0  0 | 1 | 1  1
    token 6 attends to token 3 iff table[3, 1], and to text token 1 iff it is no padding

Cost: the dense mask takes B * Q * L bytes; FlexAttention skips tiles of 128 x 128 that are masked.

B batch, L all tokens (text first), Q queried tokens, T latent frames, N heads, E head width.
"""

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
    host_table: Sequence[Sequence[bool]]
    """The same in main memory, so that no decision waits for a GPU."""
    offsets: tuple[int, ...]
    """First token of each block, and the number of tokens."""
    last_query: tuple[int, ...]
    """The last block that attends to each block."""

    @property
    def num_frames(self) -> int:
        """Latent frames."""
        return self.scheme.blocks[-1].frame + 1

    @property
    def num_scales(self) -> int:
        """Scales of a frame."""
        return 1 + max(block.scale for block in self.scheme.blocks)


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
        host_table=table.tolist(),
        offsets=offsets,
        last_query=tuple(int(table[:TEXT, i].nonzero().max()) for i in range(len(blocks))),
    )


@dataclass(frozen=True)
class Visibility:
    """The mask of a batch, as lookups."""

    block_L: Tensor
    frame_L: Tensor
    """Block and frame of each token; those of the prefix are the numbers after the last ones.

    Not -1: FlexAttention's kernels do not wrap negative indices and would read other memory.
    """
    table: Tensor
    valid_BL: Tensor
    """False for the padding of text."""
    keep_BTT: Tensor | None = None
    """Past frames that each frame keeps (random frame masking); None keeps all."""

    @classmethod
    def of(cls, layout: Layout, text_mask_BP: Tensor, keep_BTT: Tensor | None) -> "Visibility":
        """Return the mask of a layout with a text prefix."""
        batch, prefix = text_mask_BP.shape
        text = layout.block_l.new_full((prefix,), len(layout.table) - 1)
        of_text = torch.full_like(text, layout.num_frames)
        visual = text_mask_BP.new_ones(batch, len(layout.block_l))
        if keep_BTT is not None:
            # The new last row and column are those of text: always visible.
            keep_BTT = F.pad(keep_BTT, (0, 1, 0, 1), value=True)
        return cls(
            torch.cat([text, layout.block_l]),
            torch.cat([of_text, layout.frame_l]),
            layout.table,
            torch.cat([text_mask_BP, visual], dim=1),
            keep_BTT,
        )

    def mask_mod(self, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Return whether token q of batch row b attends to token k; indices broadcast."""
        block_q, block_k = self.block_L[q], self.block_L[k]
        visible = self.table[block_q, block_k] & self.valid_BL[b, k]
        is_text = block_q == len(self.table) - 1
        visible = visible & (~is_text | (k <= q))  # text is causal within itself
        if self.keep_BTT is None:
            return visible
        return visible & self.keep_BTT[b, self.frame_L[q], self.frame_L[k]]

    def dense(self, start: int, stop: int, key_l: Tensor | None = None) -> Tensor:
        """Return the mask of the queries [start, stop): [B, 1, Q, L].

        Args:
            start: first query.
            stop: after the last query.
            key_l: tokens that are keys; by default [0, stop).
        """
        index = torch.arange(stop, device=self.block_L.device)
        rows = torch.arange(len(self.valid_BL), device=index.device)
        keys = index if key_l is None else key_l
        return self.mask_mod(rows[:, None, None], index[start:, None], keys).unsqueeze(1)


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
