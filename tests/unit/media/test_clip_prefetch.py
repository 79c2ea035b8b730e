"""Prefetch of clips: order, bounds, assignment of sources to reader slots, errors."""

import io
import threading

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation

from tests.support.token_runs import SHAPES, shape_rows
from videoar.core.errors import MediaError, StorageError
from videoar.core.prefetch import prefetch
from videoar.media.clip_prefetch import ClipPrefetcher
from videoar.media.decode import decode_clip
from videoar.storage.store import open_store


def test_prefetch_starts_no_more_than_depth_items_ahead():
    started = []
    for taken, (item, double) in enumerate(
        prefetch(lambda n: started.append(n) or 2 * n, range(9), 3)
    ):
        assert (item, double) == (taken, 2 * taken)
        assert len(started) == min(9, taken + 4)
    assert list(prefetch(str, [], 3)) == []


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path.as_uri())


def test_clips_are_in_order_and_a_damaged_one_is_rejected(store):
    rows = shape_rows(store, SHAPES * 2)
    rows[3]["video_key"] = store.put_object(b"no clip", ".mp4").key
    rejected = []
    read = list(ClipPrefetcher(store.objects, 3).each(rows, "tokenize", rejected, 2))
    assert [row["clip_id"] for row, _ in read] == [r["clip_id"] for r in rows if r is not rows[3]]
    assert [frames.shape for _, frames in read] == [
        (*shape, 3) for i, shape in enumerate(SHAPES * 2) if i != 3
    ]
    (reject,) = rejected
    assert (reject["item_id"], reject["reasons"]) == (rows[3]["clip_id"], ["CORRUPT"])


def test_missing_object_raises_instead_of_rejecting_the_clip(store):
    (row,) = shape_rows(store, SHAPES[:1])
    row["video_key"] = "objects/gone.mp4"
    with pytest.raises(StorageError, match="gone"):
        list(ClipPrefetcher(store.objects, 1).each([row], "tokenize", [], 2))


def test_references_of_a_source_share_a_slot_and_clips_alternate(store):
    seen = [[] for _ in range(4)]

    def slots():
        return [lambda row, mine=mine: mine.append(row) or (lambda: row["n"]) for mine in seen]

    def rows(key):
        return [
            {"clip_id": n, "n": n, "source_id": f"s{n // 4}", "video_key": key} for n in range(16)
        ]

    reader = ClipPrefetcher(store.objects, threads=1, open_slots=slots)
    assert [n for _, n in reader.each(rows(None), "s", [], 2)] == list(range(16))
    homes = [{row["source_id"] for row in mine} for mine in seen]
    assert sum(map(len, homes)) == 4  # no source is in two slots
    for mine in seen:
        mine.clear()
    list(reader.each(rows("objects/x.mp4"), "s", [], 2))
    assert [len(mine) for mine in seen] == [4, 4, 4, 4]


def test_slots_read_concurrently(store):
    meeting = threading.Barrier(2, timeout=10)  # breaks unless both slots are in it at once

    class Objects:
        def get(self, key):
            meeting.wait()
            raise MediaError(key, "CORRUPT", "met")

    rows = shape_rows(store, SHAPES[:1] * 4)
    rejected = []
    assert not list(ClipPrefetcher(Objects(), 2).each(rows, "s", rejected, 2))
    assert {reject["detail"] for reject in rejected} == {"met"}


EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


def test_pixels_equal_those_of_frames_converted_one_by_one(store):
    for row in shape_rows(store, SHAPES):
        data = store.objects.get(row["video_key"])
        with av.open(io.BytesIO(data)) as container:
            planes = [
                f.reformat(format="gbrp", interpolation=EXACT) for f in container.decode(video=0)
            ]
            frames = [plane.to_ndarray(format="rgb24") for plane in planes]
        assert np.array_equal(decode_clip(data), np.stack(frames))
