"""Rows 21, 28, 29 of the failure matrix: clocks, kills, downtime; exactly the documented runs.

The tables are those of `docs/scheduling.md`.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.support.child_process import exit_code, start
from tests.support.schedules import (
    FakeLauncher,
    at,
    tick,
    tick_in_child,
    tick_slowly,
    write_pipeline,
)
from tests.support.toy_runs import write_videos
from tests.support.toys import Upper
from videoar.core.errors import ConfigError
from videoar.records.run_log import cancel_run
from videoar.records.run_record import load_run, run_ids
from videoar.schedule import records
from videoar.schedule.decide import window_key
from videoar.storage.store import Store, open_store

NIGHTLY = {"cron": "0 3 * * *"}


def fired(store: Store) -> list[str]:
    """Return the windows that have a run, in the order of their time."""
    listed = [firing for firing in records.firings(store, "toy") if firing.window]
    return [f"{f.window:%d %H:%M}" for f in listed if records.read(store, f)["run_id"]]


WINDOWS = [
    pytest.param(
        NIGHTLY, ["01T00:00", "01T02:59", "01T03:00", "01T03:01", "02T03:30"],
        ["01 03:00", "02 03:00"], id="a tick more often than needed",
    ),
    pytest.param(NIGHTLY, ["01T04:00", "01T23:00"], [], id="windows before the first tick"),
    pytest.param(
        {"cron": "0 * * * *"}, ["01T00:30", "01T10:45"], ["01 10:00"],
        id="down for 10 windows, latest",
    ),
    pytest.param(
        {"cron": "0 * * * *", "missed": "all"}, ["01T00:30", "01T10:45"],
        [f"01 {hour:02}:00" for hour in range(1, 11)], id="down for 10 windows, all",
    ),
    pytest.param(
        {"cron": "0 * * * *", "missed": "all", "max_catchup": 3}, ["01T00:30", "01T10:45"],
        ["01 08:00", "01 09:00", "01 10:00"], id="down for 10 windows, all with max_catchup 3",
    ),
    pytest.param(
        {"cron": "0 * * * *", "missed": "skip"}, ["01T00:30", "01T10:45", "01T11:10"],
        ["01 11:00"], id="down for 10 windows, skip",
    ),
    # of two machines that tick, one is an hour ahead, or an hour behind
    pytest.param(
        NIGHTLY, ["01T00:00", "01T03:00", "01T02:00", "01T02:30", "01T03:00", "01T04:00"],
        ["01 03:00"], id="a clock 1 h ahead fires early, and nothing twice",
    ),
    pytest.param(
        NIGHTLY, ["01T00:00", "01T03:00", "01T02:01", "02T02:59", "02T01:59", "02T02:00",
                  "02T03:00"],
        ["01 03:00", "02 03:00"], id="a clock 1 h behind fires late, and nothing twice",
    ),
    pytest.param(
        {"cron": "0 * * * *"}, ["01T00:30", "01T02:05", "01T01:05", "01T02:05", "01T03:05"],
        ["01 02:00", "01 03:00"], id="a clock set back by 1 h",
    ),
    # both changes of the clocks in two zones
    pytest.param(
        {"cron": "30 2 * * *", "time_zone": "Europe/Berlin"}, "hourly 2026-03-28T12:00",
        ["29 01:00", "30 00:30"], id="Berlin in March: 02:30 is skipped, runs at 03:00",
    ),
    pytest.param(
        {"cron": "30 2 * * *", "time_zone": "Europe/Berlin"}, "hourly 2026-10-24T12:00",
        ["25 00:30", "26 01:30"], id="Berlin in October: 02:30 comes twice, runs once",
    ),
    pytest.param(
        {"cron": "30 2 * * *", "time_zone": "America/New_York"}, "hourly 2026-03-07T12:00",
        ["08 07:00", "09 06:30"], id="New York in March: 02:30 is skipped, runs at 03:00",
    ),
    pytest.param(
        {"cron": "30 1 * * *", "time_zone": "America/New_York"}, "hourly 2026-10-31T12:00",
        ["01 05:30", "02 06:30"], id="New York in November: 01:30 comes twice, runs once",
    ),
]  # fmt: skip


@pytest.mark.fault(29, "a scheduler that is down for up to ten windows")
@pytest.mark.fault(21, "clocks that jump by an hour, daylight saving in two zones")
@pytest.mark.parametrize(("trigger", "ticks", "windows"), WINDOWS)
def test_windows_have_exactly_the_documented_runs(
    store: Store, tmp_path: Path, trigger: dict, ticks: str | Sequence[str], windows: list[str]
):
    path, launcher = write_pipeline(tmp_path, trigger=trigger), FakeLauncher()
    if isinstance(ticks, str):
        first = at(ticks.removeprefix("hourly "))
        times = [first + timedelta(hours=hour) for hour in range(48)]
    else:
        times = [at(f"2026-11-{text}") for text in ticks]
    for now in times:
        tick(store, path, launcher, now)
    assert fired(store) == windows
    assert len(launcher.launched) == len(set(launcher.launched)) == len(windows)


def test_table_of_the_docs_has_these_cases():
    text = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text()
    for case in WINDOWS:
        trigger, _, windows = case.values
        runs = ", ".join(windows) if len(windows) < 5 else f"{windows[0]} to {windows[-1]}"
        assert f"| {case.id} | `{trigger['cron']}` | {runs or 'none'} |" in text


@pytest.mark.fault(28, "50 ticks at once")
@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_50_ticks_at_once_start_one_run(
    store: Store, tmp_path: Path, kind: str, request: pytest.FixtureRequest
):
    """Threads: each with its own decision and lease."""
    if kind == "bucket":
        server = request.getfixturevalue("moto_server")
        store = open_store(f"s3://{server.bucket}/p", endpoint=server.endpoint)
    path, launcher = write_pipeline(tmp_path, trigger=NIGHTLY), FakeLauncher()
    tick(store, path, launcher, at("2026-11-01T00:00"))
    with ThreadPoolExecutor(50) as pool:
        due = (store, path, launcher, at("2026-11-01T03:00"))
        ticks = [pool.submit(tick, *due) for _ in range(50)]
    assert not [error for future in ticks if (error := future.exception())]
    assert len(launcher.launched) == 1
    assert fired(store) == ["01 03:00"]


def test_ticks_of_processes_at_once_start_one_run(store: Store, tmp_path: Path):
    write_videos(tmp_path / "videos", "a.mp4")
    path = str(write_pipeline(tmp_path, trigger={"cron": "0 * * * *"}))
    tick_in_child(store.url, path, ["2026-11-01T00:30"])
    children = [start(tick_in_child, store.url, path, ["2026-11-01T01:00"]) for _ in range(8)]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 8
    (run_id,) = run_ids(store)
    (firing,) = records.firings(store, "toy")
    assert firing.has_ended
    assert records.read(store, firing)["run_id"] == run_id


@pytest.mark.fault(28, "SIGKILL at each crash point of a tick")
@pytest.mark.parametrize(
    "point",
    ["trigger-recorded", "trigger-starting", "mapping-a.mp4", "before-commit", "committed",
     "trigger-launched", "trigger-told"],
)  # fmt: skip
def test_killed_tick_is_finished_by_the_next_with_the_same_run(
    store: Store, tmp_path: Path, point: str
):
    write_videos(tmp_path / "videos", "a.mp4")
    path = str(write_pipeline(tmp_path, trigger=NIGHTLY))
    tick_in_child(store.url, path, ["2026-11-01T00:00"])
    due = ["2026-11-01T03:00"]
    assert exit_code(tick_in_child, store.url, path, due, VIDEOAR_CRASH_AT=point) == -9
    (firing,) = records.firings(store, "toy")
    run_id = records.read(store, firing)["run_id"]
    assert not firing.has_ended
    tick_in_child(store.url, path, ["2026-11-01T03:01", "2026-11-01T03:02"])
    assert run_ids(store) == [run_id]
    run = load_run(store, run_id)
    assert run.status == "SUCCEEDED"
    assert run.trigger
    assert run.trigger["window"] == "2026-11-01T03:00:00+00:00"
    (firing,) = records.firings(store, "toy")
    assert (firing.key, firing.number) == (window_key("toy", at(due[0])), 0)
    assert firing.has_ended


def test_interrupted_run_whose_code_has_changed_ends_as_failed(store: Store, tmp_path: Path):
    write_videos(tmp_path / "videos", "a.mp4")
    path = write_pipeline(tmp_path, trigger={"cron": "0 * * * *"})
    tick_in_child(store.url, str(path), ["2026-11-01T00:00"])
    due = ["2026-11-01T01:00"]
    killed = exit_code(tick_in_child, store.url, str(path), due, VIDEOAR_CRASH_AT="mapping-a.mp4")
    assert killed == -9
    with patch("videoar.runner.execute.find_drift", side_effect=ConfigError("run", "drift")):
        tick_in_child(store.url, str(path), ["2026-11-01T01:01"])
    (firing,) = records.firings(store, "toy")
    end = store.ledger.read(firing.record_key("end"))
    assert end
    assert (end["status"], end["error"]) == ("FAILED", "run: drift")
    tick_in_child(
        store.url, str(path), ["2026-11-01T02:00"]
    )  # the next window has a run of its own
    assert len(run_ids(store)) == 2


def test_replaced_run_of_another_process_is_cancelled(store: Store, tmp_path: Path):
    write_videos(tmp_path / "videos", "a.mp4")
    path = write_pipeline(tmp_path, trigger={"cron": "0 * * * *"}, concurrency="replace")
    tick_in_child(store.url, str(path), ["2026-11-01T00:00"])
    first = start(tick_slowly, store.url, str(path), ["2026-11-01T01:00"])
    deadline = time.monotonic() + 60
    while not (known := run_ids(store)) or load_run(store, known[0]).status != "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    tick_in_child(store.url, str(path), ["2026-11-01T02:00"])
    first.join(60)
    assert first.exitcode not in {None, 0}
    assert [load_run(store, run).status for run in run_ids(store)] == ["CANCELLED", "SUCCEEDED"]
    ends = [store.ledger.read(f.record_key("end")) for f in records.firings(store, "toy")]
    assert [end and end["status"] for end in ends] == ["CANCELLED", "SUCCEEDED"]


@pytest.mark.parametrize("by_person", [False, True])
def test_stopped_run_is_continued_unless_a_person_cancelled_it(
    store: Store, tmp_path: Path, by_person: bool
):
    write_videos(tmp_path / "videos", "a.mp4")
    path = write_pipeline(tmp_path, trigger=NIGHTLY)
    tick_in_child(store.url, str(path), ["2026-11-01T00:00"])

    def stop(run_id: str) -> None:
        if by_person:
            cancel_run(store, run_id)
        raise KeyboardInterrupt

    with patch.object(Upper, "open", lambda *_: stop(run_ids(store)[-1])), \
            pytest.raises(KeyboardInterrupt):  # fmt: skip
        tick_in_child(store.url, str(path), ["2026-11-01T03:00"])
    tick_in_child(store.url, str(path), ["2026-11-01T03:01"])
    (firing,) = records.firings(store, "toy")
    (run_id,) = run_ids(store)
    assert firing.has_ended
    status = load_run(store, run_id).status
    assert status == ("CANCELLED" if by_person else "SUCCEEDED")
