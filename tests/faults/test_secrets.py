"""A secret that is planted everywhere is found in no output, record, page, database or child."""

import os
import threading
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from tests.support.small_pipeline import command, environment, in_this_process
from tests.support.small_videos import document, draw
from tests.support.stored_text import holding_text
from tests.support.toy_runs import toy_run, write_videos
from videoar import api
from videoar.admin.registry import mirror_run
from videoar.core.errors import StageError, StorageError
from videoar.core.redact import redact
from videoar.pipeline.spec import load_pipeline
from videoar.report.publish import publish_page
from videoar.storage.store import open_store
from videoar.testing.processes import descendants

SECRET = "pl4nted-Secret+0123456789"
URL = f"https://me:{SECRET}@127.0.0.1:9"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET,
    "HF_TOKEN": SECRET, "DB_PASSWORD": SECRET, "VIDEOAR_STORE_WAIT_S": "0.5",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"no answer from {URL}/x?y=1", "no answer from https://***@127.0.0.1:9/x?y=1"),
        ("s3://a:b@c@host/x and s3://d@e/f", "s3://***@host/x and s3://***@e/f"),
        (f"signature of {SECRET} is wrong", "signature of *** is wrong"),
        (str(Path(f"{URL}/p.yaml")), "https:/***@127.0.0.1:9/p.yaml"),
        ("file:///data/me@home/x, x@y.org", "file:///data/me@home/x, x@y.org"),
        ("it is true of 100000000 tokens", "it is true of 100000000 tokens"),
    ],
)
def test_text_is_shown_without_secrets(monkeypatch, text: str, shown: str):
    for name, value in {**ENVIRONMENT, "MAX_TOKENS": "100000000", "A_TOKEN": "true"}.items():
        monkeypatch.setenv(name, value)
    assert redact(text) == shown
    error = StorageError("k", text, text)
    assert str(error) == f"k: {shown} ({shown})"
    assert SECRET not in repr(error)


@pytest.mark.slow
@pytest.mark.soak  # imports MLflow
def test_reasons_are_recorded_without_secrets(tmp_path: Path):
    store = open_store((tmp_path / "store").as_uri())
    videos = write_videos(tmp_path / "videos", "a.mp4", "bad.mp4")
    toy_run(store, videos)
    toy_run(store, videos, model={"steps": 2})
    assert api.rollback(store, "champion", reason=URL)["reason"] == "https://***@127.0.0.1:9"
    assert api.quarantine_retry(store, reason=URL)["rows"]
    assert holding_text(store, "***@127.0.0.1:9")
    assert not holding_text(store, SECRET)


class Watch(threading.Thread):
    """Collects the environments of all children of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.environments: dict[str, bytes] = {}
        """By command line."""
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.01):
            for pid in descendants(os.getpid()):
                folder = Path("/proc", str(pid))
                try:
                    name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    self.environments[name] = (folder / "environ").read_bytes()
                except OSError:  # it has ended
                    continue


@pytest.mark.slow
@pytest.mark.soak
def test_planted_secret_is_found_nowhere(tmp_path: Path, monkeypatch, caplog):
    for seed in range(2):
        (tmp_path / "videos").mkdir(exist_ok=True)
        draw(tmp_path / "videos" / f"{seed}.mp4", seed)
    store, outputs = open_store((tmp_path / "store").as_uri()), []

    def call(*arguments: str, url: str = store.url, **extra: str) -> int:
        env = environment(**ENVIRONMENT, **extra)
        code, out, err = in_this_process(command("--verbose", *arguments, store=url), env)
        outputs.append(f"{arguments}\n{out}\n{err}".replace(str(arguments), ""))
        return code

    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(document(tmp_path / "videos")))
    watch = Watch()
    watch.start()
    assert call("run", str(path)) == 0
    watch.ended.set()
    watch.join()
    assert call("run", str(path), VIDEOAR_MLFLOW_URI=URL) == 0
    mistakes = [f"inputs.videos={URL}/x", f"stages.clips.fps={SECRET}",
                f"stages.good.policy={URL}", f"inputs.videos=s3://me:{SECRET}@b/x"]  # fmt: skip
    for mistake in mistakes:
        assert call("run", str(path), "--set", mistake) == 2
    assert call("ls", url=f"s3://me:{SECRET}@bucket/x") == 2
    assert call("ls", url="s3://bucket/x", VIDEOAR_S3_ENDPOINT=URL) in {2, 7}

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    error = ValueError(f"no answer, {SECRET}: {URL}")
    fails = patch("tests.support.toys.crash_point", side_effect=error)
    with fails, pytest.raises(StageError):
        toy_run(store, write_videos(tmp_path / "toys", "a.mp4"))
    *_, last = store.objects.folders("runs/")
    mirror_run(store, load_pipeline(path), last, publish_page(store, last))
    for verb in ("ls", "status last", "logs last", "status", "show good", "lineage good --up",
                 "lineage last --format openlineage", "doctor", "refs", "report last",
                 "quarantine ls last"):  # fmt: skip
        call(*verb.split())
    call("report", "--index", "--out", str(tmp_path / "index.html"))

    found = [text for text in (*outputs, caplog.text) if SECRET in text]
    assert not found, found[0][-3000:]
    assert watch.environments, "no child was seen"
    assert not [name for name, env in watch.environments.items() if SECRET.encode() in env]
    assert not holding_text(store, SECRET)
    assert SECRET not in (tmp_path / "index.html").read_text()
