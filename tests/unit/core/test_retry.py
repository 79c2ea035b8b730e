"""Retry: waits, limits and which errors end it; with a clock that only sleeping moves."""

import pytest

from videoar.core.retry import RetryPolicy


class FakeClock:
    def __init__(self):
        self.now, self.waits = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


def policy(clock, *, jitter=1.0, **limits):
    return RetryPolicy(
        first_wait_s=0.5, max_wait_s=3.0, clock=clock, sleep=clock.sleep, jitter=lambda: jitter,
        **limits,
    )  # fmt: skip


def failing(times, error=OSError):
    calls = []

    def work():
        calls.append(1)
        if len(calls) <= times:
            raise error(f"failure {len(calls)}")
        return len(calls)

    return work


def test_waits_double_up_to_their_bound():
    clock = FakeClock()
    assert policy(clock, max_attempts=6).call(failing(5), lambda _: True) == 6
    assert clock.waits == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_jitter_scales_each_wait():
    clock = FakeClock()
    policy(clock, jitter=0.25, max_attempts=3).call(failing(2), lambda _: True)
    assert clock.waits == [0.125, 0.25]


def test_success_at_once_never_sleeps():
    clock = FakeClock()
    assert policy(clock, max_attempts=3).call(failing(0), lambda _: True) == 1
    assert clock.waits == []


def test_attempts_exhausted_raises_the_last_error():
    clock = FakeClock()
    with pytest.raises(OSError, match="failure 3"):
        policy(clock, max_attempts=3).call(failing(9), lambda _: True)
    assert len(clock.waits) == 2


def test_seconds_exhausted_raises_the_last_error():
    clock = FakeClock()
    with pytest.raises(OSError, match="failure 5"):
        policy(clock, max_seconds=6.0).call(failing(99), lambda _: True)
    assert clock.now == 6.5  # 0.5 + 1 + 2 + 3: the attempt at 6.5 s is the first one past 6 s


def test_error_that_should_not_be_retried_is_raised_at_once():
    clock = FakeClock()
    with pytest.raises(ValueError, match="failure 1"):
        policy(clock, max_attempts=3).call(
            failing(1, ValueError), lambda error: isinstance(error, OSError)
        )
    assert clock.waits == []


def test_on_retry_gets_attempt_wait_and_error():
    clock, seen = FakeClock(), []
    policy(clock, max_attempts=3).call(
        failing(2), lambda _: True, lambda *args: seen.append((*args[:2], str(args[2])))
    )
    assert seen == [(1, 0.5, "failure 1"), (2, 1.0, "failure 2")]


def test_many_attempts_do_not_overflow():
    clock = FakeClock()
    assert policy(clock, max_attempts=2000).call(failing(1500), lambda _: True) == 1501
