"""The loop of a replica: batches of equal shape and settings that take turns, pass by pass.

    waiting clips  ->  group (one batch)  ->  pixels, MP4, upload
                       one pass, then the next group's turn      (threads beside the passes)

Clips of one key wait for each other: while a group of the key runs, a second one would make both
slower and end no earlier. Groups of different keys take turns, so that a long video does not block
a short one. A clip joins at the first pass only, so its bits are those it has alone. For another
prompt it leaves its batch between two frames and goes on alone: the others do not notice.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

from videoar.core.types import Row
from videoar.model.transformer.sampling import LatentFrame, Wave
from videoar.training.generation import VideoGenerator

logger = logging.getLogger(__name__)
_FINISHERS = 2  # chosen: one waits for the encoder or the store while the other decodes


@dataclass(eq=False)
class Clip:
    """One video on its way through a replica.

    Its callbacks are called from threads; `fail` and `stop_reason` must not raise.
    """

    key: str
    """Clips of equal keys can run in one batch."""
    row: Row
    """Prompt and seed."""
    generator: VideoGenerator
    """Settings; equal for equal keys."""
    on_wave: Callable[[Wave, int, int], object]
    """Gets the state after a pass, the number of all passes, and the clip's row of the batch."""
    finish: Callable[[list[LatentFrame]], object]
    """Gets all frames of the clip, as of a batch of one; fewer of them if it has left."""
    fail: Callable[[Exception], object]
    """Gets the error that ended the clip."""
    stop_reason: Callable[[], Exception | None] = lambda: None
    """Called between passes: returns why the clip should end, for example a deadline."""
    leaves: Callable[[Wave], bool] = lambda _: False
    """Called after each pass: returns whether the clip leaves its batch."""
    changes: Mapping[int, str] = field(default_factory=dict)
    """Prompts by the latent frame from which they hold."""
    resumed: Sequence[LatentFrame] = ()
    """Frames that were generated before; no other clip has the key of such a clip."""


class _Group:
    """Clips that run together, from the first pass on."""

    def __init__(self, clips: list[Clip]) -> None:
        self.clips: list[Clip | None] = list(clips)  # None: ended; its row is computed, not used
        first = clips[0]
        self.frames = list(first.resumed)
        changes = {frame: [clip.changes[frame] for clip in clips] for frame in first.changes}
        rows = [clip.row for clip in clips]
        self.waves = first.generator.waves(rows, changes or None, first.resumed)

    def running(self) -> Iterator[tuple[int, Clip]]:
        return ((i, clip) for i, clip in enumerate(self.clips) if clip is not None)

    def take(self, i: int) -> list[LatentFrame]:
        """Return the frames of a clip, which ends here."""
        self.clips[i] = None
        own = slice(i, i + 1)
        return [
            replace(f, bits=[b[own] for b in f.bits], latent_BKHW=f.latent_BKHW[own])
            for f in self.frames
        ]

    def drop_stopped(self) -> bool:
        """End the clips that should end; return whether any runs."""
        for i, clip in list(self.running()):
            if reason := clip.stop_reason():
                self.clips[i] = None
                clip.fail(reason)
        return any(self.clips)


class Batcher:
    """Runs clips in a thread of its own.

    Args:
        max_batch: most clips of a group.
        max_groups: most groups at once; each has a cache in memory.
        gather_s: how long the first clip of a group waits for others.
    """

    def __init__(self, max_batch: int = 8, max_groups: int = 4, gather_s: float = 0.01) -> None:
        self._max_batch, self._max_groups, self._gather_s = max_batch, max_groups, gather_s
        self._waiting: OrderedDict[str, deque[Clip]] = OrderedDict()
        self._groups: OrderedDict[str, _Group] = OrderedDict()
        self._changed, self._closed = threading.Condition(), False
        self._finishers = ThreadPoolExecutor(_FINISHERS, thread_name_prefix="finish")
        self._thread = threading.Thread(target=self._run, name="passes", daemon=True)
        self._thread.start()

    def submit(self, clip: Clip) -> None:
        """Add a clip; it starts with the next group of its key."""
        with self._changed:
            self._waiting.setdefault(clip.key, deque()).append(clip)
            self._changed.notify()

    def close(self) -> None:
        """Finish the clips that were submitted, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._finishers.shutdown()

    def _run(self) -> None:
        while self._wait():
            self._drop_waiting()
            self._start_groups()
            for key, group in list(self._groups.items()):
                if not self._advance(group):
                    del self._groups[key]

    def _wait(self) -> bool:
        """Wait for clips; return False when closed and done."""
        with self._changed:
            while not (self._waiting or self._groups or self._closed):
                self._changed.wait()
            idle = not self._groups
        if idle and not self._closed:
            time.sleep(self._gather_s)
        return bool(self._waiting or self._groups)

    def _drop_waiting(self) -> None:
        """End the waiting clips that should end."""
        with self._changed:
            stopped = [(clip, clip.stop_reason()) for q in self._waiting.values() for clip in q]
            for clip, reason in stopped:
                if reason:
                    self._waiting[clip.key].remove(clip)
                    clip.fail(reason)
            self._waiting = OrderedDict((key, q) for key, q in self._waiting.items() if q)

    def _start_groups(self) -> None:
        with self._changed:
            free = self._max_groups - len(self._groups)
            keys = [key for key in self._waiting if key not in self._groups][:free]
            taken = {key: self._take(key) for key in keys}
        for key, clips in taken.items():
            try:
                self._groups[key] = _Group(clips)
            except Exception as error:  # the error is that of these clips alone
                _fail(clips, error)

    def _take(self, key: str) -> list[Clip]:
        queue = self._waiting.pop(key)
        clips = [queue.popleft() for _ in range(min(len(queue), self._max_batch))]
        if queue:
            self._waiting[key] = queue  # behind the other keys
        return clips

    def _advance(self, group: _Group) -> bool:
        """Run one pass of a group; return False when it has ended."""
        if not group.drop_stopped():
            return False
        try:
            wave = next(group.waves, None)
        except Exception as error:  # the error is that of these clips alone
            _fail([clip for _, clip in group.running()], error)
            return False
        if wave is None:
            for i, clip in group.running():
                self._finish(clip, group.take(i))
            return False
        group.frames += wave.finished
        running = list(group.running())
        turn = wave.steps % len(running)  # each has the first call in turns: it may get a preview
        for i, clip in running[turn:] + running[:turn]:
            try:
                clip.on_wave(wave, group.waves.total, i)
                if clip.leaves(wave):
                    self._finish(clip, group.take(i))
            except Exception as error:  # the other clips go on
                group.clips[i] = None
                clip.fail(error)
        return True

    def _finish(self, clip: Clip, frames: list[LatentFrame]) -> None:
        future = self._finishers.submit(clip.finish, frames)
        future.add_done_callback(partial(_report, clip))


def _report(clip: Clip, done: "Future[object]") -> None:
    if isinstance(error := done.exception(), Exception):
        clip.fail(error)


def _fail(clips: list[Clip], error: Exception) -> None:
    for clip in clips:
        clip.fail(error)
