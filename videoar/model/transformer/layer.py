"""One layer of the transformer: attention, feed-forward, and what is kept for the backward pass.

B batch, l tokens of a span, N heads, E head width, C channels.
Source: the layer is ours ("LLaMA family principles", arXiv 2601.05966 section 4.2).
"""

from functools import partial
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from videoar.model.transformer.attention import AttentionMask, attend
from videoar.model.transformer.cache import Past, extend
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.rope import rotate

Checkpointing: TypeAlias = Literal["none", "selective", "full"]
"""Which activations of a layer are computed again in the backward pass instead of kept: none; all
but the outputs of matrix products and of attention; all."""

_KEPT_BY_SELECTIVE = {
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}


def _keep_products(
    _context: object, op: object, *_args: object, **_kwargs: object
) -> CheckpointPolicy:
    if op in _KEPT_BY_SELECTIVE:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


class Attention(nn.Module):
    """Multi-head attention with rotary positions; queries and keys are normalised per head.

    The norms bound the logits of attention, whose growth makes large models diverge. Source: arXiv
    2302.05442 section 2.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.heads = cfg.heads
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width, bias=False)
        self.query_norm = nn.RMSNorm(cfg.head_width, eps=1e-6)
        self.key_norm = nn.RMSNorm(cfg.head_width, eps=1e-6)
        self.out = nn.Linear(cfg.width, cfg.width, bias=False)

    def project(self, x_BlC: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of a span, each [B, N, l, E].

        Args:
            x_BlC: the span.
            rotation: of the span's positions, see `rope.rotation`.
        """
        q, k, v = rearrange(self.qkv(x_BlC), "b l (i n e) -> i b n l e", i=3, n=self.heads)
        # Under autocast in fp32, the type of the norms, until after the rotation: RMSNorm has no
        # fused kernel for an input of another type than its weight.
        wide = self.query_norm.weight.dtype
        q, k = self.query_norm(q.to(wide)), self.key_norm(k.to(wide))
        return rotate(q, rotation).to(v.dtype), rotate(k, rotation).to(v.dtype), v

    def merge(self, attended_BNlE: Tensor) -> Tensor:
        """Return the output [B, l, C] of what the heads have attended to."""
        return self.out(rearrange(attended_BNlE, "b n l e -> b l (n e)"))


class FeedForward(nn.Module):
    """SwiGLU, its gate and its input in one matrix."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(cfg.width, 2 * cfg.ff_width, bias=False)
        self.down = nn.Linear(cfg.ff_width, cfg.width, bias=False)

    def forward(self, x_BlC: Tensor) -> Tensor:
        """Transform every token independently."""
        gate, up = self.gate_up(x_BlC).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(cfg.width, eps=1e-6)
        self.attention = Attention(cfg)
        self.feed_forward_norm = nn.RMSNorm(cfg.width, eps=1e-6)
        self.feed_forward = FeedForward(cfg)
        # Not compiled with the module: the hooks of FSDP must stay outside of the graph.
        self.compute = Layer.checkpointed
        self.before, self.after = Layer.before_attention, Layer.after_attention

    def forward(
        self,
        x_BlC: Tensor,
        rotation: Tensor,
        mask: AttentionMask,
        past: Past | None = None,
        checkpointing: Checkpointing = "none",
    ) -> Tensor:
        """Update a span; see `Attention`."""
        return self.compute(self, x_BlC, rotation, mask, past, checkpointing)

    def checkpointed(
        self,
        x_BlC: Tensor,
        rotation: Tensor,
        mask: AttentionMask,
        past: Past | None,
        checkpointing: Checkpointing,
    ) -> Tensor:
        """Update a span, keeping only some activations for the backward pass."""
        if checkpointing == "none":
            return self.update(x_BlC, rotation, mask, past)
        # A layer draws nothing, and reading the state of a GPU's generator waits for it.
        again = partial(checkpoint, self.update, use_reentrant=False, preserve_rng_state=False)
        if checkpointing == "full":
            return again(x_BlC, rotation, mask, past)
        # Made here: dynamo takes no context that is a global.
        contexts = partial(create_selective_checkpoint_contexts, _keep_products)
        return again(x_BlC, rotation, mask, past, context_fn=contexts)

    def update(
        self, x_BlC: Tensor, rotation: Tensor, mask: AttentionMask, past: Past | None
    ) -> Tensor:
        """Update a span.

        Args:
            x_BlC: the span.
            rotation: of the span's positions, see `rope.rotation`.
            mask: of the span's queries over all keys.
            past: keys and values before the span, extended in place.
        """
        q, k, v = self.before(self, x_BlC, rotation)
        if past is not None:
            k, v = extend(past, k, v)
        return self.after(self, x_BlC, attend(q, k, v, mask))

    def before_attention(self, x_BlC: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of a span."""
        return self.attention.project(self.attention_norm(x_BlC), rotation)

    def after_attention(self, x_BlC: Tensor, attended_BNlE: Tensor) -> Tensor:
        """Add what the heads have attended to, and the feed-forward."""
        x_BlC = x_BlC + self.attention.merge(attended_BNlE)
        return x_BlC + self.feed_forward(self.feed_forward_norm(x_BlC))
