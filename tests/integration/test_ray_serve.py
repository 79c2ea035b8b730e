"""`videoar serve` on a local Ray: no accepted job is lost, whatever is killed."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial

import httpx2
import pytest

from tests.support.published_model import published
from videoar.core.clock import Clock
from videoar.storage.layout import SERVING_LEASE, heartbeat_key, lease_log
from videoar.storage.lease import Lease
from videoar.storage.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = open_store((tmp_path_factory.mktemp("serve") / "store").as_uri())
    store.refs.advance("champion", published(store).id, expect=None, evidence={})
    return store


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def command(store, port, *options):
    start = [sys.executable, "-m", "videoar", "--store", store.url, *options]
    return [*start, "serve", "--port", str(port), "--model", "champion"]


@contextmanager
def server(store):
    """Start the command; yield its process and a client of it."""
    port = free_port()
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command(store, port), stderr=log) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        try:
            wait_until(lambda: answers(client, process), 180)
            # it answers before the command knows that all replicas run: a signal until then ends
            # the start, without a drain
            wait_until(lambda: b"ready at" in os.pread(log.fileno(), 1 << 20, 0), 60)
            yield process, client, port
        except BaseException:
            log.seek(0)
            print(log.read())
            raise
        finally:
            process.kill()


def answers(client, process):
    assert process.poll() is None
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def post(client, count, seconds="6"):
    return [
        client.post(
            "/v1/videos", json={"prompt": "a red ball", "seconds": seconds, "seed": seed}
        ).json()["id"]
        for seed in range(count)
    ]


def statuses(client, ids):
    try:
        answers = [client.get(f"/v1/videos/{id_}") for id_ in ids]
    except httpx2.TransportError:
        return []
    return [answer.json().get("status") for answer in answers if answer.status_code == 200]


def any_runs(client, ids):
    return "in_progress" in statuses(client, ids)


def kill_actor(title):
    """Kill the Ray workers with a title, which contains the port of the test."""
    found = subprocess.run(["pgrep", "-f", title], capture_output=True, text=True, check=True)
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGKILL)


def test_accepted_jobs_are_completed_through_kills_of_replica_ingress_and_server(store):
    with server(store) as (process, client, port):
        ids = []
        for actor in ("model-0", "http"):
            ids.extend(post(client, 3))
            wait_until(partial(any_runs, client, ids), 60)
            kill_actor(f"^ray::ServeReplica:videoar-{port}:{actor}")
        wait_until(lambda: statuses(client, ids) == ["completed"] * 6, 120)
        ids += post(client, 3)
        process.kill()
        process.wait()
    with server(store) as (process, client, _):
        wait_until(lambda: statuses(client, ids) == ["completed"] * 9, 120)
        assert all(client.get(f"/v1/videos/{id_}/content").content for id_ in ids)
        running = post(client, 1)
        wait_until(lambda: statuses(client, running) in (["in_progress"], ["completed"]), 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    left = [info.key for info in store.objects.list("serving/open/")]
    assert left == []


def never(seconds):
    raise AssertionError("waited for another server")


@pytest.mark.parametrize("target", ["local", "inline"])
def test_server_terminated_while_it_starts_exits_130_and_lets_the_next_one_start(store, target):
    number, port = store.ledger.length(lease_log(SERVING_LEASE)), free_port()
    process = subprocess.Popen(command(store, port, "--target", target), stderr=subprocess.PIPE)
    wait_until(lambda: store.objects.size(heartbeat_key(SERVING_LEASE, number)) is not None, 60)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 130, log
    assert b"Traceback" not in log
    assert Lease(store, SERVING_LEASE, "test", clock=Clock(sleep=never)).acquire() == number + 1
