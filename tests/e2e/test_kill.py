"""kill -9 of the driver in the middle of ingest, tokenize and pretrain, then resume."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.small import PIPELINE, ROOT, command, environment, sets, videoar
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    store = (tmp_path_factory.mktemp("calm") / "store").as_uri()
    return videoar("run", str(PIPELINE), *sets(), store=store)


def wait_for_record(driver: subprocess.Popen, folder: Path) -> None:
    while not list(folder.rglob("*.json")):
        assert driver.poll() is None, "ended before it could be killed"
        time.sleep(0.02)


@pytest.mark.parametrize("trace", ["clips/shards", "tokens/shards", "model/checkpoints"])
def test_resume_ends_where_an_undisturbed_run_does(undisturbed: dict, tmp_path: Path, trace: str):
    store = (tmp_path / "store").as_uri()
    driver = subprocess.Popen(
        command("run", str(PIPELINE), *sets(), store=store),
        env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_record(driver, tmp_path / "store" / "stages" / trace)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    killed = videoar("status", store=store)
    assert killed["status"] == "INTERRUPTED"
    resumed = videoar("resume", killed["run_id"], store=store)
    assert resumed["run_id"] == killed["run_id"]
    assert resumed["outputs"] == undisturbed["outputs"]
    if trace.endswith("shards"):
        stage = next(s for s in resumed["stages"] if s["name"] == trace.split("/")[0])
        assert stage["shards"]["cached"] >= 1
    else:
        keys = open_store(store).ledger.list("stages/model/checkpoints/")
        assert len(list(keys)) == 3  # of steps 2, 4 and 6, none made twice


def workers_with(mark: str) -> list[str]:
    """Return the processes that inherited a mark in their environment and can still do work.

    Two agents of Ray's, which serve its raylet, notice only after a minute that it is gone.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().strip("\0 "))
    return [name for name in found if not name.startswith("ray::") or not name.endswith("Agent")]


@pytest.mark.ray
def test_one_run_on_ray_killed_three_times(undisturbed: dict, tmp_path: Path):
    store, mark = (tmp_path / "store").as_uri(), f"KILLED_RUN={tmp_path.name}-{os.getpid()}"
    verb = ["run", str(PIPELINE), *sets()]
    for trace in ("clips/shards", "tokens/shards", "model/checkpoints"):
        driver = subprocess.Popen(
            command(*verb, store=store, target="local"),
            env=environment(**dict([mark.split("=")])), cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for_record(driver, tmp_path / "store" / "stages" / trace)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        end = time.monotonic() + 30
        while left := workers_with(mark):
            assert time.monotonic() < end, left
            time.sleep(0.2)
        verb = ["resume", videoar("status", store=store)["run_id"]]
    resumed = videoar(*verb, store=store, target="local")
    assert resumed["status"] == "SUCCEEDED"
    assert resumed["outputs"] == undisturbed["outputs"]
    steps = [key[-6:] for key in open_store(store).ledger.list("stages/model/checkpoints/")]
    assert steps == ["2.json", "4.json", "6.json"]
