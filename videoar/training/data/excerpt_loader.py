"""Batches of clip excerpts for the tokenizer, drawn by generators seeded with the step alone.

So a step has the same batch in a resumed run and at any number of ranks, and the batch of the next
step can be read while this one computes. Clips of several sizes: every batch has one size, that of
a clip drawn from all, so sizes come in proportion to their clips.

Shape suffixes: B batch (of this rank), T frames, H W height and width, C channels; N clips.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import NamedTuple, Protocol

import numpy as np

from videoar.core.errors import ConfigError
from videoar.core.ids import seed_from
from videoar.model.tokenizer.config import TokenizerTraining
from videoar.training.data.live_iterator import require_main_process


class Clips(Protocol):
    """Clips by number: frames_THWC, uint8 RGB."""

    def __len__(self) -> int:
        """Return the number of clips."""

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Return one clip."""


class ExcerptBatch(NamedTuple):
    """A rank's share of a batch, in memory."""

    parts: list[tuple[np.ndarray, float]]
    """frames_BTHWC, uint8, of one length each; and the share of the global batch, so that the
    weights of all parts of all ranks add up to 1."""
    random: np.random.Generator
    """Generator of the step, in the same state on all ranks, for further draws."""


class ExcerptLoader:
    """One rank's share of every batch.

    Args:
        clips: what to cut from, in the same order on every rank.
        options: batch size, lengths, seed.
        sizes_px: height and width of each clip.
        rank: this rank's number.
        world_size: number of ranks.
    """

    def __init__(
        self,
        clips: Clips,
        options: TokenizerTraining,
        sizes_px: Sequence[tuple[int, int]],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._clips, self._options = clips, options
        self._rank, self._world_size = rank, world_size
        _, self._size_N = np.unique(np.array(sizes_px), axis=0, return_inverse=True)
        self._thread = ThreadPoolExecutor(1, "clips")  # one: `Clips` need not be thread-safe
        self._pending: dict[int, Future[ExcerptBatch]] = {}

    def batch(self, step: int) -> ExcerptBatch:
        """Return the batch of a step, and start to read that of the next one.

        Raises:
            ConfigError: a clip is shorter than an excerpt. As for any error of reading a clip, it
                is raised in the step that needs the clip, not in the step that prefetches it. Or
                this is a worker of a `DataLoader`, where a forked thread would never answer.
        """
        require_main_process("call `read(step)`, which reads in the process that calls it")
        batch = (self._pending.pop(step, None) or self._submit(step)).result()
        if (following := step + 1) < self._options.steps:
            self._pending = {following: self._submit(following)}
        return batch

    def _submit(self, step: int) -> "Future[ExcerptBatch]":
        # With this thread's context: log lines of the reader name the run and stage, too.
        return self._thread.submit(copy_context().run, self.read, step)

    def read(self, step: int) -> ExcerptBatch:
        """Draw the items of a step, their start frames, and which are single frames; read ours."""
        options = self._options
        random = np.random.default_rng(seed_from("tokenizer", options.seed, step))
        num_frames = 1 if step < options.image_steps else options.excerpt_frames
        # On images a step has as many frames, not as many items, as on excerpts: equal cost.
        count = options.batch_clips * (options.excerpt_frames // num_frames)
        pool = self._pool(step)
        chosen, starts = pool[random.integers(len(pool), size=count)], random.random(count)
        num_images = round(options.image_share * count)
        lengths = np.where(np.arange(count) < num_images, 1, num_frames)
        # Everything is drawn for the global batch; a rank reads every world_size-th item of it.
        own = np.arange(self._rank, count, self._world_size)
        parts = []
        for length in sorted({1, num_frames}):
            items = own[lengths[own] == length]
            for some in np.array_split(items, min(options.accumulate, len(items)) or 1):
                excerpts = [_excerpt(self._clips[int(chosen[i])], length, starts[i]) for i in some]
                if excerpts:
                    parts.append((np.stack(excerpts), len(some) / count))
        return ExcerptBatch(parts, random)

    def _pool(self, step: int) -> np.ndarray:
        """Return the numbers of the clips that a step may draw: all those of one size.

        The size is drawn by a generator of its own. So with one size the clips of a step are the
        same as before several sizes were supported.
        """
        random = np.random.default_rng(seed_from("tokenizer size", self._options.seed, step))
        return np.flatnonzero(self._size_N == self._size_N[random.integers(len(self._size_N))])


def _excerpt(frames_THWC: np.ndarray, num_frames: int, start: float) -> np.ndarray:
    """Cut an excerpt; `start` in [0, 1) is the position among all possible starts.

    Raises:
        ConfigError: the clip is too short.
    """
    spare = len(frames_THWC) - num_frames
    if spare < 0:
        what = f"{num_frames} frames are longer than a clip of {len(frames_THWC)}"
        raise ConfigError("excerpt_frames", what)
    first = int(start * (spare + 1))
    return frames_THWC[first : first + num_frames]
