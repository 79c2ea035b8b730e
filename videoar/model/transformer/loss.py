"""Bitwise cross-entropy with emphasis on coarse scales.

B batch, L visual tokens, K bits, T latent frames, S scales.
Source: arXiv 2601.05966 section 4.2; weights FoundationVision/Infinity.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from videoar.model.transformer.attention import Layout


@dataclass(frozen=True)
class BitLoss:
    """Loss and accuracy of a batch."""

    loss: Tensor
    """Weighted nats per bit, mean over the batch; ln 2 at chance level."""
    accuracy: Tensor
    """Share of bits whose likelier value is the label, unweighted."""


def bit_loss(logits_BLK2: Tensor, bits_BLK: Tensor, weight_L: Tensor) -> BitLoss:
    """Return the weighted cross-entropy of predicted bits.

    Args:
        logits_BLK2: float32 logits of 0 and 1.
        bits_BLK: bool labels.
        weight_L: token weights that sum to 1.
    """
    nats, is_right = _score(logits_BLK2, bits_BLK)
    return BitLoss((nats.mean(dim=(0, 2)) * weight_L).sum(), is_right.float().mean())


def _score(logits_BLK2: Tensor, bits_BLK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of every bit, and whether its likelier value is the label."""
    # A softmax over two logits is a logistic of their difference.
    log_odds = logits_BLK2[..., 1] - logits_BLK2[..., 0]
    labels = bits_BLK.to(log_odds.dtype)
    nats = F.binary_cross_entropy_with_logits(log_odds, labels, reduction="none")
    return nats, (log_odds > 0) == bits_BLK


@dataclass(frozen=True)
class BlockStatistics:
    """Quality per frame and scale, summed over the rows of a batch.

    Sums of batches and ranks add up; divided by the number of rows they are means.
    """

    nats_TS: Tensor
    """Cross-entropy per bit, unweighted; ln 2 at chance level. float32."""
    accuracy_TS: Tensor
    """Share of bits whose likelier value is the label. float32."""


@torch.no_grad()
def block_statistics(logits_BLK2: Tensor, bits_BLK: Tensor, layout: Layout) -> BlockStatistics:
    """Return the sums over rows of the mean cross-entropy and accuracy of every block.

    Args:
        logits_BLK2: logits of 0 and 1.
        bits_BLK: bool labels.
        layout: of the tokens; frames and scales without a block get 0.
    """
    blocks = layout.scheme.blocks
    sums = [values.float().mean(dim=2).sum(dim=0) for values in _score(logits_BLK2, bits_BLK)]
    result_2TS = torch.zeros(2, layout.num_frames, layout.num_scales, device=bits_BLK.device)
    # Every block's tokens are contiguous; a scatter would add in another order on every GPU run.
    parts = torch.stack(sums).split([block.num_tokens for block in blocks], dim=1)
    for block, part_2l in zip(blocks, parts, strict=True):
        result_2TS[:, block.frame, block.scale] = part_2l.mean(dim=1)
    return BlockStatistics(*result_2TS)
