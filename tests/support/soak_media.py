"""Random schedules of what machines do while they read videos: ingest of a handful of tiny ones.

Children and workers are killed, the temporary folder is full, a permission is taken and given back,
a bucket answers 503 or gets each write twice. Every schedule ends in the snapshots of a calm run.
"""

import ctypes
import fcntl
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from tests.support.hostile import video
from tests.support.s3_proxy import S3Proxy
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, Moto, make_bucket
from tests.support.soak import Observer, Outcome, Schedule, Subject, undisturbed
from tests.support.unprivileged import give_up_privileges
from videoar.pipeline.registry import BUILTIN
from videoar.testing.processes import descendants, send

_REMOTE = ("burst of 503", "repeated writes")
_LOCAL = ("kill of workers", "kill", "full temporary folder", "permission", "crash")
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000


def media_subject(folder: Path) -> Subject:
    """Return the pipeline: four videos and a file that is none, two to a shard."""
    (videos := folder / "videos").mkdir()
    for i in range(4):
        video(videos / f"good{i}.mp4", picture=f"testsrc2=s=64x48:r={12 + i}")
    (videos / "empty.mp4").touch()
    clips = {
        "stage": "ingest", "from": {"sources": "videos"}, "rate_fps": None, "num_frames": 9,
        "size_px": 32, "sources_per_shard": 2, "retries": {"infra": 1, "memory": 1},
    }  # fmt: skip
    document = {"pipeline": "media", "inputs": {"videos": str(videos)}, "stages": {"clips": clips}}
    points = ["shard-written", "before-commit", "commit.after_log", "committed"]
    kinds = (*_LOCAL, *_REMOTE)
    return undisturbed("media", document, BUILTIN, folder, kinds, points)


@cache
def _moto() -> str:
    """Start a server of this process; return its endpoint."""
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    os.environ.update(keys, AWS_DEFAULT_REGION="us-east-1")
    server = Moto(Path())
    server.start()
    return f"http://127.0.0.1:{server.port}"


def full_temporary_folder(folder: str, size: str) -> None:
    """Mount a tmpfs of a size that only this process sees, else limit the size of its files."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
        limit = int(size.removesuffix("k")) << 10
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    assert libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={size}".encode()) == 0


class MediaSchedule(Schedule):
    """One schedule; those whose first fault is of a bucket have their store in one."""

    allowed = Schedule.allowed | {3}  # a child was killed more often than it is tried again

    def __init__(self, subject: Subject, seed: int, folder: Path) -> None:
        super().__init__(subject, seed, folder)
        self._lock = subject.modules.with_name("lock")
        self._proxy: S3Proxy | None = None
        if subject.kinds[seed % len(subject.kinds)] in _REMOTE:
            self._proxy = S3Proxy(endpoint := _moto())
            self.url = f"s3://{make_bucket(endpoint)}/store"
            self.environment = {
                "VIDEOAR_S3_ENDPOINT": self._proxy.endpoint, "VIDEOAR_STORE_WAIT_S": "60",
            }  # fmt: skip
            self.observer = Observer(self.url, endpoint)

    def play(self) -> Outcome:
        try:
            return super().play()
        finally:
            if self._proxy:
                self._proxy.close()

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*_LOCAL, *(_REMOTE if self._proxy else ()))

    def kill_of_workers(self) -> None:
        driver = self._start()
        for _ in range(self.random.randrange(1, 5)):
            while not (children := descendants(driver.pid)) and driver.is_alive():
                time.sleep(0.01)
            time.sleep(self.random.choice([0, 0.1, 0.5]))
            children = [pid for pid in children if pid in descendants(driver.pid)]
            count = self.random.choice([1, 1, len(children)])
            killed = self.random.sample(children, min(count, len(children)))
            send(signal.SIGKILL, *killed)
            self.outcome.counts["children killed"] += len(killed)
        self._end(driver)

    def full_temporary_folder(self) -> None:
        size = self.random.choice(["4k", "8k", "16k", "32k"])
        temp = str(self.folder / "temp")
        self._end(self._start(before=partial(full_temporary_folder, temp, size)))

    def permission(self) -> None:
        source = self.random.choice(sorted(self._videos.glob("good*")))
        with self._permissions(fcntl.LOCK_EX):
            source.chmod(0)
            try:
                driver = self._start(before=give_up_privileges)
                self._pause(1.0)
            finally:
                source.chmod(0o644)
        self._end(driver)

    def burst_of_503(self) -> None:
        assert self._proxy
        driver = self._start()
        for _ in range(self.random.randrange(1, 4)):
            self._pause(0.5)
            share = self.random.choice([0.3, 1.0])
            self._proxy.fail_for(self.random.uniform(0.1, 1.5), fault := self._fault(), share)
            self.outcome.counts[f"burst: {fault}"] += 1
        self._end(driver)

    def repeated_writes(self) -> None:
        assert self._proxy
        self._proxy.plan = lambda request: "twice" if request.command == "PUT" else "pass"
        self._end(self._start())
        self._proxy.plan = lambda _: "pass"

    def _fault(self) -> str:
        return self.random.choice(["503", "slow", "500", "lost", "then 503"])

    @property
    def _videos(self) -> Path:
        return Path(self.subject.document["inputs"]["videos"])

    def _pause(self, share: float) -> None:
        time.sleep(self.random.uniform(0, share * self.subject.seconds))

    @contextmanager
    def _permissions(self, kind: int) -> Iterator[None]:
        """All schedules read the same files, whose addresses are in the snapshots."""
        with self._lock.open("a") as file:
            fcntl.flock(file, kind)
            yield

    def _finish(self) -> None:
        with self._permissions(fcntl.LOCK_SH):
            super()._finish()
