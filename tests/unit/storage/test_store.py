"""Opening stores, and content-addressed objects and folders."""

import pickle

import pytest

from videoar.core.errors import ConfigError, SnapshotNotFoundError, StorageError
from videoar.storage import open_store


@pytest.mark.parametrize("url", ["", "ftp://x/y", "s3://", "file://host/x", "x/y", "file:///"])
def test_an_unusable_url_is_a_config_error(url):
    with pytest.raises(ConfigError, match="not a store URL"):
        open_store(url)


def test_memory_stores_are_shared_by_name_and_survive_pickling():
    store = open_store("memory://shared-by-name")
    store.objects.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).objects.get("a") == b"1"
    assert open_store("memory://shared-by-name").objects.get("a") == b"1"
    assert not open_store("memory://another-name").objects.exists("a")


def test_objects_are_named_by_their_content(tmp_path):
    store = open_store((tmp_path / "with space").as_uri())
    file = store.put_object(b"video", ".mp4")
    assert file == store.put_object(b"video", ".mp4")
    assert file.key == f"objects/{file.sha256[:2]}/{file.sha256}.mp4"
    assert store.objects.get(file.key) == b"video"
    assert (tmp_path / "with space" / file.key).is_file()


def test_a_folder_comes_back_as_it_was(tmp_path):
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


def test_a_record_cannot_write_outside_of_its_folder(tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    file = store.put_object(b"x", ".py").model_dump()
    with pytest.raises(StorageError, match="out of the folder"):
        store.fetch_folder([{**file, "path": "../escaped.py"}], tmp_path / "into")
    assert not (tmp_path / "escaped.py").exists()


def test_an_unset_ref_is_not_found(tmp_path):
    with pytest.raises(SnapshotNotFoundError, match="no such ref"):
        open_store(tmp_path.as_uri()).snapshot("champion")
