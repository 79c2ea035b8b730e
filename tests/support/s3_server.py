"""A real S3 server for tests: a one-node Ceph on loopback, built in a temporary folder.

One monitor, one OSD on a sparse file, one gateway. `moto` keeps everything in one locked process
and cannot show what a real server does under races; Ceph can. Its internal authentication is off
and it listens on 127.0.0.1 only: for tests, nothing else. The packages (Debian, 270 MB) are
installed when the user is root; where that is impossible, tests that need the server are skipped.
"""

import contextlib
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.system_packages import install

PACKAGES = {
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "radosgw": "radosgw",
    "ceph": "ceph-common",
}
ACCESS_KEY, SECRET_KEY = "testing", "testing-secret"

CONFIG = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port}]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
run_dir = {folder}/run
crash_dir = {folder}/log
log_file = {folder}/log/$name.log
admin_socket = {folder}/run/$name.asok
# one copy on one disk, few placement groups: small and quick
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 2
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
rgw_rados_pool_pg_num_min = 2
[mon]
mon_data = {folder}/mon
mon_data_avail_crit = 1
mon_cluster_log_file = {folder}/log/cluster.log
paxos_propose_interval = 0.05
paxos_min_wait = 0.02
[osd]
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_create = true
bluestore_block_size = 21474836480
osd_memory_target = 939524096
osd_client_watch_timeout = 5
[client]
# with Nagle's algorithm every response to a small GET is delayed 40 ms, until an acknowledgement
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_data = {folder}/rgw
rgw_run_sync_thread = false
rgw_override_bucket_index_max_shards = 1
rgw_gc_max_objs = 2
rgw_lc_max_objs = 1
rgw_num_control_oids = 1
"""


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint: str
    bucket: str
    environment: dict[str, str]
    """Variables of the AWS credential chain, for child processes."""

    def new_url(self) -> str:
        """Return the URL of an empty store."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex}"


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Ceph:
    """The three daemons of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._config = folder / "ceph.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Build the cluster and wait until the gateway responds."""
        for name in ("run", "log", "osd", "rgw"):
            (self.folder / name).mkdir()
        fsid, osd, mon_port = str(uuid.uuid4()), str(uuid.uuid4()), free_port()
        self._config.write_text(
            CONFIG.format(fsid=fsid, folder=self.folder, port=self.port, mon_port=mon_port)
        )
        monmap = str(self.folder / "monmap")
        address = f"[v2:127.0.0.1:{mon_port}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        self._tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "a")
        self._tool("ceph", "--connect-timeout", "20", "osd", "new", osd, "0")
        self._tool("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        self._daemon("ceph-osd", "-i", "0")
        self._tool(
            "radosgw-admin",
            "user",
            "create",
            "--uid=test",
            "--display-name=test",
            f"--access-key={ACCESS_KEY}",
            f"--secret-key={SECRET_KEY}",
        )
        self._daemon("radosgw", "-n", "client.rgw")
        self._wait_for_gateway()

    def stop(self) -> None:
        """Stop the daemons, gateway first."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")

    def _tool(self, name: str, *arguments: str) -> None:
        self._run(name, "-c", str(self._config), *arguments)

    def _daemon(self, name: str, *arguments: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("wb") as log:
            command = [name, "-c", str(self._config), *arguments, "-f"]
            self._daemons.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _wait_for_gateway(self) -> None:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}", timeout=5).close()
                return
            dead = [d.args for d in self._daemons if d.poll() is not None]
            if dead:
                raise RuntimeError(f"died: {dead}; see {self.folder / 'log'}")
            time.sleep(0.2)
        raise RuntimeError(f"no answer from the gateway; see {self.folder / 'log'}")


@contextlib.contextmanager
def aws_variables() -> Iterator[dict[str, str]]:
    """Point the AWS credential chain at the test user."""
    variables = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start Ceph once per test session, with one bucket; AWS variables point at it."""
    reason = install(PACKAGES)
    if reason:
        pytest.skip(f"a real S3 server: {reason}")
    ceph = Ceph(tmp_path_factory.mktemp("ceph"))
    endpoint = f"http://127.0.0.1:{ceph.port}"
    with aws_variables() as variables:
        try:
            ceph.start()
            yield S3Server(endpoint, make_bucket(endpoint), variables)
        finally:
            ceph.stop()


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """Start moto, an in-process imitation, for tests that need no real server."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_by_one(environ, start_response):  # its own threads race between a check and a write
        with lock:
            return app(environ, start_response)

    server = make_server("127.0.0.1", 0, one_by_one, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    with aws_variables() as variables:
        yield S3Server(endpoint, make_bucket(endpoint), variables)
    server.shutdown()


def make_bucket(endpoint: str) -> str:
    """Create a fresh, unversioned bucket."""
    import boto3

    bucket = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return bucket
