"""Prefetching: how far ahead of the consumer items are submitted."""

from concurrent.futures import Future

import pytest

from videoar.core.prefetch import as_completed, prefetch


@pytest.mark.parametrize("depth", [0, 1, 3, 99])
def test_results_come_in_order_with_depth_items_in_flight(depth):
    submitted = []

    def submit(item):
        submitted.append(item)
        return -item

    for position, (item, result) in enumerate(prefetch(submit, range(10), depth)):
        assert (item, result) == (position, -position)
        assert len(submitted) == min(10, position + 1 + depth)
    assert submitted == list(range(10))


def test_endless_items_are_taken_only_as_the_consumer_advances():
    def endless():
        number = 0
        while True:
            yield number
            number += 1

    pairs = prefetch(str, endless(), 2)
    assert [next(pairs) for _ in range(3)] == [(0, "0"), (1, "1"), (2, "2")]


def test_error_of_submit_reaches_the_consumer():
    def submit(item):
        return 1 // (2 - item)

    pairs = prefetch(submit, range(5), 0)
    assert [next(pairs), next(pairs)] == [(0, 0), (1, 1)]
    with pytest.raises(ZeroDivisionError):
        next(pairs)


def test_finished_items_do_not_wait_for_a_slow_one_and_depth_bounds_those_in_flight():
    futures = [Future() for _ in range(5)]
    taken = []

    def submit(item):
        taken.append(item)
        return futures[item]

    pairs = as_completed(submit, range(5), 2)
    futures[1].set_result("b")
    assert next(pairs) == (1, futures[1])
    assert taken == [0, 1]
    futures[2].set_result("c")
    assert next(pairs) == (2, futures[2])
    for slow in (0, 3, 4):
        futures[slow].set_result("x")
    assert sorted(item for item, _ in pairs) == [0, 3, 4]
