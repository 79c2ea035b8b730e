"""dask operations on partitions: every pair once, on the scheduler that is passed."""

import pytest
from dask.local import get_sync

from videoar.storage.partitions import all_pairs, map_partitions


def counting():
    calls = []

    def get(graph, keys, **options):
        calls.append(len(calls))
        return get_sync(graph, keys, **options)

    return get, calls


def test_passed_scheduler_runs_the_tasks():
    passed, calls = counting()
    assert map_partitions(str, 3) == map_partitions(str, 3, passed) == ["0", "1", "2"]
    assert len(calls) == 1


@pytest.mark.parametrize("scheduler", [None, get_sync])
@pytest.mark.parametrize("partitions", [1, 5, 70])
def test_all_pairs_each_pair_is_compared_once(partitions, scheduler):
    def pairs(a, b):
        return [(x, y) for x in a for y in b if a is not b or x < y]

    found = all_pairs(
        lambda i: list(range(i, 140, partitions)),
        partitions,
        lambda parts: [x for p in parts for x in p],
        pairs,
        scheduler,
    )
    met = [tuple(sorted(pair)) for part in found for pair in part]
    assert len(met) == len(set(met)) == 140 * 139 // 2
