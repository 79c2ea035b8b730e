"""The verbs of schedules: JSON, tables and exit codes; the loop as a process."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.schedules import write_pipeline
from tests.support.small_pipeline import environment
from tests.support.toy_runs import write_videos
from tests.support.toys import REGISTRY
from videoar import api
from videoar.cli.app import app
from videoar.pipeline.registry import BUILTIN
from videoar.schedule import records

pytestmark = pytest.mark.slow  # each writes an MLflow database
NEW_VIDEOS = {"new_sources": {"input": "videos"}}


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> str:
    for name, stage in REGISTRY.items():
        monkeypatch.setitem(BUILTIN, name, stage)
    return (tmp_path / "store").as_uri()


def call(store: str, *arguments: object) -> tuple[int, dict]:
    """Call a verb with --json; return exit code and document."""
    options = ["--store", store, "--target", "inline", "--json"]
    done = CliRunner().invoke(app, [*options, *map(str, arguments)])
    error = done.exception
    if error is not None and not isinstance(error, SystemExit):
        return error.exit_code, {}
    return done.exit_code, json.loads(done.stdout)


def test_tick_prints_what_fired_and_what_did_not(store: str, tmp_path: Path):
    write_videos(tmp_path / "videos", "a.mp4")
    path = write_pipeline(tmp_path, trigger=NEW_VIDEOS)
    code, document = call(store, "schedule", "tick", path)
    (fired,) = document["fired"]
    assert (code, document["skipped"]) == (0, [])
    assert (fired["pipeline"], fired["status"]) == ("toy", "SUCCEEDED")
    assert api.status(api.open_store(store)).run_id == fired["run_id"]
    code, document = call(store, "schedule", "tick", path)
    assert code == 0
    assert document == {"fired": [], "skipped": [{"pipeline": "toy", "reason": "no new sources"}]}
    code, document = call(store, "schedule", "ls")
    assert [entry["key"] for entry in document["fired"]] == [fired["key"]]
    assert document["schedules"][0]["trigger"] == NEW_VIDEOS


def test_failure_of_one_pipeline_is_the_exit_code_and_stops_no_other(store: str, tmp_path: Path):
    write_videos(tmp_path / "videos", "explode.mp4")
    failing = write_pipeline(tmp_path, name="failing", trigger=NEW_VIDEOS)
    (tmp_path / "good").mkdir()
    write_videos(tmp_path / "good" / "videos", "a.mp4")
    good = write_pipeline(tmp_path / "good", name="good", trigger=NEW_VIDEOS)
    untriggered = write_pipeline(tmp_path, name="untriggered")
    code, document = call(store, "schedule", "tick", untriggered, failing, good)
    assert code == 2
    assert "has no trigger" in document["skipped"][0]["reason"]
    assert [entry["status"] for entry in document["fired"]] == ["FAILED", "SUCCEEDED"]
    assert "boom" in document["fired"][0]["error"]


def test_pause_resume_and_release(store: str, tmp_path: Path):
    write_videos(tmp_path / "videos", "a.mp4")
    path = write_pipeline(tmp_path, trigger=NEW_VIDEOS)
    _, first = call(store, "schedule", "tick", path)
    assert call(store, "schedule", "pause", "toy")[1]["is_paused"]
    _, document = call(store, "schedule", "tick", path)
    assert document["skipped"][0]["reason"].startswith("paused by ")
    assert not call(store, "schedule", "resume", "toy")[1]["is_paused"]
    assert call(store, "schedule", "release", first["fired"][0]["key"])[0] == 0
    _, second = call(store, "schedule", "tick", path)
    assert second["fired"][0]["run_id"] != first["fired"][0]["run_id"]
    assert call(store, "schedule", "release", "nonsense")[0] == 2


def test_backfill_takes_times_with_and_without_a_zone(store: str, tmp_path: Path):
    write_videos(tmp_path / "videos", "a.mp4")
    path = write_pipeline(tmp_path, trigger={"cron": "0 3 * * *", "time_zone": "Europe/Berlin"})
    code, document = call(
        store, "backfill", path, "--from", "2026-10-01", "--to", "2026-10-02T03:00+02:00"
    )
    assert (code, len(document["fired"])) == (0, 2)
    assert call(store, "backfill", path, "--from", "yesterday", "--to", "2026-10-02")[0] == 2
    assert call(store, "backfill", path, "--from", "2026-10-03", "--to", "2026-10-02")[0] == 2


def test_loop_ticks_alone_and_ends_on_sigterm(tmp_path: Path):
    path = tmp_path / "clips.yaml"
    path.write_text("""
pipeline: clips
inputs: {videos: "rendered://shapes?num_videos=2&seed=0"}
trigger: {new_sources: {input: videos}}
stages:
  clips: {stage: ingest, from: {sources: videos}, size_px: 32}
""")
    url = (tmp_path / "store").as_uri()
    command = [sys.executable, "-m", "videoar", "--store", url, "--target", "inline"]
    command += ["schedule", "serve", "--every", "1", str(path)]
    store = api.open_store(url)
    loop = subprocess.Popen(command, env=environment())
    try:
        deadline = time.monotonic() + 240
        while not any(firing.has_ended for firing in records.firings(store, "clips")):
            assert time.monotonic() < deadline
            assert loop.poll() is None
            time.sleep(0.5)
        assert subprocess.run(command, env=environment(), check=False).returncode == 5
        assert api.status(store).status == "SUCCEEDED"
        assert len(api.ls(store)) == 1
    finally:
        loop.send_signal(signal.SIGTERM)
    assert loop.wait(60) == 130
