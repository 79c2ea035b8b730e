"""Shot transitions in films with a known edit: what is found, and what is no false detection."""

import itertools

import numpy as np
import pytest

from videoar.bench.film_effects import SHAPES, Style, combined, lit
from videoar.bench.films import KINDS, Film
from videoar.media import wipes
from videoar.media.correlation import correlates
from videoar.media.luma_frames import ClockFrames, LumaFrames
from videoar.media.shots import SampledFrame, shots, spans
from videoar.media.transitions import Transition, find_transitions

SEEDS = range(500, 506)


def small_film(seed, **options):
    return Film(seed, num_shots=10, height_px=72, width_px=128, **options)


def luma_of(film):
    frames = np.stack(list(film.frames())).mean(axis=3)
    return frames.reshape(len(frames), 36, 2, 64, 2).mean(axis=(2, 4)).astype(np.uint8)


def clock(count, rate_fps):
    return np.round(np.arange(count) * 1e6 / rate_fps).astype(np.int64)


@pytest.fixture(scope="module")
def films():
    created = [small_film(seed, rate_fps=(24.0, 25.0, 30.0)[seed % 3]) for seed in SEEDS]
    return [(film, luma_of(film)) for film in created]


def hits(expected, result):
    return [any(c.first <= w.last + 2 and c.last >= w.first - 2 for c in result) for w in expected]


@pytest.mark.slow
def test_most_transitions_are_found_and_few_others(films):
    found_of_kind, wanted_of_kind, false = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), 0
    for film, luma_frames in films:
        _, transitions, _ = film.plan()
        result = find_transitions(luma_frames, clock(len(luma_frames), film.rate_fps))
        for transition, hit in zip(transitions, hits(transitions, result), strict=True):
            wanted_of_kind[transition.kind] += 1
            found_of_kind[transition.kind] += hit
        false += hits(result, transitions).count(False)
    assert found_of_kind["cut"] == wanted_of_kind["cut"] > 5
    assert found_of_kind["fade"] >= 0.9 * wanted_of_kind["fade"] > 5
    assert found_of_kind["dissolve"] >= 0.75 * wanted_of_kind["dissolve"] > 5
    assert false <= 2


@pytest.mark.slow
@pytest.mark.parametrize("rate_fps", [8.0, 60.0])
def test_transitions_are_found_at_any_frame_rate(rate_fps):
    film = small_film(41, rate_fps=rate_fps, kinds=("cut",))
    _, transitions, _ = film.plan()
    luma_frames = luma_of(film)
    result = find_transitions(luma_frames, clock(len(luma_frames), rate_fps))
    assert all(hits(transitions, result))
    assert hits(result, transitions).count(False) <= 1


def test_cut_has_the_index_of_the_first_frame_of_the_new_shot():
    draw = np.random.default_rng(0)
    one, other = (np.tile(draw.integers(0, 255, (1, 36, 64)), (20, 1, 1)) for _ in range(2))
    luma_frames = np.concatenate([one, other]).astype(np.uint8)
    (change,) = find_transitions(luma_frames, clock(40, 25))
    assert (change.kind, change.first, change.last) == ("cut", 20, 20)


def picture(seed):
    """Return clouds and boxes, [36, 64, 1]: as much contrast as a photograph."""
    draw = np.random.default_rng(seed)
    coarse = draw.uniform(20, 235, (5, 8)).repeat(8, 0).repeat(8, 1)[:36]
    fine = draw.uniform(-25, 25, (18, 32)).repeat(2, 0).repeat(2, 1)
    return np.clip(coarse + fine, 0, 255).astype(np.float32)[..., None]


def film_of(images):
    grain = np.random.default_rng(0).normal(0, 1, (36, 64, 1))
    frames = [np.roll(grain, 7 * i, 1) + image for i, image in enumerate(images)]
    return np.clip(frames, 0, 255).astype(np.uint8)[..., 0]


@pytest.mark.parametrize("kind", ["wipe", "slide", "push"])
def test_wipes_slides_and_pushes_are_found_in_all_directions(kind):
    rate_fps, length = 25, 20
    for number, shape in enumerate(SHAPES if kind == "wipe" else ["straight"] * 4):
        style = Style(shape, number % 4, bool(number % 2), softness=0.1, is_eased=False)
        old, new = picture(number), picture(10 + number)
        shares = [(i + 1) / (length + 1) for i in range(length)]
        images = [combined(kind, style, old, new, share) for share in shares]
        luma = film_of([old] * rate_fps + images + [new] * rate_fps)
        (found,) = find_transitions(luma, clock(len(luma), rate_fps))
        assert found.kind == "wipe", style
        # a clip beside it may have the first or last traces of the other picture
        assert found.first <= rate_fps + 0.2 * length, style
        assert found.last >= rate_fps + 0.8 * length, style
        assert found.last - found.first < 2 * length, style


def test_coarse_pictures_rule_out_no_slide(monkeypatch):
    def fitting():
        frames = ClockFrames(LumaFrames(luma, clock(len(luma), 12)))
        return list(wipes.find_stretches(frames, np.zeros(len(frames.index_t), bool)))

    for way, kind in itertools.product(range(4), ("slide", "push")):
        style = Style("straight", way, bool(way % 2), softness=0.1, is_eased=way > 1)
        old, new = picture(way), picture(10 + way)
        images = [combined(kind, style, old, new, (i + 1) / 11) for i in range(10)]
        luma = film_of([old] * 12 + images + [new] * 12)
        found = []
        for in_band in (wipes._IN_BAND, {18: 18, 32: 32}, {18: 1, 32: 1}):
            monkeypatch.setattr(wipes, "_IN_BAND", in_band)
            found.append(fitting())
        assert found[0]
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("rate_fps", [24, 30, 60, 120])
@pytest.mark.parametrize("kind", ["white", "colour", "strobe", "lightning", "muzzle"])
def test_flash_is_no_change_of_shot_and_none_at_a_cut_hides_it(kind, rate_fps):
    before, after = picture(1), picture(2)
    for is_cut in (False, True):
        images = [before] * rate_fps
        images += [lit(kind, before, i / rate_fps, np.float32(90)) for i in range(rate_fps // 2)]
        images += [after if is_cut else before] * rate_fps
        luma = film_of(images)
        found = find_transitions(luma, clock(len(luma), rate_fps))
        assert len(found) == is_cut


def test_rotating_gradient_is_one_shot():
    y, x = np.mgrid[-1:1:36j, -1.8:1.8:64j]
    for turns_per_s, seed in itertools.product((0.05, 0.1, 0.2), range(4)):
        angles = 2 * np.pi * turns_per_s * np.arange(150) / 25 + seed
        frames = [128 + 60 * (np.cos(a) * x + np.sin(a) * y) for a in angles]
        luma = np.clip(frames, 0, 255).astype(np.uint8)
        assert find_transitions(luma, clock(150, 25)) == []


def test_frames_without_content_have_no_transition():
    assert find_transitions(np.zeros((30, 36, 64), np.uint8), clock(30, 25)) == []
    assert find_transitions(np.zeros((1, 36, 64), np.uint8), clock(1, 25)) == []
    within = 85_000 + clock(9, 200)  # between two points of the clock
    assert find_transitions(np.zeros((9, 36, 64), np.uint8), within) == []


def sampled(luma_frames, times_us):
    return [
        SampledFrame(i, int(t), (64, 36), 0, luma, [np.full((2, 2, 3), i % 256, np.uint8)])
        for i, (luma, t) in enumerate(zip(luma_frames, times_us, strict=True))
    ]


@pytest.mark.slow
def test_detection_in_blocks_equals_detection_over_the_whole_film(films):
    film, _luma = films[0]
    long = np.concatenate([g for _, g in films[:4]])
    times_us = clock(len(long), film.rate_fps)
    frames = sampled(long, times_us)
    starts = {t.index: s for t, s in shots(frames) if s is not None}
    whole = find_transitions(long, times_us)
    trim = {"cut": 2, "fade": 3, "dissolve": 3}
    expected = {0} | {c.last + trim[c.kind] for c in whole}
    assert set(starts) == expected
    assert next(s.kind for s in starts.values()) == "start"


def test_memory_is_independent_of_the_length():
    alive, most = 0, 0

    class Counted(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def endless():
        nonlocal alive, most
        draw = np.random.default_rng(1).integers(0, 255, (36, 64)).astype(np.uint8)
        for i in itertools.count():
            alive += 1
            most = max(most, alive)
            yield SampledFrame(
                i, 40_000 * i, (64, 36), 0, draw, [np.zeros((2, 2, 3), np.uint8).view(Counted)]
            )

    for _ in itertools.islice(spans(shots(endless()), 17), 400):
        pass
    assert most < 1500


def test_gaps_and_size_changes_end_shots_without_detection():
    luma_frames = np.zeros((30, 36, 64), np.uint8)
    frames = sampled(luma_frames, clock(30, 25))
    for frame in frames[10:]:
        frame.time_us += 10**12
    for frame in frames[20:]:
        frame.size_px = (32, 18)
    starts = [(t.index, s.kind) for t, s in shots(frames, find=False) if s]
    assert starts == [(0, "start"), (10, "gap"), (20, "gap")]
    assert [s.first.index for s in spans(shots(frames, find=False), 5)] == [0, 5, 10, 15, 20, 25]


@pytest.mark.slow
def test_transitions_are_disjoint_and_in_order(films):
    for film, luma_frames in films:
        result: list[Transition] = find_transitions(
            luma_frames, clock(len(luma_frames), film.rate_fps)
        )
        assert all(a.last < b.first for a, b in itertools.pairwise(result))


def test_a_wipe_at_the_start_of_a_film_has_nothing_before_it_to_compare_with():
    pictures = np.random.default_rng(0).normal(0, 1, (2, 9, 16)).astype(np.float32)
    assert correlates(pictures, pictures, ((0, 0),), 0.9)
    assert not correlates(pictures[:0], pictures, ((0, 0),), 0.9)
    assert not correlates(pictures, pictures[:0], ((0, 0),), 0.9)
