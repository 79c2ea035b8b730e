"""The synthetic corpus: matches its prompts, is deterministic, and damaged only on purpose."""

from collections import Counter

import numpy as np
import pytest

from videoar.core.errors import ConfigError
from videoar.media import synthetic
from videoar.media.synthetic import (
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    draw,
    entry,
    held_out,
    list_synthetic,
    parse_prompt,
    render_file,
    scenes,
)

URL = "rendered://shapes?num_videos=240&seed=0"


def test_prompts_are_parsed_and_other_text_is_not():
    assert len(scenes()) + len(held_out()) == len(SHAPES) * len(COLOURS) * len(MOTIONS)
    assert not set(scenes()) & set(held_out())
    for scene in (*scenes(), *held_out()):
        assert parse_prompt(scene.prompt) == scene
    assert parse_prompt("A  Red circle moving LEFT.") == Scene("circle", "red", "left")
    for text in ("", "red circle", "a red circle moving", "a red dog moving left"):
        assert parse_prompt(text) is None


@pytest.mark.parametrize("motion", MOTIONS)
def test_shape_stays_inside_and_moves_as_prompted_at_any_size_and_rate(motion):
    for seed, shape in enumerate(SHAPES):
        scene = Scene(shape, "red", motion, seed)
        frames = draw(scene, 25, 64, 8.0)
        vivid = (frames.max(-1).astype(int) - frames.min(-1)) > 100
        assert not vivid[:, [0, -1], :].any()
        assert not vivid[:, :, [0, -1]].any()
        centres = np.array([np.argwhere(mask).mean(0) for mask in vivid])
        (way_y, way_x), (step_x, step_y) = centres[-1] - centres[0], MOTIONS[motion]
        assert 0.28 * 64 < way_x * step_x + way_y * step_y < 0.42 * 64
        assert abs(way_x * step_y) + abs(way_y * step_x) < 0.05 * 64
        every_third = draw(scene, 73, 64, 24.0)[::3]
        assert np.array_equal(frames, every_third)


def test_scene_that_is_too_long_raises():
    with pytest.raises(ValueError, match="longer than"):
        draw(scenes()[0], 26, 16, 8.0)


def test_listing_is_balanced_and_a_larger_corpus_begins_with_the_smaller():
    rows = list_synthetic(URL)
    assert rows[:50] == list_synthetic("rendered://shapes?num_videos=50&seed=0")
    assert rows[0]["etag"] != list_synthetic("rendered://shapes?num_videos=1&seed=1")[0]["etag"]
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    counts = Counter(row["caption"] for row in rows)
    assert set(counts) == {scene.prompt for scene in scenes()}
    assert max(counts.values()) - min(counts.values()) <= 1
    entries = [entry(row["uri"]) for row in rows]
    assert all(e.row() == row for e, row in zip(entries, rows, strict=True))
    broken = Counter(e.broken for e in entries)
    assert 0 < sum(broken[kind] for kind in synthetic._BROKEN) <= 12
    assert all(row["split"] == "train" for row, e in zip(rows, entries, strict=True) if e.broken)
    assert {e.format for e in entries} == set(synthetic._FORMATS)
    assert all(len({scene.prompt for scene in e.cuts}) == 1 for e in entries)
    assert {len(e.cuts) for e in entries} == {1, 2, 3}


@pytest.mark.parametrize(
    "url",
    [
        "rendered://faces",
        "rendered://shapes?colour=red",
        "rendered://shapes?num_videos=-1",
        "rendered://shapes?num_videos=0",
        "rendered://shapes?seed=",
        "rendered://shapes/000000.mp4?num_videos=3",
    ],
)
def test_invalid_url_is_a_config_error(url):
    with pytest.raises(ConfigError):
        list_synthetic(url)


def test_unknown_file_is_a_config_error():
    row = list_synthetic(URL)[0]
    for uri in (row["uri"].replace(".mp4", ".avi"), "rendered://shapes/x.mp4?seed=0"):
        with pytest.raises(ConfigError):
            entry(uri)


def test_files_are_deterministic_and_damaged_as_declared(tmp_path):
    by_kind = {}
    for row in list_synthetic(URL):
        result = entry(row["uri"])
        by_kind.setdefault(result.broken or result.format, row["uri"])
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    for kind in ("truncated", "empty", "text", "noise", ("libx264", "mp4")):
        first, second = (render_file(by_kind[kind], folder).read_bytes() for folder in folders)
        assert first == second
        assert (len(first) == 0) == (kind == "empty")
        assert (b"moov" in first) == (kind == ("libx264", "mp4"))
