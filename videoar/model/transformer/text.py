"""Text as a prefix of tokens: the protocol of text encoders, and the embedded default.

One idea: the transformer only needs features and a mask, so a frozen T5 and the trainable encoder
here are interchangeable. The default has one token per word, the mean of embeddings of its hashed
byte n-grams (as fastText): no vocabulary, no download, and a prompt takes a few tokens instead of
512. It is part of the model; every other encoder is frozen and stays outside of it.

B batch, P text tokens, D text width.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Text:
    """Encoded prompts, padded on the right."""

    features_BPD: Tensor
    mask_BP: Tensor
    """True where there is a token."""

    @property
    def lengths(self) -> Tensor:
        """Tokens of each prompt."""
        return self.mask_BP.sum(1)

    @cached_property
    def is_dense(self) -> bool:
        """Whether no prompt is padded. Reading it from a GPU waits for it, once."""
        return bool(self.mask_BP.all())

    def padded(self) -> "Text":
        """Pad further, to a power of two of at least 8 tokens; true lengths stay as they are."""
        more = max(8, 1 << (self.mask_BP.shape[1] - 1).bit_length()) - self.mask_BP.shape[1]
        return Text(F.pad(self.features_BPD, (0, 0, 0, more)), F.pad(self.mask_BP, (0, more)))


class TextEncoder(Protocol):
    """Encodes prompts to features of a fixed width."""

    width: int
    """D."""
    digest: str
    """Identity: encoders of equal digest return equal features."""

    def __call__(self, prompts: Sequence[str]) -> Text:
        """Encode prompts; every prompt has at least one token."""


class WordEncoder(nn.Module):
    """One token per word: the mean of the embeddings of its hashed byte 3-grams and of itself.

    Args:
        width: D.
        max_tokens: further words are dropped.
        buckets: rows of the embedding table; n-grams of equal hash share a row.
    """

    digest = ""  # its weights are those of the model

    def __init__(self, width: int, max_tokens: int, buckets: int) -> None:
        super().__init__()
        self.width = width
        self.max_tokens = max_tokens
        self.buckets = buckets
        self.table = nn.EmbeddingBag(buckets, width, mode="mean")

    def forward(self, prompts: Sequence[str]) -> Text:
        """Encode prompts; case and spacing are ignored, an empty prompt is one empty word."""
        words = [(prompt.lower().split() or [""])[: self.max_tokens] for prompt in prompts]
        grams = [self._buckets_of(word) for row in words for word in row]
        lengths = torch.tensor([len(row) for row in words])
        mask_BP = torch.arange(max(map(len, words))) < lengths[:, None]
        starts = torch.tensor([0, *map(len, grams)]).cumsum(0)[:-1]
        flat = torch.tensor([gram for word in grams for gram in word])
        # All on the CPU and moved at the end, so that no pass waits for a GPU: the places of words
        # are indices, as the gradient of a masked scatter asks the device how many there are.
        flat, starts, places, mask_BP = (
            each.to(self.table.weight.device, non_blocking=True)
            for each in (flat, starts, mask_BP.flatten().nonzero()[:, 0], mask_BP)
        )
        features = self.table.weight.new_zeros(mask_BP.numel(), self.table.embedding_dim)
        features = features.index_copy(0, places, self.table(flat, starts))
        return Text(features.view(*mask_BP.shape, -1), mask_BP)

    def _buckets_of(self, word: str) -> list[int]:
        # Brackets tell a prefix from the same bytes inside a word: "<re", "red", "ed>".
        framed = f"<{word}>".encode()
        grams = [framed, *(framed[i : i + 3] for i in range(len(framed) - 2))]
        # crc32, not `hash`: the buckets must be the same in every process.
        return [zlib.crc32(gram) % self.buckets for gram in grams]
