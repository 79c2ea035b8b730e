"""Whole clips: what is given, windows that slide over long videos, decoding to pixels.

One idea: a long video is generated window by window. A window keeps the last latent frames of the
one before as given frames at its start: their keys and values are computed again, at positions that
the model was trained on. So memory and the time of a frame stay those of one window.

    window of 5 latent frames, 3 are kept
    frames      0 1 2 3 4
                    2 3 4 5 6        at positions 0 1 2 3 4
                        4 5 6 7 8

Kept as bits, frames are exactly those that were generated. With `reencode` they are decoded to
pixels and encoded again, as in the paper: the first one then is a single picture, as in training. A
change of the prompt starts a window, too.

B batch, T latent frames, h w grid of one scale, K bits.
Source: arXiv 2601.05966 section 6 (re-encoding); windows in latent space are ours.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from videoar.model.schedule import Scales, latent_frames
from videoar.model.tokenizer.network import CHUNK_PIXELS, StreamDecoder, VideoTokenizer
from videoar.model.tokenizer.quantizer import MultiScaleBSQ
from videoar.model.transformer.network import VideoAR
from videoar.model.transformer.sampling.decoder import LatentFrame, Span, Wave, decode
from videoar.model.transformer.sampling.settings import SamplerSettings

_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class SlidingWindow:
    """How a video that is longer than the model's clips is generated."""

    num_frames: int
    """Pixel frames of a window, at most those that the model was trained on; 1 + a multiple of the
    time stride."""
    kept: int | None = None
    """Latent frames of a window that are those before it; None is half of it, rounded up. Source: 5
    of 9 (ours)."""
    reencode: bool = False
    """Decode and encode the kept frames instead of keeping their bits. Source: the paper."""


class Task(TypedDict, total=False):
    """What is to be generated, beside the prompts."""

    prefix_bits: Sequence[Tensor] | None
    """Per scale bool [B, t, h, w, K], the first latent frames, used as they are (an image or a
    video to continue); they need no pass of their own."""
    resumed: Sequence[LatentFrame]
    """In place of `prefix_bits`: the first frames of these clips as they were generated from these
    seeds, to go on after them with other prompts. They are not yielded again; the frames that
    follow are those of a clip in which `prompt_changes` says the same. Empty is none."""
    window: SlidingWindow | None
    """For videos that are longer than the clips of the training."""
    prompt_changes: Mapping[int, Sequence[str]] | None
    """Prompts that replace those before them, by the latent frame from which they hold."""


@dataclass(frozen=True)
class SampledBits:
    """Generated bits."""

    bits: list[Tensor]
    """Per scale bool [B, T, h, w, K]."""
    steps: int
    """Sequential forward passes."""


class Sampled(NamedTuple):
    """Generated videos, or the next frames of them."""

    video_B3THW: Tensor
    """In [-1, 1]."""
    steps: int
    """Sequential forward passes so far."""


class _Clips:
    """One batch of clips; everything is checked before the first pass."""

    def __init__(  # noqa: PLR0913 - the union of what the functions below take
        self,
        model: VideoAR,
        prompts: Sequence[str],
        num_frames: int,
        seeds: Sequence[int],
        settings: SamplerSettings | None,
        scales: Scales | None,
        *,
        prefix_bits: Sequence[Tensor] | None = None,
        resumed: Sequence[LatentFrame] = (),
        window: SlidingWindow | None = None,
        prompt_changes: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        _require_seeds(seeds, len(prompts))
        self.model, self.prompts, self.window = model, prompts, window
        self.settings = settings or SamplerSettings()
        self.scales = scales or model.cfg.scales
        self.settings.temperatures(len(self.scales))
        self.total = latent_frames(num_frames, model.cfg.time_stride)
        longest = min(num_frames, window.num_frames) if window else num_frames
        self.layout = model.layout(longest, scales)
        self.kept = self._kept_frames()
        self.resumed = list(resumed)
        self.given = _last_bits(resumed, len(resumed)) if resumed else prefix_bits or ()
        self.known = _prefix_frames(self.given, self.scales, model.cfg.num_bits, len(prompts))
        if self.known >= self.total:
            what = f"prefix_bits has {self.known} latent frames"
            raise ValueError(f"{what}, a video of {num_frames} frames has no more")
        self.changes = prompt_changes or {}
        for frame, changed in self.changes.items():
            if not self.known < frame < self.total or len(changed) != len(prompts):
                raise ValueError(
                    f"prompt_changes: {len(changed)} prompts from latent frame {frame}; expected"
                    f" {len(prompts)}, from a frame after {self.known} and before {self.total}"
                )
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = sum(not frame.is_given for frame in resumed) * sum(h * w for h, w in self.scales)
        for generator in self.generators:
            torch.rand(drawn, model.cfg.num_bits, generator=generator)  # numbers that were used

    def _kept_frames(self) -> int:
        """Return how many latent frames a later window keeps; raise if it would generate none."""
        longest, kept = self.layout.num_frames, self.window.kept if self.window else None
        if kept is None:
            kept = (longest + 1) // 2
        if self.total > longest and not 0 < kept < longest:
            raise ValueError(f"a window of {longest} latent frames cannot keep {kept}")
        return kept

    def spans(self) -> Iterator[tuple[Span, Sequence[str]]]:
        """Yield the windows and their prompts."""
        done, prompts, longest = self.known, self.prompts, self.layout.num_frames
        while done < self.total:
            prompts = self.changes.get(done, prompts)
            first = done if done < longest else self.kept
            ends = (frame for frame in self.changes if frame > done)
            stop = min(self.total, done - first + longest, *ends)
            yield Span(self.layout, first, first + stop - done), prompts
            done = stop

    def waves(
        self, reencode: Callable[[Sequence[LatentFrame], int], Sequence[Tensor]] | None = None
    ) -> Iterator[Wave]:
        """Yield after every wave; frames are finished in order.

        Args:
            reencode: returns the bits of the last so many of some frames. With it, a window
                finishes its given frames again, which differ from those before.
        """
        quantizer = MultiScaleBSQ(self.model.cfg.num_bits, self.scales)
        given, recent, steps = self.given, list[LatentFrame](), self._steps
        done = len(self.resumed)
        if self.known >= self.layout.num_frames:  # more than a window: as if it were generated
            recent, done = self.resumed or _given_frames(self.given, quantizer), self.known
            if not self.resumed:
                last = recent[-1].latent_BKHW
                yield Wave(done - 1, len(self.scales) - 1, last, steps, recent)
        for number, (span, prompts) in enumerate(self.spans(), start=int(bool(recent))):
            if number:
                keep = reencode or _last_bits
                given = keep(recent, span.first)
            recent, before, start = [], steps, done - span.first if number else 0
            for wave in decode(
                self.model, quantizer, prompts, span, self.settings,
                generators=self.generators, given=given,
            ):  # fmt: skip
                steps = before + wave.steps
                video = number if reencode else 0
                finished = [replace(f, steps=steps, video=video) for f in wave.finished]
                recent += finished
                if reencode or start + wave.frame >= done:  # others were yielded before
                    yield replace(wave, frame=start + wave.frame, steps=steps, finished=finished)
            done = start + span.stop

    def frames(
        self, reencode: Callable[[Sequence[LatentFrame], int], Sequence[Tensor]] | None = None
    ) -> Iterator[LatentFrame]:
        """Yield the frames in order, as soon as they are finished; see `waves`."""
        return (frame for wave in self.waves(reencode) for frame in wave.finished)

    @property
    def passes(self) -> int:
        """Forward passes of the whole clip."""
        passes = [len(span.waves) - len(span.given_waves) for span, _ in self.spans()]
        return self._steps + sum(passes)

    @property
    def _steps(self) -> int:
        """Passes of the frames that were generated before."""
        return self.resumed[-1].steps if self.resumed else 0


def _given_frames(bits: Sequence[Tensor], quantizer: MultiScaleBSQ) -> list[LatentFrame]:
    latent_BKTHW = quantizer.decode(bits)
    return [
        LatentFrame([b[:, t] for b in bits], latent_BKTHW[:, :, t], is_given=True, steps=0)
        for t in range(latent_BKTHW.shape[2])
    ]


def _last_bits(frames: Sequence[LatentFrame], count: int) -> list[Tensor]:
    """Return the bits of the last frames, per scale [B, count, h, w, K]."""
    kept = [frame.bits for frame in frames[-count:]]
    return [torch.stack(of_scale, dim=1) for of_scale in zip(*kept, strict=True)]


def _require_seeds(seeds: Sequence[int], num_prompts: int) -> None:
    if not num_prompts:
        raise ValueError("there are no prompts; an empty text is one")
    if len(seeds) != num_prompts:
        raise ValueError(f"{num_prompts} prompts but {len(seeds)} seeds")
    if wrong := [seed for seed in seeds if not 0 <= seed <= _MAX_SEED]:
        raise ValueError(f"seed {wrong[0]} is not between 0 and 2^63 - 1")


def _prefix_frames(bits: Sequence[Tensor], scales: Scales, num_bits: int, batch: int) -> int:
    """Return the number of latent frames that are given; raise if their bits do not fit."""
    if not bits:
        return 0
    if len(bits) != len(scales):
        hint = "encode it with the model's tokenizer"
        raise ValueError(f"prefix_bits has {len(bits)} scales, the model {len(scales)} ({hint})")
    frames = bits[0].shape[1:2]
    for of_scale, grid in zip(bits, scales, strict=True):
        expected = (batch, *frames, *grid, num_bits)
        if of_scale.dtype != torch.bool or of_scale.shape != expected:
            found = f"{of_scale.dtype} {tuple(of_scale.shape)}"
            raise ValueError(f"prefix_bits of scale {grid} is {found}, expected bool {expected}")
    return frames[0]


class Waves(Iterator[Wave]):
    """Generate one clip per prompt, one forward pass per item: many batches can take turns.

    Args:
        model: the transformer.
        prompts: one per sample.
        num_frames: as the following ones, see `sample_bits`.
        seeds: one per sample.
        settings: how bits are drawn.
        scales: schedule of another grid than the model's own.
        task: given frames, windows and changes of the prompt.

    Raises:
        ValueError: see `sample_bits`.
    """

    def __init__(
        self,
        model: VideoAR,
        prompts: Sequence[str],
        num_frames: int,
        seeds: Sequence[int],
        *,
        settings: SamplerSettings | None = None,
        scales: Scales | None = None,
        **task: Unpack[Task],
    ) -> None:
        if (window := task.get("window")) and window.reencode:
            raise ValueError("a window that encodes frames again needs the tokenizer: use `stream`")
        clips = _Clips(model, prompts, num_frames, seeds, settings, scales, **task)
        self.total = clips.passes
        """Forward passes of the whole clip."""
        self._waves = clips.waves()

    def __next__(self) -> Wave:
        return next(self._waves)


def sample_bits(
    model: VideoAR,
    prompts: Sequence[str],
    num_frames: int,
    seeds: Sequence[int],
    *,
    settings: SamplerSettings | None = None,
    scales: Scales | None = None,
    **task: Unpack[Task],
) -> SampledBits:
    """Generate the bits of one clip per prompt.

    Args:
        model: the transformer.
        prompts: one per sample.
        num_frames: pixel frames, 1 + a multiple of the time stride.
        seeds: one per sample, from 0 to 2^63 - 1. In fp32 the bits of a sample do not depend on the
            rest of the batch.
        settings: how bits are drawn.
        scales: schedule of another grid than the model's own.
        task: given frames, windows and changes of the prompt, see `Task`.

    Returns:
        The bits and the number of forward passes.

    Raises:
        ValueError: before the first pass. There are no prompts; the number of seeds differs or a
            seed is out of range; `num_frames` or the window does not fit; the prefix has other
            scales, samples, bits or type, or leaves no latent frame to generate; prompts change
            outside of the generated frames, or to another number of prompts; the window encodes
            frames again, which needs the tokenizer.
    """
    waves = Waves(model, prompts, num_frames, seeds, settings=settings, scales=scales, **task)
    frames = [frame for wave in waves for frame in wave.finished]
    return SampledBits(_last_bits(frames, len(frames)), frames[-1].steps)


def stream(  # noqa: PLR0913 - one keyword per choice of the caller
    model: VideoAR,
    tokenizer: VideoTokenizer,
    prompts: Sequence[str],
    num_frames: int = 17,
    *,
    settings: SamplerSettings | None = None,
    seeds: Sequence[int] | None = None,
    size_px: tuple[int, int] | None = None,
    chunk_pixels: int = 1,
    **task: Unpack[Task],
) -> Iterator[Sampled]:
    """Generate one video per prompt; yield its frames as soon as they are finished.

    Args:
        model: the transformer.
        tokenizer: the tokenizer whose tokens it was trained on.
        prompts: texts.
        num_frames: pixel frames, 1 + a multiple of the time stride.
        settings: how bits are drawn.
        seeds: one per sample; by default 0, 1, 2, ...
        size_px: height and width, if not the tokenizer's own.
        chunk_pixels: how many pixels per sample to collect before they are decoded, rounded down to
            whole latent frames; at least one.
        task: given frames, windows and changes of the prompt, see `Task`.

    Returns:
        An iterator over parts of the videos, in order. The memory that it takes does not grow with
        their number if there is a window.

    Raises:
        ValueError: at once: the tokenizer has other bits, scales or time stride than the model; or
            see `SamplerSettings` and `sample_bits`.
    """
    model.cfg.require_fit(tokenizer.cfg, any_scales=size_px is not None)
    tokenizer = tokenizer.for_size(*size_px) if size_px else tokenizer
    chosen = range(len(prompts)) if seeds is None else seeds
    scales = tokenizer.cfg.scales
    clips = _Clips(model, prompts, num_frames, chosen, settings, scales, **task)
    stride = tokenizer.cfg.time_stride

    @torch.no_grad()
    def reencode(frames: Sequence[LatentFrame], count: int) -> list[Tensor]:
        latent_BKTHW = torch.stack([frame.latent_BKHW for frame in frames], dim=2)
        video_B3THW = StreamDecoder(tokenizer)(latent_BKTHW).clamp(-1, 1)
        return tokenizer.tokenize(video_B3THW[:, :, -(1 + stride * (count - 1)) :])

    frames = clips.frames(reencode if clips.window and clips.window.reencode else None)
    return decode_latents(tokenizer, frames, chunk_pixels)


@torch.no_grad()
def decode_latents(
    tokenizer: VideoTokenizer, frames: Iterable[LatentFrame], chunk_pixels: int = CHUNK_PIXELS
) -> Iterator[Sampled]:
    """Decode the frames of a batch of videos to pixels; yield parts of the videos, in order.

    Args:
        tokenizer: the tokenizer of the frames, of their size.
        frames: all of them, in order; taken as they are needed.
        chunk_pixels: see `stream`.
    """
    stride, per_chunk = tokenizer.cfg.time_stride, tokenizer.cfg.latent_frames_in(chunk_pixels)
    for number, of_video in groupby(frames, key=lambda frame: frame.video):
        decoder, is_first = StreamDecoder(tokenizer), True
        while chunk := list(islice(of_video, per_chunk)):
            latent_BKTHW = torch.stack([frame.latent_BKHW for frame in chunk], dim=2)
            video_B3THW = decoder(latent_BKTHW).clamp(-1, 1)
            if number:  # what is given in this window was part of the one before
                known = stride * sum(frame.is_given for frame in chunk)
                video_B3THW = video_B3THW[:, :, known - (stride - 1) * is_first :]
            is_first = False
            if video_B3THW.shape[2]:
                yield Sampled(video_B3THW, chunk[-1].steps)


def sample(  # noqa: PLR0913 - the public entry point, one keyword per choice of the caller
    model: VideoAR,
    tokenizer: VideoTokenizer,
    prompts: Sequence[str],
    num_frames: int = 17,
    *,
    guidance: str | float = "t2v",
    temperature: float | Sequence[float] = 1.0,
    greedy: bool = False,
    settings: SamplerSettings | None = None,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    size_px: tuple[int, int] | None = None,
    **task: Unpack[Task],
) -> Sampled:
    """Generate one video per prompt.

    Args:
        model: the transformer.
        tokenizer: the tokenizer whose tokens it was trained on.
        prompts: texts.
        num_frames: pixel frames, 1 + a multiple of the time stride.
        guidance: `ucf`, `t2v` or a constant.
        temperature: divides the log-odds of every bit; below 1 likelier values are drawn more. One
            for all scales, or one per scale.
        greedy: take the likelier value of every bit.
        settings: all settings, in place of the three before.
        generator: draws one seed per sample; without it and `seeds`, seeds are 0, 1, 2, ...
        seeds: one per sample.
        size_px: height and width, if not the tokenizer's own.
        task: given frames, windows and changes of the prompt, see `Task`.

    Returns:
        The videos and the number of forward passes.

    Raises:
        ValueError: see `stream`.
    """
    # One draw per sample and not one generator for all: samples do not depend on the batch.
    if seeds is None and generator is not None:
        seeds = torch.randint(2**62, (len(prompts),), generator=generator).tolist()
    settings = settings or SamplerSettings(guidance, temperature, greedy)
    parts = list(
        stream(
            model, tokenizer, prompts, num_frames,
            settings=settings, seeds=seeds, size_px=size_px, chunk_pixels=CHUNK_PIXELS, **task,
        )
    )  # fmt: skip
    return Sampled(torch.cat([part.video_B3THW for part in parts], dim=2), parts[-1].steps)
