"""Access to a local Ray: its listening sockets, and what they require."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import pytest
import ray

from tests.support.toy_runs import write_videos
from tests.support.toys import REGISTRY
from videoar.core.errors import ClusterUnknownError
from videoar.engine.ray_engine import RayEngine
from videoar.engine.ray_session import connect, disconnect
from videoar.pipeline.spec import parse_pipeline
from videoar.runner.execute import Execution
from videoar.storage.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TASK = """
import os, sys
from videoar.engine.ray_session import connect
connect(sys.argv[1])
import ray
print("answer", ray.get(ray.remote(lambda: 6 * 7).remote()))
print(sorted(name for name in os.environ if name.startswith("RAY_AUTH")))
"""
FOR_A_CLUSTER = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "of-a-cluster"}
_WORKER = "ray.rpc.CoreWorkerService/GetCoreWorkerStats"
CALLS = (
    ("gcs_server", "ray.rpc.InternalKVGcsService/InternalKVKeys"),
    ("raylet", "ray.rpc.NodeManagerService/GetNodeStats"),
    ("raylet", "ray.rpc.ObjectManagerService/Pull"),
    ("ray::DashboardAgent", "ray.rpc.ReporterService/GetTraceback"),
    ("driver", _WORKER),
    ("ray::IDLE", _WORKER),
    ("ray::ServeReplica", "ray.serve.ASGIService/HandleRequest"),
)
"""gRPC calls that each kind of process answers; IDLE is any worker."""
ON_ALL_INTERFACES = {
    "ray::ServeReplica": "ray::ServeReplica",
    "ray::SERVE_REPLICA": "ray::ServeReplica",
    "ray::RayTrainWorker": "ray::RayTrainWorker",
    "ray::execute": "ray::RayTrainWorker",
}
"""Titles of processes, which follow what they do at the moment, and whose they are."""
HTTP = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
AGENT_PORT = 52365  # Source: `dashboard_agent_listen_port` of ray.init
METRICS = {"dashboard.py", "monitor.py", "ray::DashboardAgent"}
WRONG = "0" * 64
EARLIER: set[tuple[str, str, int]] = set()
"""Sockets of this process before Ray started, such as the S3 server of other tests."""


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    disconnect()  # from a Ray that another file of tests left
    EARLIER.update(listeners())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FOR_A_CLUSTER.items():
            patch.setenv(name, value)
        engine = RayEngine("local")
        connect("local")
        yield engine
        disconnect()


def gcs() -> str:
    return ray.get_runtime_context().gcs_address


def token() -> Path:
    return Path(os.environ["RAY_AUTH_TOKEN_PATH"])


def start_other_process(**extra: str) -> subprocess.Popen:
    """Start another process that runs a task on this Ray, if it is let in."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    # without it Ray would look for 127.0.0.1 at the address in the network, where nothing listens
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", TASK, gcs()],
        cwd=ROOT,
        env={**clean, **loopback, **extra}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def test_process_without_token_refused(engine: RayEngine):
    refused_process = start_other_process()
    allowed_process = start_other_process(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token()))
    out, error = allowed_process.communicate(timeout=120)
    assert "answer 42" in out, error
    assert "['RAY_AUTH_MODE', 'RAY_AUTH_TOKEN_PATH']" in out  # joining adds nothing
    out, error = refused_process.communicate(timeout=120)
    assert "answer" not in out
    assert "no access: Failed to connect to Ray cluster" in error
    assert "InvalidAuthToken" in error


def call(port: int, method: str, secret: str = "") -> str:
    """Return the gRPC status by which a server answers an empty request."""
    metadata = [("authorization", f"Bearer {secret}")] if secret else []
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        try:
            channel.unary_unary(f"/{method}")(b"", timeout=5, metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


def http_status(port: int) -> int:
    """Return the HTTP status by which a server answers without the token; 0: by none."""
    try:
        return urlopen(f"http://localhost:{port}/", timeout=5).status
    except HTTPError as error:
        return error.code
    except (OSError, HTTPException):
        return 0


def answers(name: str, port: int, secret: str) -> dict[str, list]:
    """Return how it answers HTTP, and gRPC without, with a wrong and with the right token."""
    found = {"http": [http_status(port)]}
    for owner, method in CALLS:
        if owner == name:
            found[method] = [call(port, method, given) for given in ("", WRONG, secret)]
    return found


S3_SERVER = {"radosgw", "ceph-mon", "ceph-osd"}
"""Children of this process, too, if it has run a test of S3 before."""


def processes() -> set[int]:
    """Return this process and all that descend from it."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, new = set(), {os.getpid()}
    while new:
        found |= new
        new = {child for parent in new for child in children.get(parent, ())}
    return found


def title(pid: int) -> str:
    """Return what a process is, without the parts that differ from run to run."""
    if pid == os.getpid():
        return "driver"
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    if words[0].startswith("ray::"):
        return re.match(r"ray::\w*", words[0])[0]
    return Path(next((word for word in words if word.endswith(".py")), words[0])).name


def listeners() -> set[tuple[str, str, int]]:
    """Return what this process and its descendants listen on: title, address, port."""
    sockets = {}
    for pid in processes():
        try:
            name = title(pid)
            if name in S3_SERVER:
                continue
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                sockets[str(fd.readlink())] = name
        except OSError:  # it ended meanwhile
            continue
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            name = sockets.get(f"socket:[{words[9]}]")
            if words[3] != "0A" or name is None:  # 0A: listens
                continue
            address, _, port = words[1].partition(":")
            raw = bytes.fromhex(address)
            parts = [raw[i : i + 4][::-1] for i in range(0, len(raw), 4)]  # words of this machine
            found.add((name, socket.inet_ntop(family, b"".join(parts)), int(port, 16)))
    return found


def serving_http(found: dict) -> set[str]:
    """Return the processes that have refused an HTTP request without the token."""
    return {name for (name, _, _), answer in list(found.items()) if answer["http"] == [401]}


def test_listening_sockets_documented_and_guarded(engine: RayEngine, tmp_path: Path):
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")
    small = {"resources": {"cpus": 0.5}}
    document = {
        "pipeline": "p",
        "inputs": {"videos": str(videos)},
        "stages": {
            "mapped": {"stage": "upper", "from": {"sources": "videos"}, **small},
            "served": {"stage": "served", "from": {"sources": "mapped"}, **small},
            "model": {"stage": "count", "from": {"sources": "served"}, **small},
        },
    }
    execution = Execution(
        parse_pipeline(document, "t", REGISTRY),
        open_store((tmp_path / "store").as_uri()),
        engine,
        registry=REGISTRY,
    )
    secret, found, is_over = token().read_text(), {}, threading.Event()

    def ask(one: tuple[str, str, int]) -> None:
        answer = answers(one[0], one[2], secret)
        while one[0] in HTTP and answer["http"] == [0] and not is_over.wait(0.5):
            answer["http"] = [http_status(one[2])]  # agents listen before they serve
            found[one] = answer
        found[one] = answer

    def watch() -> None:
        seen = set(EARLIER)
        while not is_over.wait(0.1):
            # asked beside the watching: a server that hangs must not hide sockets that come and go
            for one in listeners() - seen:
                seen.add(one)
                asking.append(pool.submit(ask, one))

    asking = []
    with ThreadPoolExecutor(64) as pool:
        watching = pool.submit(watch)
        try:
            execution.run()
            deadline = time.monotonic() + 20  # agents start beside the run, and may need longer
            while not serving_http(found) >= HTTP and time.monotonic() < deadline:
                time.sleep(0.2)
        finally:
            is_over.set()
    for one in (watching, *asking):
        one.result()
    far = {name for name, address, _ in found if not re.match(r"(::ffff:)?127[.]", address)}
    assert {ON_ALL_INTERFACES.get(name, name) for name in far} == set(ON_ALL_INTERFACES.values())
    for owner, method in CALLS:
        asked = [found[one][method] for one in found if one[0] == owner]
        assert not any("OK" in statuses[:2] for statuses in asked), (owner, method)
        allowed = [last for *refused, last in asked if refused == ["UNAUTHENTICATED"] * 2]
        assert allowed, (owner, method)
        assert "UNAUTHENTICATED" not in allowed, (owner, method)
    by_http = {(name, answer["http"][0]) for (name, _, _), answer in found.items()}
    assert ("ray::RuntimeEnvAgent", 401) in by_http
    # its port is fixed: where another Ray of this machine has it, the agent serves no HTTP
    if any(name == "ray::DashboardAgent" and port == AGENT_PORT for name, _, port in found):
        assert ("ray::DashboardAgent", 401) in by_http
    assert {name for name, status in by_http if status == 200} <= METRICS
    named = {*ON_ALL_INTERFACES.values(), *METRICS, *(owner for owner, _ in CALLS)}
    documented = (ROOT / "SECURITY.md").read_text()
    assert [name for name in named if f"`{name}`" not in documented] == []


def test_token_file_private_and_removed_with_its_ray(engine: RayEngine):
    path = token()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    disconnect()
    assert not path.parent.exists()
    left = {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH")}
    assert left == FOR_A_CLUSTER


def test_address_where_nothing_listens_fails_at_once():
    disconnect()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ClusterUnknownError, match=f"{address}: cannot be reached: .*refused"):
        connect(address)
