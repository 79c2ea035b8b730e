"""Bitwise cross-entropy with emphasis on coarse scales.

B batch, L visual tokens, K bits.
Source: arXiv 2601.05966 section 4.2; weights FoundationVision/Infinity.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
    # A softmax over two logits is a logistic of their difference.
    log_odds = logits_BLK2[..., 1] - logits_BLK2[..., 0]
    labels = bits_BLK.to(log_odds.dtype)
    nats = F.binary_cross_entropy_with_logits(log_odds, labels, reduction="none")
    loss = (nats.mean(dim=(0, 2)) * weight_L).sum()
    with torch.no_grad():
        accuracy = ((log_odds > 0) == bits_BLK).float().mean()
    return BitLoss(loss, accuracy)
