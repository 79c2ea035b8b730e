"""Ticks: data triggers, overlap, pauses, released keys, windows of the past, and hooks."""

import hashlib
import hmac
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.support.child_process import exit_code
from tests.support.schedules import FakeLauncher, at, tick, tick_in_child, write_pipeline
from tests.support.toy_runs import toy_run, write_videos
from tests.support.toys import REGISTRY
from videoar import api
from videoar.api.schedule import LocalLauncher
from videoar.core.errors import (
    ClusterUnknownError,
    ConfigError,
    LeaseHeldError,
    TransientStorageError,
)
from videoar.pipeline.spec import load_pipeline
from videoar.records.run_record import events_of, load_run
from videoar.schedule import records
from videoar.schedule.tick import Ticker
from videoar.storage.layout import schedule_lease
from videoar.storage.lease import Lease
from videoar.storage.store import Store, open_store

HOURLY = {"cron": "0 * * * *"}
START = at("2026-11-01T00:30")


def hour(number: int):
    return at(f"2026-11-01T{number:02}:05")


def statuses(store: Store) -> list[str | None]:
    """Return the status of each firing, in the order of the keys; None without an end."""
    ends = (store.ledger.read(f.record_key("end")) for f in records.firings(store, "toy"))
    return [end["status"] if end else None for end in ends]


def test_new_sources_start_one_run_per_batch(store: Store, tmp_path: Path):
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4")
    rule = {"input": "videos", "min_items": 2}
    path, launcher = write_pipeline(tmp_path, trigger={"new_sources": rule}), FakeLauncher()
    for _ in range(2):
        tick(store, path, launcher, START)
    assert len(launcher.launched) == 1
    write_videos(videos, "c.mp4")
    (outcome,) = tick(store, path, launcher, START)
    assert outcome.reason == "1 new sources of 10 bytes are too few"
    write_videos(videos, "d.mp4")
    tick(store, path, launcher, START)
    tick(store, path, launcher, START)
    assert len(launcher.launched) == 2
    causes = [records.read(store, firing)["cause"] for firing in records.firings(store, "toy")]
    assert [cause["new_items"] for cause in causes] == [2, 2]


def test_new_sources_wait_until_the_listing_is_quiet(store: Store, tmp_path: Path):
    videos = write_videos(tmp_path / "videos", "a.mp4")
    rule = {"input": "videos", "debounce_s": 600, "max_wait_s": 7200}
    path, launcher = write_pipeline(tmp_path, trigger={"new_sources": rule}), FakeLauncher()
    for minute, arrival in enumerate(["b.mp4", "c.mp4", "d.mp4"]):
        tick(store, path, launcher, at(f"2026-11-01T01:0{minute}"))
        write_videos(videos, arrival)
    tick(store, path, launcher, at("2026-11-01T01:05"))
    tick(store, path, launcher, at("2026-11-01T01:14"))
    assert not launcher.launched
    tick(store, path, launcher, at("2026-11-01T01:15"))
    assert len(launcher.launched) == 1


def test_new_snapshot_of_a_dataset_starts_a_run(store: Store, tmp_path: Path):
    videos = write_videos(tmp_path / "other", "a.mp4")
    trigger = {"new_snapshot": {"dataset": "few"}}
    path, launcher = write_pipeline(tmp_path, name="toys", trigger=trigger), FakeLauncher()
    (outcome,) = tick(store, path, launcher, START)
    assert outcome.reason == "there is no snapshot yet"
    for arrival in ("b.mp4", "c.mp4"):
        toy_run(store, write_videos(videos, arrival))
        for _ in range(2):
            tick(store, path, launcher, START)
    assert len(launcher.launched) == 2


@pytest.mark.parametrize(
    ("policy", "launched", "cancelled", "ends"),
    [
        ("forbid", 1, 0, [None, "SKIPPED"]),
        ("queue", 2, 0, [None, None]),
        ("allow", 2, 0, [None, None]),
        ("replace", 2, 1, ["CANCELLED", None]),
    ],
)
def test_window_during_a_run(store, tmp_path, policy, launched, cancelled, ends):
    path = write_pipeline(tmp_path, trigger=HOURLY, concurrency=policy)
    launcher = FakeLauncher(ends="RUNNING")  # as a launcher that submits jobs
    for time in (START, hour(1), hour(2)):
        tick(store, path, launcher, time)
    assert (len(launcher.launched), len(launcher.cancelled)) == (launched, cancelled)
    assert statuses(store) == ends


@pytest.mark.slow
def test_queued_window_waits_for_the_lease(store: Store, tmp_path: Path):
    path, launcher = write_pipeline(tmp_path, trigger=HOURLY, concurrency="queue"), FakeLauncher()
    tick(store, path, launcher, START)
    other = Lease(store, schedule_lease("toy"), "run r0")
    other.acquire()
    other.keep(lambda _: None)
    for _ in range(3):
        *_, outcome = tick(store, path, launcher, hour(1))
        assert (outcome.status, launcher.launched) == ("QUEUED", [])
        assert "is held by run r0" in outcome.reason
        launcher.status[outcome.run_id] = "QUEUED"
    assert [event["kind"] for event in events_of(store, outcome.run_id)] == ["queued"]
    run = load_run(store, outcome.run_id)
    assert (run.status, run.queued_behind, run.seconds) == ("QUEUED", "r0", 0.0)
    assert run.trigger["key"] == outcome.key
    (listed,) = api.schedule_ls(store)["fired"]
    assert (listed["status"], listed["reason"]) == ("QUEUED", "waits for run r0")
    other.release()
    assert load_run(store, outcome.run_id).queued_behind is None
    tick(store, path, launcher, hour(1))
    assert len(launcher.launched) == 1


def cancel_in_child(store_url: str, run_id: str) -> None:
    api.cancel(open_store(store_url), run_id)


@pytest.mark.slow
def test_kill_while_a_run_is_queued_or_cancelled_changes_nothing(store: Store, tmp_path: Path):
    path = write_pipeline(tmp_path, trigger=HOURLY, concurrency="queue")
    write_videos(tmp_path / "videos", "a.mp4")
    launcher, times = LocalLauncher(store, "inline", REGISTRY), ["2026-11-01T01:05"]
    tick(store, path, launcher, START)
    other = Lease(store, schedule_lease("toy"), "run r0")
    other.acquire()
    other.keep(lambda _: None)
    for point in ("trigger-created", "trigger-queued"):
        killed = tick_in_child, store.url, str(path), times
        assert exit_code(*killed, VIDEOAR_CRASH_AT=point) == -9
    *_, outcome = tick(store, path, launcher, hour(1))
    assert [event["kind"] for event in events_of(store, outcome.run_id)] == ["queued"]
    killed = cancel_in_child, store.url, outcome.run_id
    assert exit_code(*killed, VIDEOAR_CRASH_AT="queued-cancelled") == -9
    assert load_run(store, outcome.run_id).status == "INTERRUPTED"
    other.release()
    *_, outcome = tick(store, path, launcher, hour(1))
    assert outcome.status == "SUCCEEDED"


@pytest.mark.slow
def test_cancelled_run_in_the_queue_never_starts(store: Store, tmp_path: Path):
    path = write_pipeline(tmp_path, trigger=HOURLY, concurrency="queue")
    write_videos(tmp_path / "videos", "a.mp4")
    launcher = LocalLauncher(store, "inline", REGISTRY)
    tick(store, path, launcher, START)
    other = Lease(store, schedule_lease("toy"), "run r0")
    other.acquire()
    other.keep(lambda _: None)
    (first,) = tick(store, path, launcher, hour(1))
    api.cancel(store, first.run_id)
    assert load_run(store, first.run_id).status == "CANCELLED"
    other.release()
    ended = tick(store, path, launcher, hour(2))
    assert [o.status for o in ended if o.key] == ["CANCELLED", "SUCCEEDED"]
    with pytest.raises(ConfigError, match="is not running"):
        api.cancel(store, first.run_id)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LeaseHeldError("lease toy", "is held by run x"), "QUEUED"),
        (ClusterUnknownError("cluster", "does not answer"), "UNKNOWN"),
        (TransientStorageError("store", "slow down"), "UNKNOWN"),
    ],
)
def test_run_of_which_nothing_is_known_stays_for_the_next_tick(store, tmp_path, error, status):
    path, launcher = write_pipeline(tmp_path, trigger=HOURLY), FakeLauncher()
    tick(store, path, launcher, START)
    with patch.object(launcher, "launch", side_effect=error):
        (outcome,) = tick(store, path, launcher, hour(1))
    assert (outcome.status, statuses(store)) == (status, [None])
    tick(store, path, launcher, hour(1))
    assert (launcher.launched, statuses(store)) == ([outcome.run_id], ["SUCCEEDED"])


def test_released_key_runs_again_once(store: Store, tmp_path: Path):
    path, launcher = write_pipeline(tmp_path, trigger=HOURLY), FakeLauncher("FAILED")
    tick(store, path, launcher, START)
    (outcome,) = tick(store, path, launcher, hour(1))
    assert (outcome.status, outcome.public()["error"]) == ("FAILED", "stage big: boom")
    tick(store, path, launcher, hour(1))
    assert len(launcher.launched) == 1
    launcher.ends = "SUCCEEDED"
    api.schedule_release(store, outcome.key[:14])
    for _ in range(2):
        tick(store, path, launcher, hour(1))
    assert len(set(launcher.launched)) == 2
    (firing,) = records.firings(store, "toy")
    assert (firing.number, firing.has_ended, firing.is_released) == (1, True, False)


def test_key_of_a_run_in_progress_is_not_released(store: Store, tmp_path: Path):
    path, launcher = write_pipeline(tmp_path, trigger=HOURLY), FakeLauncher("RUNNING")
    tick(store, path, launcher, START)
    (outcome,) = tick(store, path, launcher, hour(1))
    with pytest.raises(ConfigError, match=f"its run {outcome.run_id} has not ended"):
        api.schedule_release(store, outcome.key)
    with pytest.raises(ConfigError, match="no such key"):
        api.schedule_release(store, "2027")


def test_windows_of_a_pause_are_not_missed(store: Store, tmp_path: Path):
    path, launcher = write_pipeline(tmp_path, trigger=HOURLY), FakeLauncher()
    with pytest.raises(ConfigError, match="no tick has seen"):
        api.schedule_pause(store, "toy")
    tick(store, path, launcher, START)
    records.pause(store, "toy", paused=True, now=hour(1))
    other = write_pipeline(tmp_path, trigger={"cron": "5 * * * *"})
    (outcome,) = tick(store, other, launcher, hour(2))
    write_pipeline(tmp_path, trigger=HOURLY)
    (outcome,) = tick(store, path, launcher, hour(3))
    assert "@" in outcome.reason.removeprefix("paused by ")
    records.pause(store, "toy", paused=False, now=hour(4))
    tick(store, path, launcher, hour(4))
    assert not launcher.launched
    tick(store, path, launcher, hour(5))
    assert len(launcher.launched) == 1


def test_changed_trigger_counts_from_the_tick_that_sees_it(store: Store, tmp_path: Path):
    launcher = FakeLauncher()
    tick(store, write_pipeline(tmp_path, trigger={"cron": "0 0 1 * *"}), launcher, START)
    path = write_pipeline(tmp_path, trigger=HOURLY)
    tick(store, path, launcher, hour(9))
    assert not launcher.launched
    tick(store, path, launcher, hour(10))
    assert len(launcher.launched) == 1


def test_backfill_runs_each_window_of_the_span_once(store: Store, tmp_path: Path):
    path, launcher = write_pipeline(tmp_path, trigger=HOURLY), FakeLauncher()
    spec = load_pipeline(path, (), REGISTRY)
    for _ in range(2):
        outcomes = Ticker(spec, store, launcher, hour(5)).backfill(at("2026-11-01T02:00"), hour(9))
    assert [o.reason for o in outcomes] == ["this window has had its run"] * 4
    assert len(launcher.launched) == 4
    windows = [f"{f.window:%H:%M}" for f in records.firings(store, "toy") if f.window]
    assert windows == ["02:00", "03:00", "04:00", "05:00"]


def test_overview_is_read_from_the_store_alone(store: Store, tmp_path: Path):
    trigger = {"cron": "0 3 * * *", "time_zone": "Europe/Berlin"}
    path, launcher = write_pipeline(tmp_path, trigger=trigger), FakeLauncher()
    for day in ("01", "02"):
        tick(store, path, launcher, at(f"2026-11-{day}T01:00"))
    path.unlink()
    result = api.schedule_ls(store, now=at("2026-11-04T00:00"))
    (schedule,) = result["schedules"]
    assert schedule["next"] == "2026-11-04T02:00:00+00:00"
    assert (schedule["missed"], schedule["trigger"]) == (2, trigger)
    (firing,) = result["fired"]
    assert (firing["status"], firing["cause"]["window"]) == (
        "SUCCEEDED", "2026-11-01T02:00:00+00:00",
    )  # fmt: skip


class Receiver:
    """A webhook that refuses the first `failures` calls; `got` has signature and event of all."""

    def __init__(self, failures: int) -> None:
        self.got: list[tuple[str, dict]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.headers["X-VideoAR-Signature"], json.loads(body)))
                assert self.headers["X-VideoAR-Signature"] == sign(body)
                self.send_response(500 if len(outer.got) <= failures else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> "Receiver":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def sign(body: bytes) -> str:
    return "sha256=" + hmac.new(b"planted-secret", body, hashlib.sha256).hexdigest()


def test_webhook_gets_each_event_at_least_once(store, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOOK_SECRET", "planted-secret")
    launcher = FakeLauncher("FAILED")
    with Receiver(failures=2) as receiver:
        url = f"http://127.0.0.1:{receiver.server.server_port}/planted-path"
        monkeypatch.setenv("HOOK_URL", url)
        hook = {"events": ["started", "failed", "succeeded"], "url": "env:HOOK_URL"}
        hooks = [hook | {"secret": "env:HOOK_SECRET"}]
        path = write_pipeline(tmp_path, trigger=HOURLY, hooks=hooks)
        launcher.status["x"] = "SUCCEEDED"
        tick(store, path, launcher, START)
        (outcome,) = tick(store, path, launcher, hour(1))  # started fails twice, failed arrives
        assert "hooks have not got all events" in outcome.reason
        assert statuses(store) == [None]
        for _ in range(2):
            tick(store, path, launcher, at("2026-11-01T01:10"))
    assert statuses(store) == ["FAILED"]
    events = [event["id"].removeprefix(f"{outcome.run_id}-") for _, event in receiver.got]
    assert events == ["started", "started", "failed", "started"]
    assert receiver.got[2][1]["error"] == "boom"
    stored = b"".join(p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file())
    for secret in ("planted-secret", "planted-path"):
        assert secret.encode() not in stored
        assert secret not in caplog.text


def test_program_gets_the_event_and_only_the_secrets_it_names(store, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN_A", "a")
    monkeypatch.setenv("TOKEN_B", "b")
    code = (
        "import os, sys; open(sys.argv[1], 'a').write(sys.stdin.read() + str(sorted(os.environ)))"
    )
    program = [sys.executable, "-c", code, str(tmp_path / "out")]
    hooks = [{"events": ["succeeded"], "exec": program, "secrets": ["env:TOKEN_A"]}]
    path = write_pipeline(tmp_path, trigger=HOURLY, hooks=hooks)
    launcher = FakeLauncher()
    for time in (START, hour(1), hour(1)):
        tick(store, path, launcher, time)
    text = (tmp_path / "out").read_text()
    assert text.count('"event":"succeeded"') == 1
    assert "TOKEN_A" in text
    assert "TOKEN_B" not in text


def test_hook_that_fails_for_a_day_is_given_up(store, tmp_path, caplog):
    hooks = [{"events": ["succeeded"], "url": "env:NOT_SET"}]
    path, launcher = write_pipeline(tmp_path, trigger=HOURLY, hooks=hooks), FakeLauncher()
    launcher.started_at = hour(1).timestamp()
    for time in (START, hour(1), hour(2)):
        tick(store, path, launcher, time)
    assert "env:NOT_SET: is not set" in caplog.text
    assert statuses(store)[0] is None
    tick(store, path, launcher, at("2026-11-02T01:30"))
    assert statuses(store)[0] == "SUCCEEDED"
