"""What `show`, `diff`, `logs` and `explain` return."""

from pathlib import Path

import pytest

from tests.support.toy_runs import toy_run, write_videos
from videoar import api
from videoar.core.errors import ConfigError
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
