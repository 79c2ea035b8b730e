"""Turns at an accelerator: the earliest shard first, one at a time, all time accounted for."""

import threading
import time

import pytest

from videoar.core.errors import StageError
from videoar.pipeline.device_queue import Accelerator, summary
from videoar.pipeline.work import WorkRecord, merge


def in_threads(*works):
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # so that they ask in this order
    return threads


def test_the_earliest_shard_goes_first_whoever_asked_first():
    accelerator = Accelerator()
    shares = [accelerator.share() for _ in range(4)]
    order = []

    def work(number):
        with shares[number].turn(1):
            order.append(number)

    with shares[0].turn(1):
        threads = in_threads(*(lambda n=n: work(n) for n in (3, 1, 2)))
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == [1, 2, 3]


def test_busy_and_idle_time_add_up_to_wall_time():
    accelerator = Accelerator()
    start = time.monotonic()
    first, second = accelerator.share(), accelerator.share()
    for share in (first, second, first):
        time.sleep(0.03)
        with share.turn(2):
            time.sleep(0.06)
    wall_s = time.monotonic() - start
    total = merge([WorkRecord(metrics=share.metrics()) for share in (first, second)]).metrics
    assert total["accelerator_items"] == 6
    assert total["accelerator_busy_s"] + total["accelerator_idle_s"] == pytest.approx(
        wall_s, abs=0.01
    )
    found = summary(total)
    assert 50 < found["accelerator_busy_percent"] < 75
    assert found["accelerator_items_per_s"] == pytest.approx(6 / wall_s, rel=0.05)
    assert summary({"sources": 3.0}) == {"sources": 3.0}


def test_who_waits_fails_when_it_is_stopped_and_an_error_gives_the_turn_back():
    accelerator = Accelerator()
    failed, other = accelerator.share(), accelerator.share()
    with pytest.raises(ValueError, match="boom"), failed.turn(1):
        raise ValueError("boom")
    assert failed.metrics()["accelerator_items"] == 0
    errors = []

    def wait():
        try:
            with other.turn(1):
                pass
        except StageError as error:
            errors.append(error)

    with failed.turn(1):
        (thread,) = in_threads(wait)
        accelerator.stop()
        thread.join(10)
        assert len(errors) == 1
