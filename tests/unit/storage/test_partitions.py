"""dask operations on partitions: every pair once, on the scheduler that is passed or configured."""

import dask
import numpy as np
import pytest
from dask.local import get_sync

from videoar.storage.partitions import all_pairs, hash_join, map_partitions


def counting():
    calls = []

    def get(graph, keys, **options):
        calls.append(len(calls))
        return get_sync(graph, keys, **options)

    return get, calls


def test_configured_scheduler_used_unless_one_is_passed():
    configured, calls = counting()
    passed, passed_calls = counting()
    assert map_partitions(str, 3) == ["0", "1", "2"]
    with dask.config.set(scheduler=configured):
        assert map_partitions(str, 2) == ["0", "1"]
        assert (len(calls), len(passed_calls)) == (1, 0)
        map_partitions(str, 2, passed)
    map_partitions(str, 2)
    assert (len(calls), len(passed_calls)) == (1, 1)


@pytest.mark.parametrize("partitions", [1, 3, 65])
def test_hash_join_equal_keys_share_a_bucket(partitions):
    key = np.dtype([("key", np.uint64), ("row", np.int64)])
    rows = np.array([(i * i % 17 + (1 << 63), i) for i in range(300)], key)

    def join(bucket):
        return {int(k): sorted(bucket["row"][bucket["key"] == k].tolist()) for k in bucket["key"]}

    found = hash_join(lambda i: rows[i::partitions], partitions, join)
    merged = {k: v for bucket in found for k, v in bucket.items()}
    assert sum(len(bucket) for bucket in found) == len(merged)
    assert merged == join(rows)


@pytest.mark.parametrize("partitions", [1, 5, 70])
def test_all_pairs_each_pair_is_compared_once(partitions):
    def pairs(a, b):
        return [(x, y) for x in a for y in b if a is not b or x < y]

    found = all_pairs(
        lambda i: list(range(i, 140, partitions)),
        partitions,
        lambda parts: [x for p in parts for x in p],
        pairs,
    )
    met = [tuple(sorted(pair)) for part in found for pair in part]
    assert len(met) == len(set(met)) == 140 * 139 // 2
