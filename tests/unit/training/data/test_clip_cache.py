"""Decoded clips in memory: limits, and clips that cannot be read."""

import numpy as np
import pytest

from tests.support.clip_rows import drawn_rows
from tests.support.token_runs import damaged, shape_rows
from videoar.core.errors import MediaError, StageError, TransientStorageError
from videoar.media.clip_reader import ClipReader
from videoar.media.decode import decode_clip
from videoar.media.synthetic import scenes
from videoar.training.data.clip_cache import ClipCache


def test_decoded_clips_are_cached_up_to_the_limit(store):
    rows = drawn_rows(store, scenes()[:2])
    size_bytes = 9 * 32 * 32 * 3
    cached = ClipCache(ClipReader(store.objects), rows, cache_bytes=2 * size_bytes - 1)
    assert cached[0].nbytes == size_bytes
    assert cached[0] is cached[0]
    assert cached[1] is not cached[1]
    assert np.array_equal(cached[1], decode_clip(store.objects.get(rows[1]["video_key"])))


def test_unreadable_clip_is_replaced_by_the_next_of_its_size(store, caplog):
    rows = shape_rows(store, [(9, 32, 32), (9, 32, 56), (9, 32, 32), (9, 32, 56)])
    rows[2] = damaged(store, rows[2])
    cached = ClipCache(ClipReader(store.objects), rows)
    for _ in range(2):
        assert np.array_equal(cached[2], cached[0])
    assert cached[1].shape == cached[3].shape == (9, 32, 56, 3)
    assert len(list(cached)) == 3
    assert caplog.text.count(rows[2]["clip_id"]) == 1
    rows[3] = damaged(store, rows[3])
    names = f"more than 1 of 4 clips.*{rows[2]['clip_id']}, {rows[3]['clip_id']}"
    with pytest.raises(StageError, match=names):
        list(ClipCache(ClipReader(store.objects), rows))
    long = rows[1] | {"num_frames": 13}  # and the file has 9
    assert np.array_equal(ClipCache(ClipReader(store.objects), [long, *rows[:2]])[0], cached[1])
    with pytest.raises(StageError, match=rf"all of \(32, 32\) px .*{rows[2]['clip_id']}"):
        ClipCache(ClipReader(store.objects), rows[1:3])[1]


@pytest.mark.parametrize("code", ["IO_TRANSIENT", "MEM", "TIMEOUT"])
def test_clip_whose_source_does_not_respond_is_retried_not_skipped(store, code):
    (row,) = drawn_rows(store, scenes()[:1])
    read, is_down = ClipReader(store.objects), True

    def flaky(row):
        if is_down:
            raise MediaError("//server/a.mp4", code, "exceeded the time limit of 300 s")
        return read(row)

    cached = ClipCache(flaky, [row])
    with pytest.raises(TransientStorageError, match=rf"a\.mp4: {code}: exceeded the time limit"):
        cached[0]
    is_down = False
    assert np.array_equal(cached[0], read(row))
