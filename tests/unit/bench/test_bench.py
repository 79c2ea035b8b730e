"""Benchmarks: the films are what they say, the counting is right, a run gives ratios."""

import importlib.util
import itertools
from collections import Counter

import numpy as np
import pytest

from videoar.bench import BENCHES, loader, loader_cell, run_benchmark
from videoar.bench.cuts import _count, _row, _Tally
from videoar.bench.films import DISTURBANCES, Disturbance, Film, Transition
from videoar.bench.result import compare, shuffled
from videoar.core.errors import ConfigError
from videoar.media.transcode import encode


def test_film_has_the_length_of_its_plan_and_is_deterministic():
    film = Film(7, num_shots=6, height_px=36, width_px=64)
    frames, again = list(film.frames()), list(film.frames())
    assert all((a == b).all() for a, b in zip(frames, again, strict=True))
    shots, transitions, _ = film.plan()
    assert len(transitions) == 5
    assert len(frames) == shots[-1].start + shots[-1].lead + shots[-1].pure
    steps = [np.abs(b.astype(int) - a).mean() for a, b in itertools.pairwise(frames)]
    for cut in (t for t in transitions if t.kind == "cut"):
        assert steps[cut.first - 1] > 10 * np.median(steps)


def test_fades_are_flat_in_the_middle_and_dissolves_are_mixtures():
    for seed in range(4):
        for kind in ("fade", "dissolve"):
            film = Film(seed, num_shots=2, height_px=36, width_px=64, kinds=(kind,))
            frames = list(film.frames())
            _, (transition,), _ = film.plan()
            middle = frames[(transition.first + transition.last) // 2].astype(float)
            old, new = (
                frames[i].astype(float) for i in (transition.first - 1, transition.last + 1)
            )
            if kind == "fade":
                assert middle.std() < 0.5 * min(old.std(), new.std())
            else:
                mixed = np.abs(middle - (old + new) / 2).mean()
                assert mixed < 0.5 * np.abs(new - old).mean()


def test_every_disturbance_occurs():
    kinds = {d.kind for seed in range(20) for d in Film(seed).plan()[2]}
    assert kinds == set(DISTURBANCES) - {"none"}


def test_detections_count_once_and_others_are_false_positives():
    tally = _Tally(actual=Counter(cut=2, dissolve=1), cpu_s=1.0)
    wanted = [
        Transition("cut", 50, 50),
        Transition("dissolve", 100, 120),
        Transition("cut", 200, 200),
    ]
    found = [(52, 52), (110, 111), (115, 116), (300, 300), (400, 401)]
    _count(tally, wanted, found, [Disturbance("flash", 298, 300)])
    assert dict(tally.found) == {"cut": 1, "dissolve": 1}
    assert dict(tally.false) == {"other": 2, "flash": 1}
    row = _row(tally)
    assert (row["precision"], row["recall"], row["recall_cut"]) == (0.4, 0.667, 0.5)


def test_compare_returns_ratios_and_hardware():
    found = compare("x", "per second", {"ours": [3.0, 1.0, 2.0], "peer": [4.0, 4.0, 5.0]})
    assert (found.ours.median, found.ratios) == (2.0, {"peer": 0.5})
    assert "cores" in found.hardware
    orders = {tuple(shuffled(["a", "b", "c"], turn)) for turn in range(20)}
    assert len(orders) > 2


@pytest.mark.slow
def test_ingest_is_measured_on_files_of_a_folder(tmp_path):
    draw = np.random.default_rng(0)
    frames = np.repeat(draw.integers(0, 255, (40, 16, 16, 3)), 8, axis=1).repeat(8, axis=2)
    encode(frames.astype(np.uint8), tmp_path / "a.mp4", 12.0)
    (tmp_path / "no.mp4").write_text("no video")
    found = run_benchmark("ingest", tmp_path, 1)
    assert found.ours.median > 0
    assert set(found.baselines) == {"null", "3-pass", "stage", "clips"}
    assert list(found.cases) == [tmp_path.name]


def test_unknown_benchmark_and_unreadable_folder_are_rejected(tmp_path):
    with pytest.raises(ConfigError, match="known: " + ", ".join(BENCHES)):
        run_benchmark("speed", None, 1)
    with pytest.raises(ConfigError, match="no video that can be read"):
        run_benchmark("ingest", tmp_path, 1)


def test_contestants_of_the_loader_read_every_row(tmp_path):
    random = np.random.default_rng(0)
    for name, width in (("bits", 30), ("latent", 4 * 3 * 2 * 2 * 2)):
        np.save(tmp_path / f"{name}.npy", random.integers(0, 256, (50, width), np.uint8))
    (tmp_path / "shape.json").write_text("[4, 3, 2, 2]")
    for name in ("raw", "ours"):
        write, read = loader_cell.CONTESTANTS[name]
        (tmp_path / name).mkdir()
        write(tmp_path, tmp_path / name)
        assert list(read(tmp_path, tmp_path / name, 8, 1)) == [8] * 6 + [2]


@pytest.mark.slow
def test_peer_that_is_not_installed_is_named_in_the_notes(tmp_path):
    if importlib.util.find_spec("litdata"):
        pytest.skip("litdata is installed here")
    notes = set()
    shape = ((4, 3, 2, 2), 30, 50, 8)
    found = loader.measure_shape(tmp_path, shape, 1, notes, ("raw", "ours", "litdata"))
    assert found.keys() == {"raw", "ours"}
    assert found["ours"][0]["samples_per_s"] > 0
    assert [note for note in notes if "litdata is missing: ModuleNotFoundError" in note]


@pytest.mark.slow
def test_tokenize_is_measured_beside_its_network():
    from videoar.bench import tokens

    film = Film(79, num_shots=3, height_px=48, width_px=64)
    found = tokens.run(2, film, num_sources=2, sizes_px=(32,))
    assert set(found.ratios) == {"encode loop", "simple loop"}
    assert [len(runs.runs) for runs in (found.ours, *found.baselines.values())] == [2, 2, 2]
    assert 0 < found.cases["32px"]["busy_percent"] < 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, while it captures a graph
def test_stage_and_bare_loop_take_the_same_steps():
    from videoar.bench import train

    result = train.run(1, train.Shape("tiny", {}, batch=4, steps=6, clips=12))
    assert set(result.ratios) == {"bare loop"}
    stage = result.cases["stage"]
    assert stage["graph_breaks"] == 0
    assert stage["graphs"] >= 1
    assert 0 <= stage["data_wait_percent"] < 100
    expected = 100 * (result.baselines["bare loop"].median / result.ours.median - 1)
    assert stage["overhead_percent"] == pytest.approx(expected, abs=0.01)
    assert stage["overhead_cpu_percent"] > -100


@pytest.mark.slow
def test_distance_is_measured_beside_sqrtm_and_the_stage_beside_its_network():
    from videoar.bench import fvd

    result = fvd.run(1, num_clips=2)
    assert set(result.ratios) == {"scipy sqrtm"}
    # both compute the same number, which is what makes their times comparable
    assert result.cases["distance"]["relative_difference"] < 1e-9
    # a small machine under load may halve the ratio, not more
    assert result.cases["distance"]["time_to_sqrtm"] < 1
    assert 0 < result.cases["stage features"]["cpu_to_bare"] < 1.5


@pytest.mark.slow
def test_generating_is_measured_by_scale_by_token_and_without_a_cache():
    from videoar.bench import generate

    result = generate.run(2, ["8x8x5"], with_stage=False)
    assert set(result.ratios) == {"uncached", "token by token"}
    steps = [case["steps"] for case in result.cases.values()]
    assert steps in ([30, 30, 320], [30, 320, 30])
    assert all(case["is_whole"] and case["seconds"] > 0 for case in result.cases.values())
    late = generate.measure("uncached", "8x8x5", 1e-9)
    assert (late["steps"], late["is_whole"]) == (0, 0)
