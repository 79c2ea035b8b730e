"""A signal ends a run as CANCELLED with exit code 130, in every shape of stage, on both engines."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import yaml

from tests.support.small_pipeline import ROOT, environment
from tests.support.toy_runs import write_videos
from videoar.storage.store import open_store
from videoar.testing.processes import processes_with

pytestmark = pytest.mark.slow
OF_TERMINAL = "SIGINT to the group"
SIGNALS = [OF_TERMINAL, "SIGINT", "SIGTERM", "SIGHUP"]
# Ray Train has handlers of its own
ON_RAY = [("loop", OF_TERMINAL), ("loop", "SIGTERM"), ("map", OF_TERMINAL), ("serve", "SIGTERM")]
LATER_ON_RAY = [
    ("loop", "SIGINT"), ("loop", "SIGHUP"), ("map", "SIGTERM"), ("serve", OF_TERMINAL),
    *product(["reduce"], [OF_TERMINAL, "SIGTERM"]),
]  # fmt: skip


@pytest.fixture(autouse=True)
def default_signals():
    """Start children without ignored signals: a background job of a shell inherits some."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.fault(34, "SIGINT, SIGTERM and SIGHUP in each shape of stage")
@pytest.mark.parametrize(
    ("target", "shape", "name"),
    [
        *product(["inline"], ["map", "loop", "reduce"], SIGNALS),
        *(pytest.param("local", *case, marks=pytest.mark.ray) for case in ON_RAY),
        *(
            pytest.param("local", *case, marks=[pytest.mark.ray, pytest.mark.soak])
            for case in LATER_ON_RAY
        ),
    ],
)
def test_run_that_gets_a_signal_is_cancelled(tmp_path: Path, target: str, shape: str, name: str):
    videos, url = write_videos(tmp_path / "videos", "a.mp4"), (tmp_path / "store").as_uri()
    stage = {"stage": f"endless_{shape}", "from": {"sources": "videos"}}
    document = {"pipeline": "p", "inputs": {"videos": str(videos)}, "stages": {"s": stage}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "tests.support.endless", "--store", url]
    mark = f"SIGNALLED_RUN={tmp_path.name}-{os.getpid()}"
    driver = subprocess.Popen(
        [*command, "--target", target, "run", str(tmp_path / "p.yaml")],
        env=environment(**dict([mark.split("=")])), cwd=ROOT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    ledger = open_store(url).ledger
    while not ledger.length("begun"):
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.05)
    if name == OF_TERMINAL:
        os.killpg(driver.pid, signal.SIGINT)
    else:
        driver.send_signal(getattr(signal, name))
    _, err = driver.communicate(timeout=120)
    run_id = json.loads(err.splitlines()[0])["run_id"]
    lines = [line for line in err.splitlines() if not line.startswith(("{", "["))]  # no log
    assert lines == [f"error: videoar: interrupted (videoar resume {run_id})"]
    assert driver.returncode == 130
    end = time.monotonic() + 10
    while left := processes_with(mark):
        assert time.monotonic() < end, left
        time.sleep(0.1)
    status = subprocess.run([*command, "--json", "status"], capture_output=True, check=True)
    run = json.loads(status.stdout)
    assert (run["status"], run["stages"][0]["status"]) == ("CANCELLED", "CANCELLED")
