"""The waves of one window of frames: what is known before the first pass is computed before it.

B batch, T latent frames, h w grid of one scale, K bits, l tokens of a wave, L tokens of all waves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.attention import Layout
from videoar.model.transformer.network import VideoAR, block_input
from videoar.model.transformer.sampling.guidance import guide, log_odds
from videoar.model.transformer.sampling.settings import SamplerSettings
from videoar.model.transformer.schemes import Block
from videoar.model.transformer.text import Text


@dataclass(frozen=True)
class LatentFrame:
    """A finished latent frame of a batch."""

    bits: list[Tensor]
    """Per scale bool [B, h, w, K]."""
    latent_BKHW: Tensor
    is_given: bool
    """Whether it was given, not generated."""
    steps: int
    """Sequential forward passes so far."""
    video: int = 0
    """Number of the video that it is part of: every window of re-encoded frames is one."""


@dataclass(frozen=True)
class Wave:
    """State of a batch after a wave of blocks."""

    frame: int
    """Latent frame of its last block, from the start of the window."""
    scale: int
    """Scale of its last block."""
    latent_BKHW: Tensor
    """That frame as rebuilt so far: a coarse picture that becomes sharper scale by scale."""
    steps: int
    """Sequential forward passes so far; given waves need none."""
    finished: Sequence[LatentFrame] = ()
    """Frames that this wave has completed."""


@dataclass(frozen=True)
class Span:
    """Frames of a layout: those before `first` are given, those from `stop` on are left out."""

    layout: Layout
    first: int
    stop: int

    @property
    def waves(self) -> list[tuple[int, ...]]:
        """Waves of all frames before `stop`."""
        return [w for w in self.layout.scheme.waves if max(self._frames(w)) < self.stop]

    def is_given(self, wave: Sequence[int]) -> bool:
        """Return whether all blocks of a wave are given."""
        return max(self._frames(wave)) < self.first

    @property
    def given_waves(self) -> list[tuple[int, ...]]:
        """Waves of the given frames, which need no pass."""
        return [wave for wave in self.waves if self.is_given(wave)]

    @property
    def num_given(self) -> int:
        """Blocks of given waves."""
        return sum(map(len, self.given_waves))

    def _frames(self, wave: Sequence[int]) -> list[int]:
        return [self.layout.scheme.blocks[i].frame for i in wave]


class _Frames:
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
        self, model: VideoAR, prompts: Sequence[str], span: Span, settings: SamplerSettings
    ) -> None:
        self.model, self.layout, self.settings = model, span.layout, settings
        self.batch, blocks = len(prompts), span.layout.scheme.blocks
        strengths = settings.strengths(blocks)
        guided = [i for w in span.waves if not span.is_given(w) for i in w if strengths[i] != 1]
        self.last_guided = max(guided, default=-1)
        self.strength_L1 = self._per_token(strengths)
        temperatures = settings.temperatures(self.layout.num_scales)
        self.temperature_L1 = self._per_token([temperatures[block.scale] for block in blocks])
        # Guidance runs the prompts twice in one batch: with and without their text.
        self.copies = 2 if guided else 1
        # Rows [0, n) are conditional, rows [n, 2n) the same prompts with unconditional features.
        unconditional = torch.arange(self.copies * self.batch) >= self.batch
        self.text = model.encode_text([*prompts] * self.copies, unconditional)
        cached = settings.cached
        self.cache = model.new_cache(span.layout, self.text, span.num_given) if cached else None
        self.pending: list[Tensor] = []
        self.steps = 0

    def _per_token(self, values: Sequence[float]) -> Tensor:
        counts = torch.tensor([block.num_tokens for block in self.layout.scheme.blocks])
        tokens = torch.tensor(values).repeat_interleave(counts)[:, None]
        return tokens.to(self.model.device, non_blocking=True)

    def log_odds(self, wave: Sequence[int]) -> Tensor:
        """Run one pass over all pending inputs; return the log-odds of the wave's bits [B, l, K].

        They are guided and divided by the temperature.
        """
        if self.copies == 2 and wave[0] > self.last_guided:
            self._end_guidance()
        features_BlK = torch.cat(self.pending, dim=1).repeat(self.copies, 1, 1)
        logits = self.model(features_BlK, self.text, self.layout, cache=self.cache)
        self.steps += 1
        # Pending inputs of given frames and of the uncached prefix precede those of the wave.
        logits = logits[:, -self.pending[-1].shape[1] :]
        if self.cache:  # without a cache the next pass repeats the whole prefix
            self.pending.clear()
        tokens = slice(self.layout.offsets[wave[0]], self.layout.offsets[wave[-1] + 1])
        temperature_l1 = self.temperature_L1[tokens].to(logits)
        if self.copies == 1:
            return log_odds(logits) / temperature_l1
        strength_l1 = self.strength_L1[tokens].to(logits)
        if self.settings.apg:  # its threshold is one of logits that have been divided
            with_text, without = (logits / temperature_l1[..., None]).chunk(2)
            return log_odds(self.settings.apg.guide(with_text, without, strength_l1))
        with_text, without = log_odds(logits).chunk(2)
        return guide(with_text, without, strength_l1) / temperature_l1

    def _end_guidance(self) -> None:
        """Go on without the unconditional rows: no later block is guided."""
        self.copies = 1
        self.text = Text(self.text.features_BPD[: self.batch], self.text.mask_BP[: self.batch])
        if self.cache:
            self.cache.keep_rows(self.batch)


@torch.no_grad()
def decode(  # noqa: PLR0913 - what a window needs; all are of different types
    model: VideoAR,
    quantizer: MultiScaleBSQ,
    prompts: Sequence[str],
    span: Span,
    settings: SamplerSettings,
    *,
    generators: Sequence[torch.Generator],
    given: Sequence[Tensor],
) -> Iterator[Wave]:
    """Yield after every wave of a window, with the frames that it has finished, given ones too.

    Args:
        model: the transformer.
        quantizer: of the grid.
        prompts: one per sample.
        span: which frames of the layout.
        settings: how bits are drawn.
        generators: one per sample; each draws the uniform numbers of the window at once.
        given: per scale bool [B, t, h, w, K] of the frames before `span.first`.
    """
    frames = _Frames(span.layout, quantizer, len(prompts))
    decoder = _Decoder(model, prompts, span, settings)
    blocks, offsets = span.layout.scheme.blocks, span.layout.offsets
    last_block = {block.frame: i for i, block in enumerate(blocks)}
    drawn = offsets[span.num_given]  # first token to draw
    uniform_BLK = None if settings.greedy else _uniform(span, quantizer.num_bits, generators)
    finished = 0
    for wave in span.waves:
        decoder.pending.append(frames.inputs(wave))
        if span.is_given(wave):
            parts = [given[blocks[i].scale][:, blocks[i].frame].flatten(1, 2) for i in wave]
            frames.add(wave, torch.cat(parts, dim=1).to(model.device))
        else:
            log_odds_BlK = decoder.log_odds(wave)
            start, stop = offsets[wave[0]] - drawn, offsets[wave[-1] + 1] - drawn
            is_one = (
                log_odds_BlK > 0
                if uniform_BLK is None
                else uniform_BLK[:, start:stop] < torch.sigmoid(log_odds_BlK)
            )
            frames.add(wave, is_one)
        last, done = blocks[wave[-1]], list[LatentFrame]()
        while finished < span.stop and last_block[finished] <= wave[-1]:
            bits = [of_scale[:, finished] for of_scale in frames.bits]
            is_given = finished < span.first
            done.append(LatentFrame(bits, frames.rebuilt[:, finished], is_given, decoder.steps))
            finished += 1
        yield Wave(last.frame, last.scale, frames.rebuilt[:, last.frame], decoder.steps, done)


def _uniform(span: Span, num_bits: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Return uniform numbers of all bits that are drawn, [B, L, K].

    Drawn at once, a CPU generator gives the numbers that it gives wave by wave. It is one of the
    CPU, as a CUDA generator would draw other numbers from the same seed.
    """
    offsets = span.layout.offsets
    tokens = offsets[span.waves[-1][-1] + 1] - offsets[span.num_given]
    drawn = [torch.rand(tokens, num_bits, generator=each) for each in generators]
    return torch.stack(drawn).to(span.layout.block_l.device, non_blocking=True)
