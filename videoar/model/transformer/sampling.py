"""Generate videos: one forward pass per wave of blocks, each appended to the cache.

One idea: a seed determines its sample, because every sample has its own generator and every bit
compares one uniform number with its probability. In fp32 that holds alone or in a batch, cached or
not; in bf16 only at an equal batch size and padding, because matrix kernels round by the shape of
the batch.

    17 frames, 6 scales: T' = 5 latent frames, S = 6, so 30 waves of one block

    wave 0     input: zeros                    -> bits of frame 0, scale 0
    wave 1     input: rebuilt latent of wave 0 -> bits of frame 0, scale 1
    ...
    wave 6     input: finished frame 0         -> bits of frame 1, scale 0

Cost: T' * S passes; guidance doubles the batch, not the passes.

B batch, T latent frames, S scales, h w grid of one scale, K bits, l tokens of a block.
Source: arXiv 2601.05966 sections 4.3 and 6.1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.attention import Layout
from videoar.model.transformer.network import VideoAR, block_input
from videoar.model.transformer.schemes import Block

Guidance = Callable[[float, float], float]
"""Strength as a function of the position of the frame in the clip and of the scale in the frame,
both from 0 (first) to 1 (last)."""


def ucf_guidance(frame: float, scale: float) -> float:
    """Rise from 1 to 5 over the frames, and from there to 10 over the scales of each.

    Source: arXiv 2601.05966 section 6.1 (end points).
    """
    first = 1 + 4 * frame
    return first + (10 - first) * scale


def t2v_guidance(frame: float, scale: float) -> float:
    """Fall from 5 to 3. Source: arXiv 2601.05966 section 6.1 (end points; formula ours)."""
    return 5 - (frame + scale)


GUIDANCE: dict[str, Guidance] = {"ucf": ucf_guidance, "t2v": t2v_guidance}
_MAX_SEED = 2**63 - 1


def guidance_schedule(guidance: str | float) -> Guidance:
    """Return a named schedule, or a constant one.

    Raises:
        ValueError: no schedule has this name, or the number is not finite.
    """
    if isinstance(guidance, str):
        if guidance not in GUIDANCE:
            raise ValueError(
                f"unknown guidance {guidance!r}; use a number or one of {sorted(GUIDANCE)}"
            )
        return GUIDANCE[guidance]
    if not math.isfinite(guidance):
        raise ValueError(f"guidance {guidance} is not finite (1 is the model without guidance)")
    return lambda _frame, _scale: float(guidance)


@dataclass(frozen=True)
class SamplerSettings:
    """How bits are drawn.

    Raises:
        ValueError: see `guidance_schedule`; or the temperature is not finite and above 0.
    """

    guidance: str | float = "t2v"
    """`ucf`, `t2v` or a constant; 1 is the conditional model without guidance."""
    temperature: float = 1.0
    """Divides the log-odds of every bit."""
    greedy: bool = False
    """Take the likelier value of every bit."""
    cached: bool = True
    """False recomputes the whole prefix in every pass: the slow reference."""

    def __post_init__(self) -> None:
        guidance_schedule(self.guidance)
        if not 0 < self.temperature < math.inf:
            hint = "greedy=True takes the likelier values"
            raise ValueError(f"temperature {self.temperature} is not finite and above 0 ({hint})")


@dataclass(frozen=True)
class SampledBits:
    """Generated bits."""

    bits: list[Tensor]
    """Per scale bool [B, T, h, w, K]."""
    steps: int
    """Sequential forward passes."""


class Sampled(NamedTuple):
    """Generated videos."""

    video_B3THW: Tensor
    """In [-1, 1]."""
    steps: int
    """Sequential forward passes."""


class _SampleState:
    """The bits of a batch so far, and the latents rebuilt from them."""

    def __init__(self, layout: Layout, quantizer: MultiScaleBSQ, batch: int) -> None:
        self.blocks, self.input_down = layout.scheme.blocks, layout.scheme.input_down
        self.quantizer = quantizer
        lead, device = (batch, layout.num_frames), layout.block_l.device
        self.bits = [
            torch.zeros(*lead, h, w, quantizer.num_bits, dtype=torch.bool, device=device)
            for h, w in quantizer.scales
        ]
        # Kept per frame and updated by every scale, so that no pass sums up the codes again.
        self.rebuilt = torch.zeros(*lead, quantizer.num_bits, *quantizer.grid, device=device)

    def inputs(self, wave: Sequence[int]) -> Tensor:
        """Return the inputs of a wave's blocks, [B, l, K]."""
        return torch.cat([self._input(self.blocks[i]) for i in wave], dim=1)

    def _input(self, block: Block) -> Tensor:
        # Without a parent nothing has been rebuilt: frame 0 is still zero, as in training.
        frame = 0 if block.parent is None else self.blocks[block.parent].frame
        return block_input(self.rebuilt[:, frame], block.grid, self.input_down)

    def add(self, wave: Sequence[int], bits_BlK: Tensor) -> None:
        """Store the bits of a wave and add their codes to the rebuilt latents."""
        counts = [self.blocks[i].num_tokens for i in wave]
        for i, part in zip(wave, bits_BlK.split(counts, dim=1), strict=True):
            block = self.blocks[i]
            bits = rearrange(part, "b (h w) k -> b h w k", h=block.grid[0])
            self.bits[block.scale][:, block.frame] = bits
            self.rebuilt[:, block.frame] += self.quantizer.code_map(bits[:, None])[:, 0]


class _Decoder:
    """One batch of prompts: text, cache, guidance, and inputs that no pass has processed yet."""

    def __init__(
        self,
        model: VideoAR,
        prompts: Sequence[str],
        layout: Layout,
        settings: SamplerSettings,
        given: int,
    ) -> None:
        self.model, self.layout, self.settings = model, layout, settings
        schedule, last = guidance_schedule(settings.guidance), layout.scheme.blocks[-1]
        self.strengths = [  # the position on an axis of length 1 is 0
            schedule(block.frame / max(last.frame, 1), block.scale / max(last.scale, 1))
            for block in layout.scheme.blocks
        ]
        # Guidance runs the prompts twice in one batch: with and without their text.
        self.copies = 1 if set(self.strengths) == {1.0} else 2
        # Rows [0, n) are conditional, rows [n, 2n) the same prompts with unconditional features.
        unconditional = torch.arange(self.copies * len(prompts)) >= len(prompts)
        self.text = model.encode_text([*prompts] * self.copies, unconditional)
        self.cache = model.new_cache(layout, self.text, given) if settings.cached else None
        self.pending: list[Tensor] = []
        self.steps = 0

    def log_odds(self, wave: Sequence[int]) -> Tensor:
        """Run one pass over all pending inputs; return the log-odds of the wave's bits [B, l, K].

        With guidance of strength g: g * conditional + (1 - g) * unconditional.
        """
        features_BlK = torch.cat(self.pending, dim=1).repeat(self.copies, 1, 1)
        logits = self.model(features_BlK, self.text, self.layout, cache=self.cache)
        self.steps += 1
        # Pending inputs of given frames and of the uncached prefix precede those of the wave.
        logits = logits[:, -self.pending[-1].shape[1] :]
        if self.cache:  # without a cache the next pass repeats the whole prefix
            self.pending.clear()
        log_odds = logits[..., 1] - logits[..., 0]
        if self.copies == 1:
            return log_odds
        conditional, unconditional = log_odds.chunk(2)
        strength = self._strength(wave).to(log_odds, non_blocking=True)
        return unconditional + strength * (conditional - unconditional)

    def _strength(self, wave: Sequence[int]) -> Tensor:
        counts = torch.tensor([self.layout.scheme.blocks[i].num_tokens for i in wave])
        return torch.tensor([self.strengths[i] for i in wave]).repeat_interleave(counts)[:, None]

    def draw(self, wave: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        """Predict a wave and draw its bits, each sample with its own generator."""
        log_odds = self.log_odds(wave)
        if self.settings.greedy:
            return log_odds > 0
        uniform = torch.stack([torch.rand(log_odds.shape[1:], generator=g) for g in generators])
        p_BlK = torch.sigmoid(log_odds / self.settings.temperature)
        return uniform.to(p_BlK.device, non_blocking=True) < p_BlK


@torch.no_grad()
def sample_bits(
    model: VideoAR,
    prompts: Sequence[str],
    num_frames: int,
    seeds: Sequence[int],
    *,
    settings: SamplerSettings | None = None,
    prefix_bits: Sequence[Tensor] | None = None,
) -> SampledBits:
    """Generate the bits of one clip per prompt.

    Args:
        model: the transformer.
        prompts: one per sample.
        num_frames: pixel frames, 1 + a multiple of the time stride.
        seeds: one per sample, from 0 to 2^63 - 1. In fp32 the bits of a sample do not depend on the
            rest of the batch.
        settings: how bits are drawn.
        prefix_bits: per scale bool [B, t, h, w, K], the first latent frames, used as they are (an
            image or a video to continue); they need no pass of their own.

    Returns:
        The bits and the number of forward passes.

    Raises:
        ValueError: before the first pass. There are no prompts; the number of seeds differs or a
            seed is out of range; `num_frames` does not fit; the prefix has other scales, samples,
            bits or type, or leaves no latent frame to generate.
    """
    _require_seeds(seeds, len(prompts))
    layout = model.layout(num_frames)
    known = _prefix_frames(prefix_bits, model, len(prompts))
    if known >= layout.num_frames:
        raise ValueError(
            f"prefix_bits has {known} latent frames, a video of {num_frames} frames has no more"
        )
    state = _SampleState(layout, MultiScaleBSQ(model.cfg.num_bits, model.cfg.scales), len(prompts))
    given = sum(block.frame < known for block in layout.scheme.blocks)
    decoder = _Decoder(model, prompts, layout, settings or SamplerSettings(), given)
    # On the CPU: a CUDA generator would draw other numbers from the same seed.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for wave in layout.scheme.waves:
        decoder.pending.append(state.inputs(wave))
        blocks = [layout.scheme.blocks[i] for i in wave]
        if prefix_bits and all(block.frame < known for block in blocks):
            forced = [prefix_bits[b.scale][:, b.frame].flatten(1, 2) for b in blocks]
            state.add(wave, torch.cat(forced, dim=1).to(model.device))
        else:
            state.add(wave, decoder.draw(wave, generators))
    return SampledBits(state.bits, decoder.steps)


def _require_seeds(seeds: Sequence[int], num_prompts: int) -> None:
    if not num_prompts:
        raise ValueError("there are no prompts; an empty text is one")
    if len(seeds) != num_prompts:
        raise ValueError(f"{num_prompts} prompts but {len(seeds)} seeds")
    if wrong := [seed for seed in seeds if not 0 <= seed <= _MAX_SEED]:
        raise ValueError(f"seed {wrong[0]} is not between 0 and 2^63 - 1")


def _prefix_frames(prefix_bits: Sequence[Tensor] | None, model: VideoAR, batch: int) -> int:
    """Return the number of latent frames that are given; raise if their bits do not fit."""
    if not prefix_bits:
        return 0
    cfg = model.cfg
    if len(prefix_bits) != len(cfg.scales):
        hint = "encode it with the model's tokenizer"
        raise ValueError(
            f"prefix_bits has {len(prefix_bits)} scales, the model {len(cfg.scales)} ({hint})"
        )
    frames = prefix_bits[0].shape[1:2]
    for bits, grid in zip(prefix_bits, cfg.scales, strict=True):
        expected = (batch, *frames, *grid, cfg.num_bits)
        if bits.dtype != torch.bool or bits.shape != expected:
            found = f"{bits.dtype} {tuple(bits.shape)}"
            raise ValueError(f"prefix_bits of scale {grid} is {found}, expected bool {expected}")
    return frames[0]


def sample(  # noqa: PLR0913 - the public entry point, one keyword per choice of the caller
    model: VideoAR,
    tokenizer: VideoTokenizer,
    prompts: Sequence[str],
    num_frames: int = 17,
    *,
    guidance: str | float = "t2v",
    temperature: float = 1.0,
    greedy: bool = False,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    prefix_bits: Sequence[Tensor] | None = None,
) -> Sampled:
    """Generate one video per prompt.

    Args:
        model: the transformer.
        tokenizer: the tokenizer whose tokens it was trained on.
        prompts: texts.
        num_frames: pixel frames, 1 + a multiple of the time stride.
        guidance: `ucf`, `t2v` or a constant.
        temperature: divides the log-odds of every bit; below 1 likelier values are drawn more.
        greedy: take the likelier value of every bit.
        generator: draws one seed per sample; without it and `seeds`, seeds are 0, 1, 2, ...
        seeds: one per sample.
        prefix_bits: first latent frames, see `sample_bits`.

    Returns:
        The videos and the number of forward passes.

    Raises:
        ValueError: the tokenizer has other bits, scales or time stride than the model; or see
            `SamplerSettings` and `sample_bits`.
    """
    for name in ("num_bits", "scales", "time_stride"):
        of_tokenizer, of_model = getattr(tokenizer.cfg, name), getattr(model.cfg, name)
        if of_tokenizer != of_model:
            raise ValueError(f"the tokenizer has {name} {of_tokenizer}, the model {of_model}")
    # One draw per sample and not one generator for all: samples do not depend on the batch.
    if seeds is None and generator is not None:
        seeds = torch.randint(2**62, (len(prompts),), generator=generator).tolist()
    chosen = range(len(prompts)) if seeds is None else seeds
    settings = SamplerSettings(guidance, temperature, greedy)
    sampled = sample_bits(
        model, prompts, num_frames, chosen, settings=settings, prefix_bits=prefix_bits
    )
    with torch.no_grad():
        video_B3THW = tokenizer.detokenize(sampled.bits).clamp(-1, 1)
    return Sampled(video_B3THW, sampled.steps)
