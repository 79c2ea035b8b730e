"""Random kills: a bounded schedule of SIGKILLs at random moments, then the same snapshots."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.support.small_pipeline import ROOT, environment
from tests.support.toy_runs import execute, resume, toy_document
from videoar.records.run_record import run_ids
from videoar.storage.store import open_store

_ROUNDS = 5
_KILLS = 12


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(_ROUNDS))
def test_run_killed_at_random_moments_resumes_to_the_same_snapshots(tmp_path: Path, seed: int):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(40):
        (videos / f"{number}{'bad' if number % 7 == 0 else ''}.mp4").write_bytes(b"x" * 10)
    document = toy_document(videos, model={"steps": 30, "checkpoint_every": 5})
    expected = execute(open_store((tmp_path / "calm").as_uri()), document).outputs
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(document))
    url = (tmp_path / "store").as_uri()
    module = [sys.executable, "-m", "tests.support.toy_runs"]
    chance = random.Random(seed)
    for _ in range(_KILLS):
        driver = subprocess.Popen(
            [*module, url, str(tmp_path / "toy.yaml"), "run1"],
            env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(chance.uniform(1.0, 6.0))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    store = open_store(url)
    assert run_ids(store) == ["run1"]
    run = resume(store, "run1")
    data = ("big", "few")
    assert {k: run.outputs[k] for k in data} == {k: expected[k] for k in data}
