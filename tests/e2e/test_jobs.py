"""`jobs/generate.py` and `jobs/serve.py` by `ray job submit`, on a head that requires a token."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import pytest

from tests.support.published_model import published
from tests.support.s3_server import free_port
from tests.support.small_pipeline import ROOT, environment, videoar
from videoar.storage.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY = str(Path(sys.executable).with_name("ray"))


class Head:
    """A running head; commands of it."""

    def __init__(self, env, dashboard):
        self.env, self._address = env, f"http://127.0.0.1:{dashboard}"

    def job(self, verb, *arguments):
        command = [RAY, "job", verb, "--address", self._address, *arguments]
        return subprocess.run(
            command, env=self.env, cwd=ROOT, capture_output=True, text=True, check=False
        )

    def submit(self, *arguments):
        done = self.job("submit", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = open_store((tmp_path_factory.mktemp("jobs") / "store").as_uri())
    store.refs.advance("champion", published(store).id, expect=None, evidence={})
    return store


@pytest.fixture(scope="module")
def head(store):
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # short: sockets are in it
        token, dashboard = Path(folder) / "token", free_port()
        token.write_text(secrets.token_hex(32))
        env = environment(
            RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0",
            VIDEOAR_STORE=store.url,
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        )  # fmt: skip
        options = {
            "port": 0, "dashboard-port": dashboard, "ray-client-server-port": free_port(),
            "min-worker-port": 0, "max-worker-port": 0, "temp-dir": folder, "num-cpus": 4,
            "object-store-memory": 200 * 2**20,
        }  # fmt: skip
        words = [f"--{name}={value}" for name, value in options.items()]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(
                [RAY, "start", "--head", "--block", *words],
                env=env,
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
            try:
                head, end = Head(env, dashboard), time.monotonic() + 180
                while head.job("submit", "--", "true").returncode:
                    assert process.poll() is None, (Path(folder) / "log").read_text()
                    assert time.monotonic() < end
                yield head
            finally:
                process.terminate()
                process.wait(60)


def test_generate_is_a_job(head, store, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\na blue box\n")
    options = ["--set", "num_per_prompt=2"]
    head.submit("--", "python", "jobs/generate.py", "--prompts", str(prompts), *options)
    run = videoar("status", store=store.url)
    assert run["status"] == "SUCCEEDED"
    assert store.snapshot(run["outputs"]["generated"]).rows == 4


def test_serve_is_a_job_that_drains_when_it_is_stopped(head, store):
    port, wait = free_port(), {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    words = ["--runtime-env-json", json.dumps(wait), "--submission-id", "serve", "--no-wait", "--"]
    head.submit(*words, "python", "jobs/serve.py", "--model", "champion", "--port", str(port))
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        job, end = None, time.monotonic() + 240
        while job is None or job["status"] != "completed":
            assert time.monotonic() < end, head.job("logs", "serve").stdout
            time.sleep(0.2)
            try:
                if job is not None:
                    job = client.get(f"/v1/videos/{job['id']}").json()
                elif client.get("/readyz").status_code == 200:
                    job = client.post("/v1/videos", json={"prompt": "a red ball"}).json()
            except httpx2.TransportError:
                continue
        assert client.get(f"/v1/videos/{job['id']}/content").content
        last = client.post("/v1/videos", json={"prompt": "a red ball", "seed": 1})
        assert last.status_code == 200
        stopped = head.job("stop", "serve")
        assert stopped.returncode == 0, stopped.stderr
        assert client.get("/healthz").status_code == 404  # of Ray's proxy, which stays
    log = head.job("logs", "serve").stdout
    assert "Traceback" not in log
    assert list(store.objects.list("serving/open/")) == []
