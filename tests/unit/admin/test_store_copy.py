"""A copy of a store: whole at any moment, equal in the end, up to date after another call."""

import itertools

import pytest

from tests.support.small_pipeline import videoar
from tests.support.toy_runs import execute, resume, toy_document, toy_run, write_videos
from videoar import api
from videoar.core.errors import ConfigError, StorageError
from videoar.records.run_record import load_run, run_ids
from videoar.storage.local_store import LocalObjectStore
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow


@pytest.fixture
def original(tmp_path):
    store = open_store((tmp_path / "original").as_uri())
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4", "bad.mp4")
    run = execute(store, toy_document(videos))
    api.freeze(store, run.outputs["big"], "pinned")
    return store


def require_whole(store):
    """Check that everything that the store shows can be read."""
    for snapshot in store.snapshots():
        snapshot.table(verify=True)
    for name in store.refs.names():
        store.snapshot(name).table()
    for run_id in run_ids(store):
        for snapshot in load_run(store, run_id).outputs.values():
            store.snapshot(snapshot).table()


def content(store):
    private = ("leases/", "claims/", "doctor/", "copy-of", "mlflow")
    return {
        info.key: store.objects.get(info.key)
        for info in store.objects.list("")
        if not info.key.startswith(private)
    }


class StopError(Exception):
    pass


def test_copy_is_whole_wherever_it_stops_and_another_call_completes_it(
    original, tmp_path, monkeypatch
):
    put_file, stops = LocalObjectStore.put_file, 0

    def limited(objects, key, path):
        nonlocal left
        left -= 1
        if left < 0:
            raise StopError
        put_file(objects, key, path)

    monkeypatch.setattr(LocalObjectStore, "put_file", limited)
    url = (tmp_path / "copy").as_uri()
    while True:
        left = 3
        try:
            report = api.store_copy(original, url)
        except StopError:
            stops += 1
            require_whole(open_store(url))
            continue
        break
    assert stops > 10
    assert report["ok"]
    assert content(open_store(url)) == content(original)
    assert api.store_verify(original, url)["ok"]
    again = api.store_copy(original, url)
    assert (again["copied"], again["objects"]) == (0, report["objects"])


def test_copy_of_a_store_in_use_is_whole(original, tmp_path, monkeypatch):
    put_file, puts = LocalObjectStore.put_file, itertools.count(1)

    def busy(objects, key, path):
        # another run commits, and moves a ref; its own writes do not count
        if objects.url != original.url and (number := next(puts)) in {2, 9}:
            run = toy_run(original, write_videos(tmp_path / f"more{number}", f"{number}.mp4"))
            api.freeze(original, run.outputs["big"], f"pinned{number}")
        put_file(objects, key, path)

    monkeypatch.setattr(LocalObjectStore, "put_file", busy)
    url = (tmp_path / "copy").as_uri()
    assert api.store_copy(original, url)["ok"]
    require_whole(open_store(url))
    assert not api.store_verify(original, url)["ok"]
    monkeypatch.undo()
    assert api.store_copy(original, url)["ok"]
    assert api.store_verify(original, url)["ok"]
    assert content(open_store(url)) == content(original)


def test_runs_go_on_in_a_copy_with_equal_results(original, tmp_path):
    (run_id,) = run_ids(original)
    api.store_copy(original, (tmp_path / "copy").as_uri())
    copied = open_store((tmp_path / "copy").as_uri())
    assert resume(copied, run_id).outputs == load_run(original, run_id).outputs
    assert toy_run(copied, tmp_path / "videos").stage("big").status == "CACHED"


def test_takedown_reaches_the_copy(original, tmp_path):
    url = (tmp_path / "copy").as_uri()
    api.store_copy(original, url)
    key = original.put_object(b"a video", ".mp4").key
    api.store_copy(original, url)
    original.objects.delete(key)
    original.ledger.create(f"withdrawn/{key}.json", {"source": "a" * 64, "size_bytes": 7})
    api.store_copy(original, url)
    assert open_store(url).objects.find(key) is None


def test_damaged_object_is_named_and_stays_behind(original, tmp_path):
    file = original.snapshot("pinned").files[0]
    path = tmp_path / "original" / file.key
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    report = api.store_copy(original, (tmp_path / "copy").as_uri())
    assert not report["ok"]
    assert report["errors"] == [
        {"key": file.key, "error": "damaged: its bytes are not those of its name"}
    ]
    assert open_store((tmp_path / "copy").as_uri()).objects.find(file.key) is None
    result = videoar("store", "copy", (tmp_path / "copy").as_uri(), store=original.url, code=7)
    assert result["errors"][0]["key"] == file.key


def test_other_stores_are_not_overwritten(original, tmp_path):
    other = open_store((tmp_path / "other").as_uri())
    toy_run(other, tmp_path / "videos")
    folder = tmp_path / "original"
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").touch()
    for place, what in {
        other.url: "is neither empty nor a copy of this store",
        (tmp_path / "files").as_uri(): "is neither empty",
        (tmp_path / "link").as_uri(): "is neither empty",
        (folder / "copy").as_uri(): "is inside the other",
        (tmp_path / "link" / "copy").as_uri(): "is inside the other",
        tmp_path.as_uri(): "is inside the other",
    }.items():
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ConfigError, match=what):
            api.store_copy(original, place)
        assert sorted(tmp_path.rglob("*")) == before
    nothing = open_store((tmp_path / "nothing").as_uri())
    for call in (api.store_copy, api.store_verify):
        with pytest.raises(ConfigError, match="there is no store"):
            call(nothing, (tmp_path / "copy").as_uri())
    url = (tmp_path / "copy").as_uri()
    api.store_copy(original, url)
    copied = open_store(url)
    api.freeze(copied, copied.snapshot("pinned").id, "of-its-own")
    with pytest.raises(StorageError, match=r"has gone on by itself.*: refs/of-its-own/0+\.json"):
        api.store_copy(original, url)
    (error,) = api.store_verify(original, url)["errors"]
    assert error["key"].startswith("refs/of-its-own/")


@pytest.mark.s3
def test_store_is_restored_from_a_bucket(original, tmp_path, moto_server):
    bucket = f"s3://{moto_server.bucket}/backup"
    options = {**moto_server.environment, "VIDEOAR_S3_ENDPOINT": moto_server.endpoint}
    restored = (tmp_path / "restored").as_uri()
    assert videoar("store", "copy", bucket, store=original.url, **options)["ok"]
    assert videoar("store", "verify", bucket, store=original.url, **options)["ok"]
    assert videoar("store", "copy", restored, store=bucket, **options)["ok"]
    assert content(open_store(restored)) == content(original)
