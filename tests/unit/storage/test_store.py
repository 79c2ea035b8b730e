"""Opening stores, and content-addressed objects and folders."""

import errno
import fcntl
import os
import pickle
import time
from pathlib import Path

import pytest

from tests.support.child_process import exit_code
from tests.support.committed_rows import RowWriter
from videoar.core.errors import (
    ConfigError,
    SnapshotNotFoundError,
    StorageError,
    TransientStorageError,
)
from videoar.records.mlflow.database import database
from videoar.storage import open_store
from videoar.storage.local_store import LocalObjectStore

WRONG_URLS = {
    "": "not a store URL", "ftp://x/y": "not a store URL", "x/y": "not a store URL",
    "s3://": "not a store URL", "s3://user:planted@b/p": r"s3://\*\*\*@b/p: not a",
    "s3://b:9/p": "not a store URL", "file://host/x": "not a store URL",
    "file://~/x": "not a store URL", "~/x": "not a store URL", "/x": "not a store URL",
    "file:///": "not absolute", "file:x": "not absolute", "file:///~/x": "begins with ~",
    "file:///~": "begins with ~",
    "file:///d#x": r"has \? or #", "file:///d?q": r"has \? or #", "file:///d?": r"has \? or #",
    "s3://b/p?q": r"has \? or #", "s3://b/p#x": r"has \? or #", "memory://a/b": "it has a path",
    "file:///a%2520b": "% before two digits", "s3://b/a%20b": "% before two digits",
    "file:///a%5Cb": "a backslash", "s3://b/a//b": "an empty part", "s3://b/../p": "an empty part",
    "file:///etc/passwd": "this is a file",
}  # fmt: skip


@pytest.mark.parametrize("url", WRONG_URLS)
def test_store_url_invalid_is_config_error(url):
    with pytest.raises(ConfigError, match=WRONG_URLS[url]) as caught:
        open_store(url)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("name", ["with space", "a#b", "a?b", "a%b", "a+b", "ü", "~x", "[x]"])
def test_folder_of_any_name_holds_the_whole_store(tmp_path, name):
    store = open_store((tmp_path / name).as_uri())
    RowWriter(store).commit("videos", "sources@1", [{}])
    assert [snapshot.dataset for snapshot in open_store(store.url).snapshots()] == ["videos"]
    assert database(store) == tmp_path / name / "mlflow.db"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_memory_store_same_name_is_shared_also_after_pickling():
    store = open_store("memory://shared-by-name")
    store.objects.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).objects.get("a") == b"1"
    assert open_store("memory://shared-by-name").objects.get("a") == b"1"
    assert open_store("memory://another-name").objects.size("a") is None


def put_at(store_url):
    open_store(store_url).objects.put("a", b"1")


@pytest.mark.slow
@pytest.mark.fault(9, "a temporary file of a killed writer")
def test_temporary_files_of_killed_writers_only_are_swept(tmp_path):
    root, old = tmp_path / "store", time.time() - 7200
    assert exit_code(put_at, root.as_uri(), VIDEOAR_CRASH_AT="put.before_publish") == -9
    (left,) = (root / ".tmp").iterdir()
    open_store(root.as_uri()).objects.put("a", b"2")
    assert left.exists()  # not old enough where locks of other machines may not show
    os.utime(left, (old, old))
    with LocalObjectStore(root)._temporary(lambda file: file.write(b"3")) as ours:
        os.utime(ours, (old, old))
        assert not left.exists()
        left.touch()
        store = open_store(root.as_uri())
        store.objects.put("a", b"4")
        store.objects.sweep()
        assert list((root / ".tmp").iterdir()) == [ours]
    assert list((root / ".tmp").iterdir()) == []
    assert store.objects.get("a") == b"4"


def test_temporary_file_swept_before_its_lock_is_created_again(tmp_path, monkeypatch):
    swept = []

    def sweep_once(file, how):
        if not swept:
            swept.append(Path(file.name))
            swept[0].unlink()

    monkeypatch.setattr(fcntl, "flock", sweep_once)
    objects = LocalObjectStore(tmp_path)
    objects.put("a", b"1")
    assert objects.get("a") == b"1"
    assert swept


def test_link_repeated_by_nfs_is_known_as_own(tmp_path, monkeypatch):
    link, objects = os.link, LocalObjectStore(tmp_path)

    def link_twice(source, target):
        link(source, target)
        link(source, target)

    objects.put("theirs", b"same", if_absent=True)
    monkeypatch.setattr(os, "link", link_twice)
    assert objects.put("mine", b"same", if_absent=True)
    assert not objects.put("theirs", b"same", if_absent=True)


def test_put_failing_leaves_no_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TransientStorageError, match="disk full"):
        LocalObjectStore(tmp_path).put("a", b"1")
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_object_key_is_its_content_hash(tmp_path):
    store = open_store((tmp_path / "with space").as_uri())
    file = store.put_object(b"video", ".mp4")
    assert file == store.put_object(b"video", ".mp4")
    assert file.key == f"objects/{file.sha256[:2]}/{file.sha256}.mp4"
    assert store.objects.get(file.key) == b"video"
    assert (tmp_path / "with space" / file.key).is_file()


def test_folder_published_is_fetched_unchanged(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.json").write_text("{}")
    (folder / "sub" / "a.safetensors").write_bytes(b"\0\1")
    files = store.publish_folder(folder)
    assert [file["path"] for file in files] == ["b.json", "sub/a.safetensors"]
    assert set(files[0]) == {"path", "key", "sha256", "size_bytes"}
    back = store.fetch_folder(files, tmp_path / "back")
    assert (back / "sub" / "a.safetensors").read_bytes() == b"\0\1"
    store.objects.put(files[0]["key"], b"[]")
    with pytest.raises(StorageError, match="damaged"):
        store.fetch_folder(files, tmp_path / "again")


def test_folder_record_with_outside_path_is_rejected(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    file = store.put_object(b"x", ".py").model_dump()
    with pytest.raises(StorageError, match="outside the target folder"):
        store.fetch_folder([{**file, "path": "../escaped.py"}], tmp_path / "into")
    assert not (tmp_path / "escaped.py").exists()


def test_ref_unset_is_not_found(tmp_path):
    with pytest.raises(SnapshotNotFoundError, match="no such ref"):
        open_store(tmp_path.as_uri()).snapshot("champion")


def test_listing_is_sorted_by_key_and_resumes_anywhere(store):
    keys = ["a", "b/c.d", "b/c-d/e", "b/c/x", "b.c", "b0", "c/d/e/f", "c/d.e", "runs/1", "é/1"]
    for key in keys:
        store.objects.put(key, b"x")
    for prefix in ("", "b", "b/", "b/c", "b/c/", "c/d", "run", "x/y"):
        for after in ("", "a", "b", "b/", "b/c", "b/c/x", "b.c", "c/d/e/f", "z"):
            expected = sorted(k for k in keys if k.startswith(prefix) and k > after)
            assert [info.key for info in store.objects.list(prefix, after)] == expected


def test_listing_leaves_out_what_is_deleted_meanwhile(store):
    for number in range(3):
        store.objects.put(f"a/{number}", b"x")
    listing = store.objects.list("a/")
    assert next(listing).key == "a/0"
    store.objects.delete("a/1")
    assert [info.key for info in listing] == ["a/2"]
