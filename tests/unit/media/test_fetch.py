"""Fetching ends, whatever the drive or the server does, and names a source by all of its bytes."""

import fcntl
import hashlib
import os
import signal
import socket
import time
from contextlib import contextmanager

import pytest

from tests.support.s3_server import aws_variables
from tests.support.small_videos import draw
from tests.support.stage_chain import ingest
from videoar.core.errors import MediaError, TransientStorageError
from videoar.core.settings import settings
from videoar.media.fetch import fetch
from videoar.media.process import Limits
from videoar.media.sandbox import SandboxedDecoder
from videoar.media.scan import ScanPlan
from videoar.storage.s3_store import S3ObjectStore
from videoar.storage.store import open_store

WALL_S = 1.5


@contextmanager
def stuck(path):
    """Make every other process that opens a file wait in the kernel, as a dead drive would."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent when somebody asks for the file
    with path.open("rb+") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        try:
            yield
        finally:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            signal.signal(signal.SIGIO, before)


@contextmanager
def endpoint(monkeypatch, url):
    monkeypatch.setenv("VIDEOAR_S3_ENDPOINT", url)
    settings.cache_clear()
    with aws_variables():
        yield
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture
def scanner():
    with SandboxedDecoder(ScanPlan(), Limits(wall_s=WALL_S, cpu_s=20)) as scanner:
        yield scanner


@pytest.fixture
def into(tmp_path):
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def timed_out(scanner, uri, into):
    begun = time.monotonic()
    with pytest.raises(MediaError) as error:
        scanner.fetch(uri, into)
    assert error.value.code == "TIMEOUT"
    assert "exceeded the time limit of 1.5 s" in error.value.what
    return time.monotonic() - begun


def test_a_file_that_never_answers_is_left_and_the_next_one_read(scanner, into, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x" * 10)
    scanner.fetch(path.as_uri(), into)  # starts the child, so that only waiting is measured
    (into / "source").unlink()
    with stuck(path):
        assert WALL_S <= timed_out(scanner, path.as_uri(), into) < WALL_S + 1
    (into / "source").unlink()
    assert scanner.fetch(path.as_uri(), into)[1] == hashlib.sha256(b"x" * 10).hexdigest()


def test_the_stage_quarantines_it_and_goes_on(tmp_path):
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("ab"):
        draw(tmp_path / "in" / f"{name}.mp4", seed)
    store = open_store((tmp_path / "store").as_uri())
    options = {"rate_fps": None, "size_px": 32, "scan_timeout_s": WALL_S}
    with stuck(tmp_path / "in" / "a.mp4"):
        clips, metrics = ingest(store, str(tmp_path / "in"), **options)
    assert metrics["reject/TIMEOUT"] == metrics["sources_kept"] == 1
    (row,) = clips.rejects().table().to_pylist()
    assert (row["item_id"], row["reasons"], row["exit_kind"]) == ("a.mp4", ["TIMEOUT"], "timeout")
    assert row["retryable"]


def test_a_server_that_accepts_and_says_nothing(into, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with (
            endpoint(monkeypatch, url),
            SandboxedDecoder(ScanPlan(), Limits(wall_s=WALL_S, cpu_s=20)) as scanner,
        ):
            assert timed_out(scanner, "s3://bucket/a.mp4", into) < 30  # with the child's start


def test_a_server_that_is_not_there_is_asked_again_later(into, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with (
        endpoint(monkeypatch, "http://127.0.0.1:9"),
        SandboxedDecoder(ScanPlan(), Limits(wall_s=20, cpu_s=20)) as scanner,
        pytest.raises(TransientStorageError, match="does not respond"),
    ):
        scanner.fetch("s3://bucket/a.mp4", into)


def test_objects_come_in_pieces_or_are_refused(into, moto_server, monkeypatch):
    data = os.urandom(3 << 20) + b"end"
    S3ObjectStore(moto_server.bucket, "", moto_server.endpoint).put("a b.mp4", data)
    with (
        endpoint(monkeypatch, moto_server.endpoint),
        SandboxedDecoder(ScanPlan(), Limits(wall_s=20, cpu_s=20)) as scanner,
    ):
        path, sha256 = scanner.fetch(f"s3://{moto_server.bucket}/a%20b.mp4", into)
        assert path.read_bytes() == data
        assert sha256 == hashlib.sha256(data).hexdigest()
        for uri in (f"s3://{moto_server.bucket}/gone.mp4", "s3://no-such-bucket/a.mp4"):
            with pytest.raises(MediaError) as error:
                scanner.fetch(uri, into)
            assert error.value.code == "IO_PERMANENT"


def test_a_big_source_shows_that_it_is_alive(into, tmp_path):
    with (tmp_path / "a.mp4").open("wb") as file:
        file.truncate(5 << 20)
    *reports, last = fetch((tmp_path / "a.mp4").as_uri(), into, report_bytes=2 << 20)
    assert [report.num_bytes for report in reports] == [2 << 20, 4 << 20]
    assert last.sha256 == hashlib.sha256(bytes(5 << 20)).hexdigest()
    assert not any(report.sha256 for report in reports)


def test_the_deadline_grows_with_the_source(into, tmp_path):
    with (tmp_path / "a.mp4").open("wb") as file:
        file.truncate(4 << 30)  # sparse: seconds of hashing, no disk space
    with SandboxedDecoder(ScanPlan(), Limits(wall_s=1.5, cpu_s=2)) as scanner:
        begun = time.monotonic()
        scanner.fetch((tmp_path / "a.mp4").as_uri(), into)
        assert time.monotonic() - begun > 1.5
