"""The transformer: a text prefix and one token per position of every block in, bits out.

One idea: the input of a block is the latent that has been rebuilt so far, resized to the block's
grid. So all tokens of a block are predicted in one pass; everything else is a LLaMA-style decoder.
The same `forward` trains on whole sequences and decodes span by span with a cache.

B batch, P text tokens, L visual tokens of all blocks, l visual tokens of a span, N heads, E head
width, C channels, K bits, T latent frames, H W latent grid.
Source: arXiv 2601.05966 sections 4.2 and 6.1; block ours ("LLaMA family principles").
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videoar.model.schedule import Scale, Scales
from videoar.model.tokenizer.quantizer import resize
from videoar.model.transformer.attention import AttentionMask, Layout, Visibility, compile_scheme
from videoar.model.transformer.cache import KVCache
from videoar.model.transformer.config import ModelConfig
from videoar.model.transformer.layer import Checkpointing, Layer
from videoar.model.transformer.rope import rotation
from videoar.model.transformer.schemes import InputDown, Scheme
from videoar.model.transformer.text import Text, TextEncoder, WordEncoder
from videoar.model.transformer.tiles import tile_mask

_FLEX_FROM_TOKENS = 8192
"""Chosen: at 4,264 tokens both take the same time (benchmarks/results/gpu.md), and FlexAttention
takes longer to compile; above, the mask of dense attention would take over 64 MiB per sample."""


def block_input(rebuilt_BKHW: Tensor, grid: Scale, how: InputDown) -> Tensor:
    """Return a block's input features [B, l, K] from the latent frame rebuilt after its parent.

    Args:
        rebuilt_BKHW: the latent frame.
        grid: (h, w) of the block.
        how: `bilinear` reads the nearest cells only, 4 of 64 from 8 x 8 to 1 x 1; `area` takes the
            mean of all.

    Source: arXiv 2601.05966 equations 6-7; bilinear FoundationVision/Infinity.
    """
    is_area = how == "area"
    reduced = F.adaptive_avg_pool2d(rebuilt_BKHW, grid) if is_area else resize(rebuilt_BKHW, grid)
    return rearrange(reduced, "b k h w -> b (h w) k")


def teacher_forcing_inputs(scheme: Scheme, accumulated: Sequence[Tensor]) -> Tensor:
    """Return the inputs of all blocks from a known history, for training.

    Args:
        scheme: order of prediction.
        accumulated: per scale [B, T, K, H, W], from the quantizer (with CFEC's flips in it).

    Returns:
        features_BLK; zeros for blocks without a parent.
    """
    zero_BK1 = torch.zeros_like(accumulated[0][:, 0, :, 0, :1])
    inputs = [zero_BK1.expand(-1, -1, block.num_tokens).mT for block in scheme.blocks]
    # All frames of a scale at once: about S kernels in place of T * S, which are tiny.
    for (scale, grid), members in _resized_alike(scheme).items():
        rebuilt = torch.stack([accumulated[scale][:, frame] for _, frame in members])
        features = block_input(rebuilt.flatten(0, 1), grid, scheme.input_down)
        for (index, _), feature_BlK in zip(members, features.chunk(len(members)), strict=True):
            inputs[index] = feature_BlK
    return torch.cat(inputs, dim=1)


def _resized_alike(scheme: Scheme) -> dict[tuple[int, Scale], list[tuple[int, int]]]:
    """Return (block, frame of its parent) by the parent's scale and the block's grid."""
    groups: dict[tuple[int, Scale], list[tuple[int, int]]] = defaultdict(list)
    for index, block in enumerate(scheme.blocks):
        if block.parent is not None:
            parent = scheme.blocks[block.parent]
            groups[parent.scale, block.grid].append((index, parent.frame))
    return groups


def flatten_bits(scheme: Scheme, bits: Sequence[Tensor]) -> Tensor:
    """Return bits (per scale [B, T, h, w, K]) in the order of the scheme's tokens, [B, L, K]."""
    return torch.cat([bits[b.scale][:, b.frame].flatten(1, 2) for b in scheme.blocks], dim=1)


class VideoAR(nn.Module):
    """Predict the bits of a video's blocks from text and earlier blocks.

    Args:
        cfg: shape of the network.
        text_encoder: the frozen encoder that `cfg` names. It is no submodule: nothing of it is
            initialised, trained, averaged, moved or saved with the model. Without one, a `cfg` that
            names none has the embedded encoder, which is trained with the model.

    Raises:
        ValueError: `cfg` names another text encoder, or expects another width.
    """

    text_encoder: TextEncoder | None

    def __init__(self, cfg: ModelConfig, text_encoder: TextEncoder | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.checkpointing: Checkpointing = "none"
        self.attention: Literal["auto", "dense", "flex"] = "auto"
        """Kernel of attention over whole sequences; auto is FlexAttention for long ones on CUDA."""
        self.is_compiled = False
        self.text_encoder = None
        if text_encoder is not None:
            self.set_text_encoder(text_encoder)
        elif not cfg.text_encoder:
            self.text_encoder = WordEncoder(cfg.text_width, cfg.max_text_tokens, cfg.word_buckets)
        self.unconditional = nn.Parameter(torch.empty(cfg.max_text_tokens, cfg.text_width))
        self.text_norm = nn.RMSNorm(cfg.text_width, eps=1e-6)
        self.text_mlp = nn.Sequential(
            nn.Linear(cfg.text_width, cfg.width), nn.GELU(), nn.Linear(cfg.width, cfg.width)
        )
        self.features = nn.Linear(cfg.num_bits, cfg.width)
        self.start = nn.Parameter(torch.empty(cfg.width))
        self.scales = nn.Embedding(cfg.max_scales, cfg.width)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.depth))
        self.norm = nn.RMSNorm(cfg.width, eps=1e-6)
        self.head = nn.Linear(cfg.width, 2 * cfg.num_bits)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):  # chosen: 0.02 at width 2560, larger when narrower
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Every layer adds two outputs to the residual stream; scaled down, the variance of the
        # stream does not grow with depth. Source: GPT-2.
        for layer in self._layers():
            for last in (layer.attention.out, layer.feed_forward.down):
                last.weight.data.mul_((2 * self.cfg.depth) ** -0.5)
        # Chosen: half the scale of projected latents, which they are added to or stand for.
        for embedding in (self.unconditional, self.start, self.scales.weight):
            nn.init.normal_(embedding, std=0.5)
        # Rebuilt latents have norm about 1 over K channels, so std 1 gives tokens of variance 1.
        nn.init.normal_(self.features.weight, std=1.0)
        self.head.weight.data.mul_(0.02)  # logits near 0: the loss starts at ln 2 per bit

    def set_text_encoder(self, encoder: TextEncoder) -> None:
        """Encode prompts with the frozen encoder that `cfg` names.

        Raises:
            ValueError: it is another one.
        """
        if (encoder.width, encoder.digest) != (self.cfg.text_width, self.cfg.text_encoder):
            raise ValueError(
                f"text encoder of width {encoder.width} and digest {encoder.digest!r}; the"
                f" model has {self.cfg.text_width} and {self.cfg.text_encoder!r}"
            )
        if isinstance(encoder, nn.Module):
            encoder.requires_grad_(False).eval()
        object.__setattr__(self, "text_encoder", encoder)  # not `self.`, which registers modules

    def compile_layers(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the layers with torch.compile, all in one graph.

        Per layer and not as a whole: all layers share a graph, so compiling takes seconds at any
        depth. Names of weights stay as they are.

        Args:
            backend: of torch.compile.
        """
        # Shapes, kernels and decoding have a graph each; at the default of 8 a run would fail.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        compute = torch.compile(Layer.checkpointed, fullgraph=True, backend=backend)
        for layer in self._layers():
            layer.compute = compute
        self.is_compiled = True

    def compile_passes(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile what is before and after attention in a layer, for sampling.

        Passes of sampling have many lengths, and each keeps its keys and values at another place:
        attention and the cache stay outside of the graphs, so that one serves all lengths.

        Args:
            backend: of torch.compile.
        """
        make = partial(torch.compile, fullgraph=True, dynamic=True, backend=backend)
        before, after = make(Layer.before_attention), make(Layer.after_attention)
        for layer in self._layers():
            layer.before, layer.after = before, after

    @property
    def kernels_key(self) -> Hashable:
        """What recorded kernels depend on: addresses of the weights, how layers are compiled."""
        layer = next(self._layers())
        addresses = tuple(weight.data_ptr() for weight in self.parameters())
        return (*addresses, layer.before, layer.after)

    def num_parameters(self) -> int:
        """Return the number of weights, without the text encoder."""
        encoder = "text_encoder."
        return sum(w.numel() for name, w in self.named_parameters() if not name.startswith(encoder))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.start.device

    def to_bf16(self) -> Self:
        """Convert the weights to bf16 for sampling, in place, but those of the head and its norm.

        The log-odds of a bit are a small difference, and what they are computed from stays fp32.
        """
        precise = {id(weight) for part in (self.norm, self.head) for weight in part.parameters()}
        for weight in self.parameters():
            if id(weight) not in precise:
                weight.data = weight.data.bfloat16()
        return self

    def layout(self, num_frames: int, scales: Scales | None = None) -> Layout:
        """Return the token layout of a clip; see `ModelConfig.scheme_for`."""
        return compile_scheme(self.cfg.scheme_for(num_frames, scales), self.device)

    def encode_text(self, prompts: Sequence[str], drop_B: Tensor | None = None) -> Text:
        """Encode prompts; where `drop_B` is true, return the unconditional features instead.

        They are as many as the prompt's tokens, so that the positions of visual tokens, which start
        where the prompt ends, are the same with and without the prompt: guidance compares the two.

        Raises:
            ValueError: the model was built without its frozen text encoder, or the encoder returns
                more than `cfg.max_text_tokens` tokens.
        """
        if self.text_encoder is None:
            raise ValueError(f"the model needs its text encoder {self.cfg.text_encoder_name!r}")
        text = self.text_encoder(prompts)
        if text.mask_BP.shape[1] > self.cfg.max_text_tokens:
            tokens, limit = text.mask_BP.shape[1], self.cfg.max_text_tokens
            raise ValueError(f"a prompt of {tokens} text tokens; max_text_tokens is {limit}")
        # A frozen encoder may be on another device or of another precision.
        features_BPD = text.features_BPD.to(self.device).to(self.start.dtype)  # fewer bytes first
        text = Text(features_BPD, text.mask_BP.to(self.device))
        if drop_B is None:
            return text
        blank = self.unconditional[: text.mask_BP.shape[1]]
        drop = drop_B.to(self.device, non_blocking=True)[:, None, None]
        return Text(torch.where(drop, blank, text.features_BPD), text.mask_BP)

    def new_cache(self, layout: Layout, text: Text, given: int = 0) -> KVCache:
        """Return an empty cache of a clip; see `KVCache`."""
        return KVCache(layout, text, self.rotation(text, layout), self.cfg.depth, given)

    def forward(
        self,
        features_BlK: Tensor,
        text: Text,
        layout: Layout,
        *,
        keep_BTT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return the logits of a span of visual tokens.

        Args:
            features_BlK: inputs of the span. Without a cache it starts at token 0, with a cache
                after the blocks that it has processed, and is one of whole blocks.
            text: prefix; it is part of the first span of a cache.
            layout: order of prediction.
            keep_BTT: random frame mask, for training.
            cache: extended in place.

        Returns:
            logits [B, l, K, 2] of bit = 0 and bit = 1, at least float32.
        """
        if cache is None and (self.is_compiled or self.device.type == "cuda"):
            text = text.padded()  # few lengths: every one has an own graph and own tiles
        blocks = cache.begin(features_BlK.shape[1]) if cache else range(0)
        first = layout.offsets[blocks.start]  # first visual token of the span
        x = self._embed(features_BlK, layout, first)
        if first == 0:
            x = torch.cat([self.text_mlp(self.text_norm(text.features_BPD)).to(x.dtype), x], dim=1)
        angles = cache.rotation if cache else self.rotation(text, layout)
        # Positions in the sequence of all tokens, text first: [stop - length, stop) is this span's.
        stop = text.mask_BP.shape[1] + first + features_BlK.shape[1]
        angles = angles[..., stop - x.shape[1] : stop, :]
        mask = cache.mask(blocks) if cache else self._mask(layout, text, keep_BTT, stop)
        has_backward = self.training and torch.is_grad_enabled()
        kind = self.checkpointing if has_backward else "none"
        for index, layer in enumerate(self.layers):
            past = cache.past(index, x, self.cfg.heads) if cache else None
            x = layer(x, angles, mask, past, kind)
        if cache:
            cache.end(blocks)
        # The first span also holds the text, which predicts nothing.
        return self._logits(x[:, -features_BlK.shape[1] :])

    def _embed(self, features_BlK: Tensor, layout: Layout, first: int) -> Tensor:
        span = slice(first, first + features_BlK.shape[1])
        x = self.features(features_BlK.to(self.start.dtype))
        # Blocks without a parent have no input; a trained vector marks the start instead.
        x = torch.where(layout.starts_l[span, None], self.start.to(x.dtype), x)
        return x + self.scales(layout.scale_l[span])

    def rotation(self, text: Text, layout: Layout) -> Tensor:
        """Return the rotation of all tokens.

        Text token i is at (i, i, i); visual positions are offset by the length of the prompt, not
        of the padded prefix: a sample does not depend on the other prompts of its batch.
        """
        words = torch.arange(text.mask_BP.shape[1], device=self.device).float()
        words_BP3 = words[None, :, None].expand(len(text.mask_BP), -1, 3)
        visual_BL3 = layout.positions_l3 + text.lengths[:, None, None]
        positions = torch.cat([words_BP3, visual_BL3], dim=1)
        return rotation(positions, self.cfg.head_width, self.cfg.rope_base)

    def _mask(
        self, layout: Layout, text: Text, keep_BTT: Tensor | None, stop: int
    ) -> AttentionMask:
        """Return the mask of the first tokens of a sequence."""
        visibility = Visibility.of(layout, text.mask_BP, keep_BTT)
        is_long = self.device.type == "cuda" and stop > _FLEX_FROM_TOKENS
        is_whole = stop == len(visibility.block_L)
        if is_whole and (self.attention == "flex" or (self.attention == "auto" and is_long)):
            return tile_mask(layout, visibility)
        return visibility.dense(0, stop)

    def _layers(self) -> Iterator[Layer]:
        return (module for module in self.modules() if isinstance(module, Layer))

    def _logits(self, x_BlC: Tensor) -> Tensor:
        """Apply the head in full precision: the log-odds of a bit are a small difference."""
        with torch.autocast(x_BlC.device.type, enabled=False):
            logits = self.head(self.norm(x_BlC.to(self.head.weight.dtype)))
        return rearrange(logits, "b l (k two) -> b l k two", two=2)
