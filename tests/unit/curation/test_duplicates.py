"""Duplicates: the joins give the same as comparing all pairs, for any order and partitioning."""

import random
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.clip_rows import clip_row
from videoar.curation.duplicates import (
    _rank,
    keys,
    near_duplicate_pairs,
    pick_representatives,
    semantic_pairs,
)
from videoar.media.clip_scores import MIRROR, phash
from videoar.media.synthetic import draw, scenes
from videoar.storage.partitions import all_pairs, hash_join

HAMMING = 6
BASE = [0x0123456789ABCDEF, -0x0123456789ABCDEF, 77]


def clip(name, hashes, **change):
    names = dict.fromkeys(("clip_id", "source_id", "source_uri"), name)
    return clip_row(**{**names, "phash": hashes, **change})


def find(clips, files=1, mask=0):
    """Pair clips by near-duplicate keys in dask; return reasons and what each one repeats."""
    linked = hash_join(
        lambda i: keys([*enumerate(clips)][i::files], mask),
        files,
        partial(near_duplicate_pairs, hamming=HAMMING, mask=mask),
    )
    pairs = [tuple(p) for part in linked for p in part.tolist()]
    result = pick_representatives(dict(enumerate(clips)), *(([], pairs) if mask else (pairs, [])))
    return {
        (clips[i]["clip_id"], clips[i]["source_uri"]): (reason, clips[other]["clip_id"])
        for i, (reason, other) in result.items()
    }


def reference(clips, mask):
    """Compare every clip with every kept one, best first: the slow reference."""
    kept, result = [], {}
    for one in sorted(clips, key=_rank):
        copies = [k for k in kept if k["clip_id"] == one["clip_id"]]
        near = [k for k in kept if is_near(one, k, mask)]
        if copies or near:
            near_reason = "DUPLICATE_MIRRORED" if mask else "DUPLICATE_NEAR"
            reason = "DUPLICATE_EXACT" if copies else near_reason
            result[one["clip_id"], one["source_uri"]] = (reason, (copies or near)[0]["clip_id"])
        else:
            kept.append(one)
    return result


def is_near(a, b, mask):
    differing = [
        (x ^ y ^ mask) & (1 << 64) - 1 for x, y in zip(a["phash"], b["phash"], strict=True)
    ]
    return (
        a["source_id"] != b["source_id"]
        and abs(a["span_start_us"] - b["span_start_us"]) <= 250_000
        and all(d.bit_count() <= HAMMING for d in differing)
        and any(d >> shift & 0xFFFF == 0 for d in differing for shift in (0, 16, 32, 48))
    )


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 7), st.sampled_from([0, MIRROR])
)
@settings(max_examples=100)
def test_result_equals_comparing_all_pairs(seed, count, files, mask):
    draw = random.Random(seed)
    centres = [[draw.getrandbits(64) - 2**63 for _ in range(3)] for _ in range(3)]
    centres += [[h ^ MIRROR for h in hashes] for hashes in centres[:2]]

    def one(i):
        flips = [sum(1 << draw.randrange(63) for _ in range(draw.randrange(5))) for _ in range(3)]
        name = f"c{draw.randrange(count)}"
        return clip(
            name, [h ^ f for h, f in zip(draw.choice(centres), flips, strict=True)],
            source_id=f"s{draw.randrange(12)}", source_uri=f"u{i}",
            src_width_px=draw.choice([160, 320]), span_start_us=draw.choice([0, 200_000, 400_000]),
        )  # fmt: skip

    first: dict[str, dict] = {}
    clips = [{**first.setdefault(c["clip_id"], c), "source_uri": c["source_uri"]}
             for c in map(one, range(count))]  # fmt: skip
    expected = reference(clips, mask)
    draw.shuffle(clips)
    assert find(clips, files, mask) == expected


def test_best_clip_is_kept_in_any_order():
    near = [h ^ 0b111 for h in BASE]
    clips = [
        clip("small", near, src_width_px=160),
        clip("big", BASE),
        clip("far", [h ^ 0x1FFFF for h in BASE]),
        clip("later", BASE, span_start_us=2_000_000),
        clip("same-source", BASE, source_id="big", span_start_us=100_000),
        clip("one-frame", [BASE[0], 0x5555, 0x3333]),
        {**clip("big", BASE), "source_uri": "z-copy"},
    ]
    expected = {
        ("small", "small"): ("DUPLICATE_NEAR", "big"),
        ("big", "z-copy"): ("DUPLICATE_EXACT", "big"),
    }
    for seed in range(5):
        random.Random(seed).shuffle(clips)
        assert find(clips, files=1 + seed) == expected


def test_mirrored_copies_are_found_only_with_the_mask():
    scene = scenes()[0]
    frames = draw(scene, 3, 64, 8.0)
    plain, turned = phash(frames), phash(frames[:, :, ::-1])
    clips = [
        clip("plain", plain),
        clip("turned", turned, src_width_px=160),
        clip("other", phash(draw(scenes()[9], 3, 64, 8.0)[:, :, ::-1])),
        clip("same-source", turned, source_id="plain"),
        clip("half-turned", [plain[0], *turned[1:]]),
    ]
    rows = dict(enumerate(clips))

    def pairs(mask):
        created = hash_join(
            lambda i: keys([*rows.items()][i::2], mask),
            2,
            partial(near_duplicate_pairs, hamming=8, mask=mask),
        )
        return {tuple(pair) for part in created for pair in part.tolist()}

    assert (0, 1) not in pairs(0)
    assert pairs(MIRROR) == {(0, 1)}


def test_chain_loses_only_its_middle():
    steps = [0, (1 << HAMMING) - 1, (1 << 2 * HAMMING) - 1]
    chain = [clip(n, [h ^ s for h in BASE]) for n, s in zip("bac", steps, strict=True)]
    ranked = [{**c, "src_width_px": w} for c, w in zip(chain, (900, 500, 700), strict=True)]
    assert find(ranked) == {("a", "a"): ("DUPLICATE_NEAR", "b")}


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
    assert {(a, b) for pairs in result for a, b in pairs.tolist()} == expected_rows
    assert expected_rows


def test_semantic_is_the_last_reason():
    rows = {0: clip("a", BASE), 1: clip("b", BASE), 2: clip("c", BASE)}
    rows[3] = clip("d", BASE)
    result = pick_representatives(rows, [(0, 1)], [(0, 1), (0, 3)], [(0, 1), (0, 2), (0, 3)])
    assert result == {
        1: ("DUPLICATE_NEAR", 0),
        2: ("DUPLICATE_SEMANTIC", 0),
        3: ("DUPLICATE_MIRRORED", 0),
    }
