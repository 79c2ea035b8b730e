"""What `show`, `diff`, `logs` and `explain` return."""

from pathlib import Path

import pytest
from PIL import Image

from tests.support.clip_rows import clips_of, drawn_rows
from tests.support.committed_rows import RowWriter
from tests.support.scored_samples import commit_model, score
from tests.support.toy_runs import toy_run, write_videos
from videoar import api
from videoar.cli.data import _score_line
from videoar.core.errors import ConfigError
from videoar.media.synthetic import scenes
from videoar.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return api.open_store((tmp_path / "store").as_uri())


def test_diff_lists_added_and_removed_videos(store: Store, tmp_path: Path):
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4")
    first = toy_run(store, videos)
    (videos / "a.mp4").unlink()
    write_videos(videos, "c.mp4")
    second = toy_run(store, videos)
    changes = api.diff(store, first.outputs["big"], second.outputs["big"])
    assert [Path(uri).name for uri in changes["videos_added"]] == ["c.mp4"]
    assert [Path(uri).name for uri in changes["videos_removed"]] == ["a.mp4"]
    assert not changes["same"]
    again = api.diff(store, "big", "last/big")
    assert (again["same"], again["videos_added"], again["videos_removed"]) == (True, [], [])


def test_show_by_any_name_describes_the_snapshot(store: Store, tmp_path: Path):
    run = toy_run(store, write_videos(tmp_path / "videos", "a.mp4"))
    for name in (run.outputs["big"], "big", "last/big"):
        shown = api.show(store, name, rows=1)
        assert shown["snapshot"] == run.outputs["big"]
        assert [row["name"] for row in shown["first_rows"]] == ["A.MP4"]


def test_logs_of_stage_are_its_events(store: Store, tmp_path: Path):
    run = toy_run(store, write_videos(tmp_path / "videos", "a.mp4"))
    events = api.logs(store, f"{run.run_id}/big")
    assert events
    assert {event["stage"]["name"] for event in events} == {"big"}
    assert len(api.logs(store, "last")) > len(events)
    with pytest.raises(ConfigError, match="no such stage"):
        api.logs(store, "last/nosuch")


def test_quarantine_by_run_and_by_snapshot_returns_rows(store: Store, tmp_path: Path):
    run = toy_run(store, write_videos(tmp_path / "videos", "a.mp4", "bad.mp4"))
    rejects = run.stage("big").rejects
    for name in (None, "last", run.run_id, run.outputs["big"], rejects, "bad.mp4"):
        (row,) = api.quarantine(store, name)["rows"]
        assert (row["item_id"], row["snapshot"]) == ("bad.mp4", rejects)
    assert api.quarantine(store, None, "TOO_SHORT")["rows"] == []


def test_show_of_scores_has_lock_interval_lineage_and_gate_of_every_row(store: Store):
    writer = RowWriter(store)
    unknown = {"value": None, "ci_low": None, "ci_high": None, "status": "not_evaluated"}
    scores = [
        score("fvd", 8.0, num_reference=5),
        {**score("recon/psnr", 0.0), **unknown, "reason": "no x"},
    ]
    commit_model(writer, "new", (0.6, 0.8, 0.9), scores)
    rules = [
        {"rule": "fvd <= 9", "metric": "fvd", "passed": True, "reason": "holds", "ref": "champion"},
        {"rule": "recon/psnr >= 1", "metric": "recon/psnr", "passed": False, "reason": "no x",
         "ref": "champion"},
    ]  # fmt: skip
    writer.commit("gate", "releases@1", rules, {"scores": "new_scores"})
    writer.commit("other", "releases@1", rules, {"champion_scores": "new_scores"})
    rows = api.show(store, "new_scores")["scores"]
    assert [row["metric"] for row in rows] == ["temporal_flickering", "fvd", "recon/psnr"]
    for row in rows:
        assert row["lock"]["metric"] == row["metric"]
        assert row["lock_digest"]
        assert row["parents"].items() >= {"samples": writer.ids["new_samples"]}.items()
        (decision,) = row["gate"]  # the decision on another model has them as the champion's
        assert (decision["decision"], decision["passed"]) == (writer.ids["gate"], False)
    shown = [{k: v for k, v in rule.items() if k != "metric"} for rule in rules]
    assert [row["gate"][0]["rules"] for row in rows] == [[], shown[:1], shown[1:]]
    assert [_score_line(row)[1:] for row in rows[1:]] == [
        (8.0, "7.9 to 8.1", "3 / 5", "fvd-a", "pass fvd <= 9"),
        ("not evaluated: no x", None, "3", "recon/psnr-a", "FAIL recon/psnr >= 1"),
    ]
    assert _score_line(rows[0])[-1] == "FAIL (no rule on it)"
    assert "scores" not in api.show(store, "new_samples")


@pytest.mark.slow
def test_strip_draws_a_clip_even_without_its_source(store: Store, tmp_path: Path):
    box = {
        "clip_id": "c1" * 16,
        "crop_box": [40, 0, 240, 240],
        "active_box": [0, 0, 320, 240],
        "resampling": "area",
    }
    (row,) = drawn_rows(store, scenes()[:1])
    times_us = [125_000 * k for k in range(9)]
    clips_of(store, [{**row, **box, "frame_times_us": times_us, "deinterlacer": "bwdif"}])
    made = api.strip(store, "c1c1c1c1c1", tmp_path / "strip.png")
    assert made["crop"] == "240x240 at 40,0 (inside the bars: 320x240 at 0,0)"
    assert made["deinterlace"].startswith("bwdif")
    assert "No such file" in made["source_not_read"]
    with Image.open(tmp_path / "strip.png") as image:
        assert image.height > 160
        assert image.width >= 6 * 168
    with pytest.raises(ConfigError, match="is no clip"):
        api.strip(store, "clips", tmp_path / "other.png")
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [".png"]
