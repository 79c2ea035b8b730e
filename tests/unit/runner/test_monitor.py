"""What can be seen of a run while it runs: its record, its log lines, its page, and MLflow."""

import json
import logging
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.support.small_pipeline import environment, in_this_process
from tests.support.toy_runs import execute, toy_document, write_videos
from tests.support.toys import REGISTRY
from videoar.api import follow
from videoar.core.errors import StageError
from videoar.engine.inline import InlineEngine
from videoar.pipeline.spec import parse_pipeline
from videoar.records.mlflow import client as mlflow_client
from videoar.records.mlflow import database
from videoar.records.mlflow.live import LiveMirror
from videoar.records.mlflow.runs import record_run
from videoar.records.run_record import load_run
from videoar.report.publish import render_report
from videoar.runner.execute import Execution
from videoar.runner.monitor import Monitor
from videoar.storage.store import Store

CURVE = [{"step": 0.0, "loss": 2.0}, {"step": 5.0, "loss": 1.5, "val/loss": 1.75}]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos", "a.mp4", "b.mp4")


@pytest.fixture
def at(monkeypatch):
    """Return a function that lets toy stages call another one at a point of their work."""

    def at(point: str, call) -> None:
        def crash_point(name: str) -> None:
            if name == point:
                call()

        monkeypatch.setattr("tests.support.toys.crash_point", crash_point)

    return at


def test_status_of_a_training_has_its_step_and_seconds_that_grow(store, videos, at):
    seen = []

    def look():
        time.sleep(0.01)
        seen.append(load_run(store, "r1"))

    at("counting-3", lambda: (look(), look()))
    run = execute(store, toy_document(videos), "r1")
    first, second = (r.stage("model") for r in seen)
    assert first.status == "RUNNING"
    assert (first.progress.step, first.progress.total) == (1, 6)
    assert 0 < first.seconds < second.seconds
    assert 0 < seen[0].seconds < seen[1].seconds
    assert run.stage("model").progress is None


def test_status_of_a_map_stage_has_its_shards(store, videos, at):
    execute(store, toy_document(videos), "r1")
    write_videos(videos, "c.mp4")
    seen = []
    at("mapping-c.mp4", lambda: seen.append(load_run(store, "r2")))
    execute(store, toy_document(videos), "r2")
    (stage,) = (r.stage("big") for r in seen)
    assert str(stage.progress) == "shard 2 of 3"
    assert stage.shards.model_dump() == {"planned": 3, "cached": 2, "done": 0, "quarantined": 0}


def test_page_of_a_running_run_has_what_is_known(store, videos, at):
    pages = []
    at("counting-3", lambda: pages.append(render_report(store, "r1")[1].decode()))
    document = toy_document(videos)
    execute(store, document, "r1")
    (page,) = pages
    assert "step 1 of 6" in page
    assert "model: loss" in page
    assert "trained no model" not in page
    final = render_report(store, "r1")[1].decode()
    assert "The run goes on" in page
    assert "The run goes on" not in final


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slow", "text"),
    [
        ("mapping-b.mp4", "shard "),
        ("counting-3", "step 1 of 6; running for "),
        ("picking", "running for "),
    ],
)
def test_stage_that_runs_is_logged_again_and_again(store, videos, at, caplog, slow, text):
    at(slow, lambda: time.sleep(0.5))
    spec = parse_pipeline(toy_document(videos), "toy.yaml", REGISTRY)
    execution = Execution(spec, store, InlineEngine(), registry=REGISTRY)
    with caplog.at_level(logging.INFO), Monitor(execution, every_s=0.1):
        execution.run()
    lines = [r.getMessage() for r in caplog.records if r.name == "videoar.runner.monitor"]
    assert len([line for line in lines if text in line]) >= 2


def test_store_that_does_not_answer_is_what_a_stage_waits_for(store, videos, caplog, monkeypatch):
    spec = parse_pipeline(toy_document(videos), "toy.yaml", REGISTRY)
    execution = Execution(spec, store, InlineEngine(), registry=REGISTRY)
    changes = {"status": "RUNNING", "started_at": time.time()}
    execution.stages["model"] = execution.stages["model"].model_copy(update=changes)
    monkeypatch.setattr(type(store.objects), "unavailable_s", 12.0)
    monkeypatch.setattr(store.objects, "find", lambda key: pytest.fail(f"reads {key}"))
    with caplog.at_level(logging.INFO), Monitor(execution, every_s=0.02):
        time.sleep(0.5)
    assert "waiting for 0 s: store: no answer for 12 s" in caplog.text
    assert execution.stages["model"].status == "RUNNING"


def test_stage_that_waits_is_logged_with_its_reason(store, videos, caplog):
    spec = parse_pipeline(toy_document(videos), "toy.yaml", REGISTRY)
    execution = Execution(spec, store, InlineEngine(), registry=REGISTRY)
    changes = {
        "status": "WAITING",
        "waiting": "lease: run r9 does the same work",
        "started_at": 1.0,
    }
    execution.stages["model"] = execution.stages["model"].model_copy(update=changes)
    with caplog.at_level(logging.INFO), Monitor(execution, every_s=0.02):
        time.sleep(0.5)
    assert re.search(
        "waiting for [0-9]+ h [0-9]+ min: lease: run r9 does the same work", caplog.text
    )


@pytest.mark.parametrize(
    ("status", "code"), [("SUCCEEDED", 0), ("CANCELLED", 130), ("TIMED_OUT", 6), ("UNKNOWN", 8)]
)
def test_run_has_the_exit_code_of_its_end(store, videos, status, code):
    run = execute(store, toy_document(videos, few=None, model=None, gate=None), "r1")
    ended = run.model_copy(update={"status": status})
    assert (ended.has_ended, ended.exit_code) == (True, code)
    assert not run.model_copy(update={"status": "WAITING"}).has_ended


def test_follow_ends_with_the_run_and_watch_has_its_exit_code(store, videos, at, tmp_path):
    write_videos(videos, "explode.mp4")
    document = toy_document(videos)
    with pytest.raises(StageError):
        execute(store, document, "r1")
    assert [run.status for run in follow(store, "r1")] == ["FAILED"]
    arguments = ["--store", store.url, "status", "r1", "--watch"]
    code, out, _ = in_this_process(arguments, environment())
    assert code == 3
    assert "big  FAILED" in out.splitlines()[0]
    code, out, _ = in_this_process([*arguments, "--json"], environment())
    assert code == 3
    (line,) = map(json.loads, out.splitlines())
    assert line["status"] == "FAILED"


@pytest.mark.slow
def test_watch_prints_one_json_line_per_change(store, videos, at):
    is_training = threading.Event()

    def train():
        is_training.set()
        time.sleep(2.5)  # two polls

    at("counting-3", train)
    driver = threading.Thread(target=execute, args=(store, toy_document(videos), "r1"))
    driver.start()
    assert is_training.wait(20)
    arguments = ["--store", store.url, "status", "r1", "--watch", "--json"]
    code, out, _ = in_this_process(arguments, environment())
    driver.join()
    first, last = map(json.loads, out.splitlines())
    assert (code, first["status"], last["status"]) == (0, "RUNNING", "SUCCEEDED")
    assert first["stages"][2]["progress"]["step"] == 1


def mirrored(store: Store, run_id: str) -> dict[str, list[tuple[int, float]]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_client.tracking_uri(store))
    experiment = client.get_experiment_by_name("toy").experiment_id
    (run,) = client.search_runs([experiment])
    return {
        name: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


@pytest.mark.slow  # writes an MLflow database
def test_curves_are_in_mlflow_during_the_run_and_once_after_it(store, videos):
    document = toy_document(videos)
    spec = parse_pipeline(document, "toy.yaml", REGISTRY)
    run = execute(store, document, "r1")
    live = LiveMirror(store, spec, "r1")
    live.offer("model", CURVE[:1])
    live.close()  # after what was offered
    assert mirrored(store, "r1") == {"model/loss": [(0, 2.0)]}
    live = LiveMirror(store, spec, "r1")  # of a resumed run
    live.offer("model", CURVE)
    live.close()
    assert mirrored(store, "r1")["model/loss"] == [(0, 2.0), (5, 1.5)]
    record_run(store, run, None, spec)
    final = mirrored(store, "r1")
    record_run(store, run, None, spec)
    assert mirrored(store, "r1") == final
    assert final["model/loss"][:2] == [(0, 2.0), (5, 1.5)]
    for points in final.values():
        assert len({step for step, _ in points}) == len(points)


@pytest.mark.slow
@pytest.mark.fault(35, "a server that accepts and never answers")
def test_silent_server_holds_nothing_up_and_is_one_line(store, videos, monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(mlflow_client, "tracking_uri", lambda _: uri)
        monkeypatch.setattr(database, "database", lambda _: None)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        spec = parse_pipeline(toy_document(videos), "toy.yaml", REGISTRY)
        run = execute(store, toy_document(videos), "r1")
        live = LiveMirror(store, spec, "r1")
        began = time.monotonic()
        for _ in range(1000):
            live.offer("model", CURVE)
        assert time.monotonic() - began < 0.5
        deadline = time.monotonic() + 60
        while "not in MLflow yet" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        began = time.monotonic()
        live.close()
        with pytest.raises(Exception, match=r"timed out|timeout"):
            record_run(store, run, None, spec)
        assert time.monotonic() - began < 10
    assert caplog.text.count("not in MLflow yet") == 1
