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
    """Loss and what one wants to see of it."""

    loss: Tensor
    """Weighted nats per bit, mean over the batch; ln 2 for a coin."""
    accuracy: Tensor
    """Share of bits whose likelier value is right, unweighted."""


def bit_loss(logits_BLK2: Tensor, bits_BLK: Tensor, weight_L: Tensor) -> BitLoss:
    """Score predicted bits.

    Args:
        logits_BLK2: float32 logits of 0 and 1.
        bits_BLK: bool labels.
        weight_L: token weights that sum to 1.
    """
    margin = logits_BLK2[..., 1] - logits_BLK2[..., 0]  # two-way softmax is a logistic
    nats = F.binary_cross_entropy_with_logits(margin, bits_BLK.to(margin.dtype), reduction="none")
    loss = (nats.mean(dim=(0, 2)) * weight_L).sum()
    with torch.no_grad():
        accuracy = ((margin > 0) == bits_BLK).float().mean()
    return BitLoss(loss, accuracy)
