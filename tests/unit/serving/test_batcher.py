"""Batches: clips of a key join at the first pass, keys take turns, ended clips leave."""

import threading
import time

import pytest
import torch

from videoar.model.transformer.sampling import LatentFrame, Wave
from videoar.serving.batcher import Batcher, Clip


class Passes:
    """A generator whose passes are counted, and which may be held back."""

    def __init__(self, log, total=3, gate=None, error=None):
        self.log, self.total, self.gate, self.error = log, total, gate, error

    def waves(self, rows, changes, resumed):
        return Waves(self, [row["prompt"] for row in rows])


class Waves:
    def __init__(self, of, prompts):
        self.of, self.prompts, self.total, self.steps = of, prompts, of.total, 0

    def __next__(self):
        if self.steps == self.total:
            raise StopIteration
        if self.of.gate:
            self.of.gate.wait(10)
        if self.of.error:
            raise self.of.error
        self.steps += 1
        self.of.log.append(tuple(self.prompts))
        latent = torch.arange(float(len(self.prompts)))[:, None, None, None]
        frame = LatentFrame([latent > 0], latent, is_given=False, steps=self.steps)
        return Wave(self.steps - 1, 0, latent, self.steps, [frame])


@pytest.fixture
def batcher():
    batcher = Batcher(max_batch=3, gather_s=0.05)
    yield batcher
    batcher.close()


class Job:
    """A clip and what has become of it."""

    def __init__(self, batcher, prompt, generator, key="k", stop=lambda: None):
        self.waves, self.frames, self.error, self.ended = 0, None, None, threading.Event()
        batcher.submit(Clip(
            key=key, row={"prompt": prompt}, generator=generator, on_wave=self.on_wave,
            finish=self.finish, fail=self.fail, stop_reason=stop,
        ))  # fmt: skip

    def on_wave(self, wave, waves, row):
        self.waves = wave.steps

    def finish(self, frames):
        self.frames = [frame.latent_BKHW.item() for frame in frames]
        self.ended.set()

    def fail(self, error):
        self.error = error
        self.ended.set()

    def wait(self):
        assert self.ended.wait(10)
        return self


def test_clips_of_one_key_run_in_one_batch_each_with_its_row(batcher):
    generator = Passes(log := [])
    jobs = [Job(batcher, prompt, generator) for prompt in "abcd"]
    assert [job.wait().frames for job in jobs] == [[0.0] * 3, [1.0] * 3, [2.0] * 3, [0.0] * 3]
    assert log == [("a", "b", "c")] * 3 + [("d",)] * 3


def test_clip_that_comes_later_does_not_join_a_running_batch(batcher):
    gate = threading.Event()
    generator = Passes(log := [], gate=gate)
    first = Job(batcher, "a", generator)
    time.sleep(0.2)  # it is in its first pass
    second = Job(batcher, "b", generator)
    gate.set()
    first.wait(), second.wait()
    assert log == [("a",)] * 3 + [("b",)] * 3


def test_short_clip_ends_before_a_long_one_that_came_first(batcher):
    log, gate = [], threading.Event()
    long = Job(batcher, "long", Passes(log, total=50, gate=gate), key="long")
    time.sleep(0.2)
    short = Job(batcher, "short", Passes(log), key="short")
    gate.set()
    short.wait(), long.wait()
    turns = [prompt for (prompt,) in log]
    assert len(turns) == 53
    assert turns[:8].count("short") == 3  # the long one began a pass before


def test_cancelled_clip_leaves_the_others_of_its_batch(batcher):
    gate, cancelled = threading.Event(), threading.Event()
    generator = Passes(log := [], gate=gate)
    stay = Job(batcher, "a", generator)
    leave = Job(
        batcher, "b", generator, stop=lambda: TimeoutError() if cancelled.is_set() else None
    )
    time.sleep(0.2)
    cancelled.set()
    gate.set()
    assert isinstance(leave.wait().error, TimeoutError)
    assert leave.frames is None
    assert stay.wait().frames == [0.0] * 3
    assert log == [("a", "b")] * 3


def test_batch_whose_clips_are_all_cancelled_ends(batcher):
    gate, cancelled = threading.Event(), threading.Event()
    generator = Passes(log := [], total=1000, gate=gate)
    job = Job(batcher, "a", generator, stop=lambda: TimeoutError() if cancelled.is_set() else None)
    waiting = Job(
        batcher, "b", generator, stop=lambda: TimeoutError() if cancelled.is_set() else None
    )
    time.sleep(0.2)
    cancelled.set()
    gate.set()
    assert job.wait().error
    assert waiting.wait().error
    assert len(log) <= 2
    assert Job(batcher, "c", Passes([])).wait().frames == [0.0] * 3


def test_error_of_a_pass_ends_the_clips_of_its_batch_only(batcher):
    good = Job(batcher, "a", Passes([], total=20), key="good")
    bad = Job(batcher, "b", Passes([], error=ValueError("no")), key="bad")
    assert str(bad.wait().error) == "no"
    assert good.wait().frames == [0.0] * 20


def test_error_while_a_clip_is_finished_is_its_own(batcher):
    class Failing(Job):
        def finish(self, frames):
            raise OSError("disk")

    failing, other = Failing(batcher, "c", Passes([])), Job(batcher, "b", Passes([]), key="other")
    assert str(failing.wait().error) == "disk"
    assert other.wait().frames


def test_close_finishes_what_was_submitted():
    batcher = Batcher(gather_s=0)
    jobs = [Job(batcher, "a", Passes([]), key=str(i)) for i in range(6)]
    batcher.close()
    assert [job.frames for job in jobs] == [[0.0] * 3] * 6
