"""Duplicates: what counts as a copy, the best one is kept, and memory does not grow with copies."""

import random
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from tests.support.clip_rows import clip_row
from videoar.contracts.contract import load_contract
from videoar.curation.candidates import Candidates
from videoar.curation.duplicates import find_repeats
from videoar.curation.semantic_duplicates import pick_semantic, semantic_pairs
from videoar.media.clip_scores import MIRROR, hashes_and_chroma
from videoar.stages.filter import FilterConfig
from videoar.storage.partitions import all_pairs

FRAMES, RATE_FPS, HAMMING = 17, 8.0, FilterConfig().dedup_hamming
SCHEMA = load_contract("clips@1").arrow_schema


class Scene:
    """Blobs that move over a texture; `speed` 0 is a static camera on a static scene."""

    def __init__(self, seed, speed=1.0):
        draw = np.random.default_rng(seed)
        self._places, self._ways = draw.uniform(0, 1, (6, 2)), draw.uniform(-0.5, 0.5, (6, 2))
        self._levels, self._sizes = draw.uniform(-120, 120, 6), draw.uniform(0.05, 0.25, 6)
        self._speed = speed

    def hashes(self, start_s=0.0, rate=1.0, crop=0.0, noise=0, mirrored=False):
        """Return the hashes of a clip of the scene, as ingest computes them."""
        side = np.linspace(crop / 2, 1 - crop / 2, 64)
        frames = np.full((FRAMES, 64, 64), 120.0)
        for number, time in enumerate(np.arange(FRAMES) * rate / RATE_FPS):
            for place, way, level, size in zip(
                self._places, self._ways, self._levels, self._sizes, strict=True
            ):
                y, x = (place + self._speed * way * (start_s + time)) % 1.4 - 0.2
                far = (side[:, None] - y) ** 2 + (side - x) ** 2
                frames[number] += level * np.exp(-far / size**2)
        frames += np.random.default_rng(noise).normal(0, noise, frames.shape)
        pixels = frames[..., None].repeat(3, -1).clip(0, 255).astype(np.uint8)
        return hashes_and_chroma(pixels[:, :, ::-1] if mirrored else pixels)[0]


def clip(name, hashes, **change):
    names = dict.fromkeys(("clip_id", "source_id", "source_uri"), name)
    return clip_row(**{**names, "frame_hashes": hashes, **change})


def find(clips, files=1, masks=(0,), preferred=()):
    """Return, by name and address, reason and the clip that is repeated."""
    parts = []
    for index in range(files):
        numbers = np.arange(index, len(clips), files)
        rows = [clips[number] for number in numbers]
        parts.append(Candidates.read(numbers, pa.Table.from_pylist(rows, SCHEMA)))
    candidates = Candidates.concatenate(parts)
    order = candidates.order(preferred)
    number = candidates.rows["number"][order]
    return {
        (clips[number[rank]]["clip_id"], clips[number[rank]]["source_uri"]): (
            reason,
            clips[number[kept]]["clip_id"],
        )
        for rank, (reason, kept) in find_repeats(candidates, order, HAMMING, masks).items()
    }


SCENE = Scene(1)
OTHERS = [clip(f"other{seed}", Scene(seed).hashes()) for seed in range(10, 14)]


@pytest.mark.parametrize(
    ("copy", "is_found"),
    [
        ({}, True),
        ({"noise": 6}, True),
        ({"start_s": 0.5}, True),
        ({"rate": 1.25}, True),
        ({"rate": 0.5}, True),
        ({"crop": 0.1}, True),
        ({"start_s": 8.0}, False),
        ({"mirrored": True}, False),
    ],
)
def test_copies_are_found_wherever_they_begin_and_however_they_are_framed(copy, is_found):
    clips = [clip("best", SCENE.hashes(), detail=2.0), clip("copy", SCENE.hashes(**copy))]
    clips += OTHERS
    expected = {("copy", "copy"): ("DUPLICATE_NEAR", "best")} if is_found else {}
    assert find(clips) == expected


@pytest.mark.parametrize(
    ("levels", "turn", "is_found"),
    [
        (2, np.zeros((2, 2)), True),
        (12, np.zeros((2, 2)), False),
        # shown by BT.601 instead of BT.709, and the other way round
        (0, [[0.0186, 0.0750], [0.1146, 0.0253]], True),
        (0, [[-0.0101, -0.0725], [-0.1107, -0.0166]], True),
        (0, [[-0.02, 0.2], [-0.2, -0.02]], False),
    ],
)
def test_colours_tell_clips_apart_whose_hashes_are_equal(levels, turn, is_found):
    chroma = np.random.default_rng(0).integers(50, 200, (5, 4, 2))
    other = np.add(chroma, [0, levels])
    other += ((chroma - 128.0) @ turn).round().astype(int)
    clips = [
        clip("best", SCENE.hashes(), chroma=chroma.ravel().tolist(), detail=2.0),
        clip("other", SCENE.hashes(), chroma=other.ravel().tolist()),
    ]
    assert bool(find(clips)) is is_found
    assert len(hashes_and_chroma(np.zeros((FRAMES, 64, 64, 3), np.uint8))[1]) == other.size
    clips[1]["frame_hashes"] = SCENE.hashes(mirrored=True)
    clips[1]["chroma"] = other.reshape(5, 2, 2, 2)[:, :, ::-1].ravel().tolist()
    assert bool(find(clips, masks=(MIRROR,))) is is_found
    clips[1]["chroma"] = None
    assert find(clips, masks=(MIRROR,))


def test_mirrored_copies_are_found_by_their_mask():
    clips = [clip("best", SCENE.hashes(), detail=2.0), clip("copy", SCENE.hashes(mirrored=True))]
    found = find(clips, masks=(0, MIRROR))
    assert found == {("copy", "copy"): ("DUPLICATE_MIRRORED", "best")}


def test_two_clips_of_one_source_show_the_parts_of_a_trimmed_copy():
    length = FRAMES / RATE_FPS
    film = [
        clip(f"film{i}", SCENE.hashes(i * length), source_id="film", detail=2.0) for i in range(3)
    ]
    trimmed = clip("trimmed", SCENE.hashes(0.5 * length))
    assert set(find([*film, trimmed])) == {("trimmed", "trimmed")}
    apart = [{**row, "source_id": f"s{i}"} for i, row in enumerate(film)]
    assert find([*apart, trimmed]) == {}


def test_repeats_inside_a_source_are_found_but_no_quiet_shot():
    repeats = [
        clip(name, hashes, source_id="film", source_uri="film")
        for name, hashes in (
            ("a", SCENE.hashes()), ("b", SCENE.hashes(3.0)), ("c", SCENE.hashes(noise=1)),
        )
    ]  # fmt: skip
    assert find(repeats) == {("c", "film"): ("DUPLICATE_NEAR", "a")}
    camera = Scene(2, speed=0.02)
    static = [clip(str(i), camera.hashes(2.0 * i, noise=1), source_id="film") for i in range(4)]
    assert find(static) == {}
    # but where nothing happens, a second clip shows nothing new
    still = Scene(2, speed=0)
    clips = [clip(str(i), still.hashes(), source_id="film") for i in range(4)]
    assert len(find(clips)) == 3


def test_best_clip_is_kept_in_any_order():
    clips = [
        clip("small", SCENE.hashes(noise=2), detail=1.0, src_width_px=1280),
        clip("sharp", SCENE.hashes(), detail=9.0),
        {**clip("sharp", SCENE.hashes(), detail=9.0), "source_uri": "z-copy"},
        # dithering, which looks like detail
        {**clip("small", SCENE.hashes(noise=2), detail=99.0, codec="gif"), "source_uri": "z-copy"},
        clip("plain", Scene(5).hashes()),
        clip("flat", [0] * (2 * FRAMES)),
        clip("flat too", [0] * (2 * FRAMES)),
    ]
    for seed in range(5):
        random.Random(seed).shuffle(clips)
        found = find(clips, files=1 + seed)
        # the first row of equal ones is kept
        addresses = {name: {a for n, a in found if n == name} for name in ("small", "sharp")}
        assert addresses["small"] == {"small", "z-copy"}
        assert len(addresses["sharp"]) == 1
        reasons = {
            (name, found[name, a][0]) for name, of_name in addresses.items() for a in of_name
        }
        assert reasons == {("small", "DUPLICATE_NEAR"), ("sharp", "DUPLICATE_EXACT")}
        assert {kept for _, kept in found.values()} == {"sharp"}
        assert len(found) == 3


def test_clips_of_an_earlier_version_have_three_hashes():
    hashes = SCENE.hashes()
    three = [hashes[i] for i in (0, 8, 16)]
    old = clip("old", None, phash=three)
    again = clip("again", None, phash=three, src_width_px=100)
    new = clip("new", Scene(4).hashes())
    assert find([old, again, new]) == {("again", "again"): ("DUPLICATE_NEAR", "old")}


def test_two_thousand_copies_take_little_memory():
    row = pa.Table.from_pylist([clip("a", SCENE.hashes())], SCHEMA)
    one = Candidates.read(np.arange(1), row)
    many = Candidates(
        one.rows.repeat(2_000), one.hashes.repeat(2_000, axis=0), one.chroma.repeat(2_000, 0)
    )
    for name in ("number", "clip_id", "source_id"):
        many.rows[name] = np.arange(2_000)
    tracemalloc.start()
    repeats = find_repeats(many, many.order(), 10, (0,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(repeats) == 1_999
    assert {kept for _, kept in repeats.values()} == {0}
    # a table of 64 MiB, and one block; a set of all pairs took 857 MB
    assert peak < 200e6


@pytest.mark.parametrize("files", [1, 3, 5])
def test_semantic_pairs_do_not_depend_on_blocks(files):
    noise = np.random.default_rng(0)
    vectors = np.repeat(noise.standard_normal((12, 32)), 5, axis=0)
    vectors = (vectors + 0.2 * noise.standard_normal(vectors.shape)).astype(np.float32)
    vectors[7] = 0
    wide = vectors.astype(np.float64)
    with np.errstate(invalid="ignore"):
        unit = np.nan_to_num(wide / np.linalg.norm(wide, axis=1, keepdims=True))
    expected_rows = {(a, b) for a, b in np.argwhere(unit @ unit.T >= 0.97).tolist() if a < b}

    def load(i):
        rows = np.arange(i, len(vectors), files)
        return rows, vectors[rows]

    def merge(parts):
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    result = all_pairs(load, files, merge, lambda a, b: semantic_pairs(a, b, 0.97))
    found = {(a, b) for pairs in result for a, b in pairs.tolist()}
    assert found == expected_rows
    assert expected_rows


def test_of_similar_clips_the_best_one_is_kept():
    # 2 repeats 1, which repeats 0: it is kept
    assert pick_semantic(np.array([[1, 2], [0, 1], [2, 4], [3, 4]])) == {1: 0, 4: 2}
    vectors = np.ones((2_000, 8), np.float32)
    ranks = np.arange(len(vectors))
    pairs = semantic_pairs((ranks, vectors), (ranks, vectors), 0.9)
    assert len(pairs) < 4 * len(ranks)
    assert len(pick_semantic(pairs)) == len(ranks) - 1
