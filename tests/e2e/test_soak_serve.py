"""Random kills of a server under load: every accepted job is completed, exactly once."""

import http.client
import json
import os
import random
import signal
import time

import pytest

from videoar.bench.server_process import publish, serving
from videoar.media.decode import decode_clip

_JOBS = 24
_DRAIN_S = 600


def _post(server, body, key):
    """Request a video until the server has accepted it, as a client with retries does."""
    until = time.monotonic() + _DRAIN_S
    while time.monotonic() < until:
        try:
            status, answer = server.call("POST", "/v1/videos", body, **{"Idempotency-Key": key})
        except (OSError, http.client.HTTPException):
            status, answer = 0, None
        if status == 200:
            return answer["id"]
        assert status in {0, 429, 500, 503}, answer
        time.sleep(0.5)
    raise AssertionError(f"{key} was not accepted")


def _kill(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def _require_complete(server, accepted):
    """Check that there is one completed job per key, and that equal seeds gave equal videos."""
    server.wait_idle(_DRAIN_S)
    jobs = {job["id"]: job for job in server.jobs()}
    assert jobs.keys() == accepted.keys()
    assert {job["status"] for job in jobs.values()} == {"completed"}, json.dumps(jobs, indent=1)
    videos = {}
    for job_id, seed in accepted.items():
        status, video = server.call("GET", f"/v1/videos/{job_id}/content")
        assert status == 200
        frames = decode_clip(video)  # the metadata of the files name their jobs
        assert (videos.setdefault(seed, frames) == frames).all()


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("victims", [["model"], ["http"], ["model", "http"]])
def test_server_whose_processes_are_killed_under_load_loses_no_accepted_job(tmp_path, victims):
    chance, accepted = random.Random(",".join(victims)), {}
    publish(tmp_path / "store")
    with serving(tmp_path / "store", max_queue=8, replicas=2) as server:
        for number in range(_JOBS):
            seed = number % 4
            accepted[_post(server, {"prompt": "p", "seed": seed}, f"k{number}")] = seed
            if number % 4 == 3:
                time.sleep(chance.uniform(0, 2))
                pids = [pid for name in victims for pid in server.pids(name)]
                _kill(chance.sample(pids, chance.randint(1, len(pids))) if pids else [])
        _require_complete(server, accepted)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(3000)
def test_server_killed_as_a_whole_completes_its_jobs_when_started_again(tmp_path):
    chance, accepted = random.Random(0), {}
    publish(tmp_path / "store")
    for start in range(3):
        with serving(tmp_path / "store", max_queue=100) as server:
            for number in range(_JOBS // 3):
                accepted[_post(server, {"prompt": "p", "seed": number}, f"{start}-{number}")] = (
                    number
                )
            time.sleep(chance.uniform(0, 3))
            server.process.kill()
    with serving(tmp_path / "store", max_queue=100) as server:
        _require_complete(server, accepted)
