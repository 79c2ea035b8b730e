"""Whatever a user gets wrong: one clear line and the right exit code, never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.small_pipeline import PIPELINE, ROOT, environment, videoar


def fail(*arguments: str, store: str, **extra: str) -> tuple[int, str]:
    script = [sys.executable, "-m", "videoar", "--store", store]
    done = subprocess.run(
        [*script, "--target", "inline", *arguments], cwd=ROOT,
        env=environment(**extra), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def edited(tmp_path: Path, change) -> str:
    document = yaml.safe_load(PIPELINE.read_text())
    change(document["stages"])
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: s["clips"].update(sise_px=1), "sise_px: unknown key (did you mean size_px?)"),
        (lambda s: s["clips"].update(size_px="big"), "size_px: 'big' is neither an even side"),
        (lambda s: s["good"].update({"from": {}}), "stages.good.from.clips: missing port"),
        (lambda s: s["clips"].update({"from": {"sources": "good"}}), "stages: cycle: "),
        (lambda s: s["tokens"].update(stage="tokenise"), "did you mean tokenize?"),
        (lambda s: s["model"]["training"].update(phases=[]), "stages.model.training.phases"),
    ],
)  # fmt: skip
def test_invalid_pipeline_file_exits_2_with_one_line(tmp_path: Path, change, line: str):
    path = edited(tmp_path, change)
    code, stderr = fail("run", path, store=(tmp_path / "store").as_uri())
    assert code == 2
    assert line in stderr
    assert stderr.startswith(f"error: {path}: ")
    assert not (tmp_path / "store").exists()


def run_on(videos: str, store: str, **extra: str) -> tuple[int, str]:
    return fail("run", str(PIPELINE), "--set", f"inputs.videos={videos}", store=store, **extra)


def test_unusable_input_exits_with_one_line(tmp_path: Path):
    store = (tmp_path / "store").as_uri()
    (tmp_path / "empty").mkdir()
    for videos, words in [
        (str(tmp_path / "empty"), "no "),
        (str(tmp_path / "absent"), "absent"),
        ("rendered://shapes?num_video=3", "num_video"),
        ("gopher://x", "gopher"),
        ("ref://nobody", "nobody"),
    ]:
        code, stderr = run_on(videos, store)
        assert code in (2, 7), stderr
        assert words in stderr
        assert len(stderr.strip().splitlines()) == 1, stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")
def test_store_without_permission_exits_7(tmp_path: Path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o700)
    script = (
        "import os; from videoar.storage.store import open_store\n"
        "from videoar.core.errors import VideoARError\n"
        "os.setuid(65534)\n"
        f"try: open_store('file://{locked}/store').objects.put('a', b'b')\n"
        "except VideoARError as e: print(e.exit_code, e)"
    )
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("7 "), done.stderr
    assert "locked" in done.stdout


@pytest.mark.parametrize(
    ("store", "words", "code"),
    [
        ("s3://bucket/x", "127.0.0.1:9", 7),
        ("file:rel", "its path is not absolute", 2),
        ("ftp://host/x", "not a store URL", 2),
        ("file://", "not a store URL", 2),
    ],
)
def test_unusable_store_exits_with_one_line(store: str, words: str, code: int):
    extra = {
        "VIDEOAR_S3_ENDPOINT": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x", "VIDEOAR_STORE_WAIT_S": "0.5",
    }  # fmt: skip
    got, stderr = fail("ls", store=store, **extra)
    assert (got, len(stderr.strip().splitlines())) == (code, 1), stderr
    assert words in stderr


def test_profile_unknown_exits_with_one_line():
    code, stderr = fail("ls", store="s3://bucket/x", AWS_PROFILE="absent")
    assert (code, len(stderr.strip().splitlines())) == (2, 1), stderr
    assert "AWS configuration: The config profile (absent) could not be found" in stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["status", "nope"], 2, "no such run"),
        (["show", "clips:00"], 2, "the store is empty"),
        (["schema", "clip@1"], 2, "did you mean clips@1?"),
        (["lineage", "ffff"], 2, "the store is empty"),
        (["explain", "nope", "clips"], 2, "no such run"),
        (["run", "absent.yaml"], 2, "cannot be read"),
        (["run"], 2, "example: videoar run pipelines/quickstart.yaml"),
        (["frobnicate"], 2, "frobnicate"),
        (["ls", "--wrong"], 2, "--wrong"),
    ],
)
def test_wrong_argument_exits_with_one_line(
    tmp_path: Path, arguments: list[str], code: int, words: str
):
    got, stderr = fail(*arguments, store=(tmp_path / "store").as_uri())
    assert (got, words in stderr) == (code, True), stderr


@pytest.mark.parametrize(
    ("job", "arguments", "words"),
    [
        ("run_pipeline.py", ["absent.yaml"], "absent.yaml: cannot be read"),
        ("run_pipeline.py", [str(PIPELINE), "--set", "inputs.vidoes=x"], "vidoes"),
        ("run_stage.py", ["absent.yaml", "clips"], "absent.yaml: cannot be read"),
        ("generate.py", ["--model", "nobody", "--prompts", "x.txt"], "nobody"),
        ("retrain.py", [], "inputs.champion: champion: no such ref"),
        ("schedule_tick.py", ["absent.yaml"], "absent.yaml: cannot be read"),
    ],
)
def test_job_bad_argument_exits_2(tmp_path: Path, job: str, arguments: list[str], words: str):
    env = environment(VIDEOAR_STORE=(tmp_path / "store").as_uri(), PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, f"jobs/{job}", *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_doctor_good_store_passes(tmp_path: Path):
    found = videoar("doctor", store=(tmp_path / "store").as_uri())
    assert found["ok"], json.dumps(found)


def test_doctor_of_a_store_without_atomic_create_fails(tmp_path: Path):
    store = (tmp_path / "store").as_uri()
    script = (
        "import sys, time, videoar.storage.local_store as o\n"
        "def put(self, key, data, *, if_absent=False, old=o.LocalObjectStore.put):\n"
        "    if if_absent:\n"
        "        if self.size(key) is not None: return False\n"
        "        time.sleep(0.01)\n"
        "    old(self, key, data); return True\n"
        "o.LocalObjectStore.put = put\n"
        "from videoar.cli import main\n"
        f"sys.argv = ['videoar', '--json', '--store', '{store}', 'doctor']\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 7
    race = json.loads(done.stdout)["checks"][0]
    assert not race["ok"]
    assert "concurrent writers won" in race["detail"]
