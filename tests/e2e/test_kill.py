"""kill -9 of the driver in the middle of ingest, tokenize and pretrain, then resume."""

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


@pytest.mark.parametrize("trace", ["clips/shards", "tokens/shards", "model/checkpoints"])
def test_resume_ends_where_an_undisturbed_run_does(undisturbed: dict, tmp_path: Path, trace: str):
    store = (tmp_path / "store").as_uri()
    driver = subprocess.Popen(
        command("run", str(PIPELINE), *sets(), store=store),
        env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    records = tmp_path / "store" / "stages" / trace
    while not list(records.rglob("*.json")):
        assert driver.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
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
