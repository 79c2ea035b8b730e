"""The device queue: oldest shard first, one holder at a time, all time accounted for."""

import threading
import time

import pytest

from videoar.core.errors import StageError
from videoar.pipeline.device_queue import DeviceQueue, summary
from videoar.pipeline.work.task import WorkRecord, merge


def in_threads(*works):
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # so that they queue in this order
    return threads


def test_oldest_shard_served_first():
    queue = DeviceQueue()
    usages = [queue.start_shard() for _ in range(4)]
    order = []

    def work(number):
        with usages[number].acquire(1):
            order.append(number)

    with usages[0].acquire(1):
        threads = in_threads(*(lambda n=n: work(n) for n in (3, 1, 2)))
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == [1, 2, 3]


def test_busy_and_idle_time_add_up_to_wall_time():
    queue = DeviceQueue()
    start = time.monotonic()
    first, second = queue.start_shard(), queue.start_shard()
    for usage in (first, second, first):
        time.sleep(0.03)
        with usage.acquire(2):
            time.sleep(0.06)
    wall_s = time.monotonic() - start
    total = merge([WorkRecord(metrics=usage.metrics()) for usage in (first, second)]).metrics
    assert total["accelerator_items"] == 6
    assert total["accelerator_busy_s"] + total["accelerator_idle_s"] == pytest.approx(
        wall_s, abs=0.01
    )
    found = summary(total)
    assert 50 < found["accelerator_busy_percent"] < 75
    assert found["accelerator_items_per_s"] == pytest.approx(6 / wall_s, rel=0.05)
    assert summary({"sources": 3.0}) == {"sources": 3.0}


def test_stopped_queue_fails_waiting_shard_and_error_releases_device():
    queue = DeviceQueue()
    failed, other = queue.start_shard(), queue.start_shard()
    with pytest.raises(ValueError, match="boom"), failed.acquire(1):
        raise ValueError("boom")
    assert failed.metrics()["accelerator_items"] == 0
    errors = []

    def wait():
        try:
            with other.acquire(1):
                pass
        except StageError as error:
            errors.append(error)

    with failed.acquire(1):
        (thread,) = in_threads(wait)
        queue.stop()
        thread.join(10)
        assert len(errors) == 1
