"""A fetch ends in time whatever drive or server do, and identifies a source by all of its bytes."""

import fcntl
import hashlib
import os
import signal
import socket
import time
from contextlib import contextmanager

import pyarrow as pa
import pytest

from tests.support.s3_server import aws_variables
from tests.support.small_videos import draw
from tests.support.stage_chain import ingest
from videoar.core.errors import MediaError, TransientStorageError, WorkerLostError
from videoar.core.settings import settings
from videoar.media.fetch import fetch
from videoar.media.process import Limits
from videoar.media.sandbox import SandboxedDecoder
from videoar.media.scan import ScanPlan
from videoar.media.sources import list_sources
from videoar.storage.s3_store import S3ObjectStore
from videoar.storage.store import open_store

WALL_S = 1.5


@contextmanager
def stuck(path):
    """Block every other process that opens a file in the kernel, as an unreachable drive does."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent when another process opens it
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
    monkeypatch.setenv("VIDEOAR_STORE_WAIT_S", "1")
    settings.cache_clear()
    with aws_variables():
        yield
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture
def decoder():
    with SandboxedDecoder(ScanPlan(), Limits(wall_s=WALL_S, cpu_s=20)) as decoder:
        yield decoder


@pytest.fixture
def into(tmp_path):
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def timed_out(decoder, uri, into):
    start = time.monotonic()
    with pytest.raises(WorkerLostError, match=r"waited until the time limit of"):
        decoder.fetch(uri, into)
    return time.monotonic() - start


@pytest.mark.slow
def test_blocked_file_times_out_and_the_next_fetch_succeeds(decoder, into, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x" * 10)
    decoder.fetch(path.as_uri(), into)  # starts the child, which is not to be measured
    (into / "source").unlink()
    with stuck(path):
        assert WALL_S <= timed_out(decoder, path.as_uri(), into) < WALL_S + 1
    (into / "source").unlink()
    assert decoder.fetch(path.as_uri(), into)[1] == hashlib.sha256(b"x" * 10).hexdigest()


@pytest.mark.slow
def test_blocked_file_fails_the_shard_and_is_not_rejected(tmp_path):
    (tmp_path / "in").mkdir()
    for seed, name in enumerate("ab"):
        draw(tmp_path / "in" / f"{name}.mp4", seed)
    store = open_store((tmp_path / "store").as_uri())
    options = {"rate_fps": None, "size_px": 32, "scan_timeout_s": WALL_S}
    with stuck(tmp_path / "in" / "a.mp4"), pytest.raises(WorkerLostError, match=r"a\.mp4"):
        ingest(store, str(tmp_path / "in"), **options)
    assert "clips" not in {s.dataset for s in store.snapshots()}
    _, metrics = ingest(store, str(tmp_path / "in"), **options)
    assert metrics["sources_kept"] == 2


@pytest.mark.slow
def test_silent_server_times_out(into, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with (
            endpoint(monkeypatch, url),
            SandboxedDecoder(ScanPlan(), Limits(wall_s=WALL_S, cpu_s=20)) as decoder,
        ):
            assert timed_out(decoder, "s3://bucket/a.mp4", into) < 30  # with the child's start


@pytest.mark.slow
def test_unreachable_server_is_a_transient_error(into, monkeypatch):
    with (
        endpoint(monkeypatch, "http://127.0.0.1:9"),
        SandboxedDecoder(ScanPlan(), Limits(wall_s=20, cpu_s=20)) as decoder,
        pytest.raises(TransientStorageError, match="does not respond"),
    ):
        decoder.fetch("s3://bucket/a.mp4", into)


@pytest.mark.slow
def test_object_is_streamed_and_a_missing_one_is_rejected(into, moto_server, monkeypatch):
    data = os.urandom(3 << 20) + b"end"
    S3ObjectStore(moto_server.bucket, "", moto_server.endpoint).put("a b.mp4", data)
    with (
        endpoint(monkeypatch, moto_server.endpoint),
        SandboxedDecoder(ScanPlan(), Limits(wall_s=20, cpu_s=20)) as decoder,
    ):
        path, sha256 = decoder.fetch(f"s3://{moto_server.bucket}/a%20b.mp4", into)
        assert path.read_bytes() == data
        assert sha256 == hashlib.sha256(data).hexdigest()
        for uri in (f"s3://{moto_server.bucket}/gone.mp4", "s3://no-such-bucket/a.mp4"):
            with pytest.raises(MediaError) as error:
                decoder.fetch(uri, into)
            assert error.value.code == "IO_PERMANENT"


@pytest.mark.slow
def test_bucket_is_listed_as_a_folder_is(into, moto_server, monkeypatch):
    objects = S3ObjectStore(moto_server.bucket, "", moto_server.endpoint)
    sources = {"/lead.mp4", "q//lead.mp4", "q/a//b.mp4", "q/a//b.txt", "q/odd/"}
    for key in (*sources, "q/.hidden/a.mp4", "q/a/.b.mp4"):
        objects.put(key, key.encode())
    objects.put("q/marker/", b"")
    objects.put("q/labels.csv", b"file,label\n/lead.mp4,x\na\\B.mp4,y\n")
    with endpoint(monkeypatch, moto_server.endpoint):
        rows = pa.concat_tables(list_sources(f"s3://{moto_server.bucket}/q")).to_pylist()
        result = {row["name"]: (row["label"], row["caption"]) for row in rows}
        assert result == {
            "/lead.mp4": ("x", "x"), "a//b.mp4": ("y", "q/a//b.txt"), "odd/": (None, None),
        }  # fmt: skip
        bucket = f"s3://{moto_server.bucket}"
        own = {f"{bucket}/{key}" for key in sources}  # others are of other tests
        uris = own.intersection(pa.concat_tables(list_sources(bucket))["uri"].to_pylist())
        for uri in (*uris, *(row["uri"] for row in rows)):
            *_, last = fetch(uri, into)
            (into / "source").unlink()
            assert last.sha256
    assert f"{bucket}//lead.mp4" in uris


def test_large_source_reports_progress(into, tmp_path):
    with (tmp_path / "a.mp4").open("wb") as file:
        file.truncate(5 << 20)
    *reports, last = fetch((tmp_path / "a.mp4").as_uri(), into, report_bytes=2 << 20)
    assert [report.num_bytes for report in reports] == [2 << 20, 4 << 20]
    assert last.sha256 == hashlib.sha256(bytes(5 << 20)).hexdigest()
    assert not any(report.sha256 for report in reports)


@pytest.mark.slow
def test_deadline_restarts_with_each_report(into, tmp_path):
    with (tmp_path / "a.mp4").open("wb") as file:
        file.truncate(3 << 30)  # sparse: seconds of hashing, no disk space
    with SandboxedDecoder(ScanPlan(), Limits(wall_s=1.0, cpu_s=60)) as decoder:
        start = time.monotonic()
        decoder.fetch((tmp_path / "a.mp4").as_uri(), into)
        assert time.monotonic() - start > 1.0
