"""Random kills: a bounded schedule of SIGKILLs at random moments, then the same snapshots."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.e2e.small import ROOT, environment
from tests.support.toys import REGISTRY
from tests.unit.runner.test_execute import document, execute
from videoar.engine.inline import InlineEngine
from videoar.records.run_record import run_ids
from videoar.runner.execute import Execution, resume_spec
from videoar.storage.store import open_store

_ROUNDS = 5
_KILLS = 12


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(_ROUNDS))
def test_random_kills(tmp_path: Path, seed: int):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(40):
        (videos / f"{number}{'bad' if number % 7 == 0 else ''}.mp4").write_bytes(b"x" * 10)
    doc = document(videos, model={"steps": 30, "checkpoint_every": 5})
    expected = execute(open_store((tmp_path / "calm").as_uri()), doc).outputs
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(doc))
    url = (tmp_path / "store").as_uri()
    script = (
        "import sys; from tests.unit.runner.test_execute import *;"
        "execute(open_store(sys.argv[1]), yaml.safe_load(open(sys.argv[2])), 'run1')"
    )
    chance = random.Random(seed)
    for _ in range(_KILLS):
        driver = subprocess.Popen(
            [sys.executable, "-c", script, url, str(tmp_path / "toy.yaml")],
            env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(chance.uniform(1.0, 6.0))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    store = open_store(url)
    assert run_ids(store) == ["run1"]
    spec = resume_spec("run1", store, REGISTRY)
    run = Execution(spec, store, InlineEngine(), run_id="run1", registry=REGISTRY).run()
    data = ("big", "few")
    assert {k: run.outputs[k] for k in data} == {k: expected[k] for k in data}
