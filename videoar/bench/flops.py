"""Floating-point operations of the transformer, counted over what attention can see.

One idea: model FLOPs are those that the mathematics needs (visible pairs of tokens, no padding, no
recomputation), so their rate over the peak of a device (MFU, model FLOPs utilisation) rises only if
a step gets faster. A multiplication and an addition count as two. Norms, rotations and activations
are left out, as in torch's `FlopCounterMode`.

Source: arXiv 2204.02311 appendix B (MFU).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.schemes import Scheme, attention_cells

PEAK_BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 operations per second by name of the card. Source: NVIDIA's data sheets of the
H100, H200 and A100 SXM; PCIe cards have less."""


@dataclass(frozen=True)
class Flops:
    """Operations by kind."""

    matrices: int
    """Products with weights."""
    attention: int
    """Products of queries with keys, and of probabilities with values, of visible pairs."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.matrices + self.attention


def peak_flops(card: str) -> float | None:
    """Return the bf16 peak of a card in operations per second, None if it is not known."""
    known = (peak for name, peak in PEAK_BF16_FLOPS.items() if name in card and "PCIe" not in card)
    return next(known, None)


def attention_pairs(scheme: Scheme, text_tokens: int) -> int:
    """Return the visible (query, key) pairs of a sequence: causal text, then blocks."""
    tokens = sum(block.num_tokens for block in scheme.blocks)
    text = text_tokens * (text_tokens + 1) // 2
    return attention_cells(scheme) + tokens * text_tokens + text


def forward_flops(cfg: ModelConfig, scheme: Scheme, text_lengths: Sequence[int]) -> Flops:
    """Return the operations of one forward pass over whole sequences.

    Args:
        cfg: shape of the network.
        scheme: of every row.
        text_lengths: text tokens of each row, without padding.
    """
    tokens = len(text_lengths) * sum(block.num_tokens for block in scheme.blocks)
    # Rows of equal length have equal masks: schemes of 90 blocks take a millisecond each.
    pairs = {length: attention_pairs(scheme, length) for length in set(text_lengths)}
    visible = sum(pairs[length] for length in text_lengths)
    matrices = _per_token(cfg, tokens, sum(text_lengths))
    return Flops(matrices, 4 * cfg.depth * cfg.width * visible)


def training_flops(cfg: ModelConfig, scheme: Scheme, text_lengths: Sequence[int]) -> Flops:
    """Return the operations of a forward and a backward pass, without recomputation.

    The backward pass has two products per product: for the weights, and for the inputs; the
    features of latents need no gradient of their inputs.
    """
    tokens = len(text_lengths) * sum(block.num_tokens for block in scheme.blocks)
    forward = forward_flops(cfg, scheme, text_lengths)
    unneeded = 2 * tokens * cfg.num_bits * cfg.width
    return Flops(3 * forward.matrices - unneeded, 3 * forward.attention)


def _per_token(cfg: ModelConfig, visual: int, text: int) -> int:
    """Return the products with weights."""
    layer = cfg.width * (4 * cfg.width + 3 * cfg.ff_width)
    ends = cfg.width * 3 * cfg.num_bits  # features of K channels, head of 2 K
    text_mlp = cfg.width * (cfg.text_width + cfg.width)
    return 2 * (cfg.depth * layer * (visual + text) + ends * visual + text_mlp * text)
