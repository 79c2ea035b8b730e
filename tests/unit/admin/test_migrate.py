"""`store migrate`: records of format 1 get their digests, whatever moment it is killed at."""

import json
from pathlib import Path

import pytest

from tests.support.child_process import exit_code, preload
from tests.support.small_pipeline import videoar
from tests.support.toy_runs import toy_run, write_videos
from videoar import api
from videoar.core.errors import DamagedError, StorageError
from videoar.storage import layout
from videoar.storage.store import Store, open_store

preload(__name__)


def unseal_all(store: Store) -> int:
    """Make a store one of format 1; return how many records lost their digest."""
    count = 0
    for key in [info.key for info in store.objects.list("")]:
        if layout.is_record(key):
            record = json.loads(store.objects.get(key))
            del record["record_sha256"]
            store.objects.put(key, json.dumps({**record, "append_nonce": "x"}).encode())
            count += 1
        elif layout.is_log_version(key):
            lines = [json.loads(line) for line in store.objects.get(key).splitlines()]
            for info in (line["commitInfo"] for line in lines if "commitInfo" in line):
                if "videoar" in info:
                    info["videoar"] = json.loads(info["videoar"])
                    del info["videoar"]["record_sha256"]
                    count += 1
            store.objects.put(key, "\n".join(map(json.dumps, lines)).encode())
    store.objects.put(layout.FORMAT_KEY, b'{"format_version": 1}')
    return count


def answers(store: Store, run_id: str) -> list:
    commits = [snapshot.commit for snapshot in store.snapshots()]
    return [api.status(store, run_id), api.logs(store, run_id), api.refs(store), commits]


def migrate(url: str) -> None:
    api.store_migrate(url)


@pytest.fixture
def old(tmp_path: Path):
    """A store of format 1, its run, what it answered before, and its unsealed records."""
    store = open_store((tmp_path / "store").as_uri())
    run = toy_run(store, write_videos(tmp_path / "videos", "a.mp4"))
    calm = answers(store, run.run_id)
    return store, run.run_id, calm, unseal_all(store)


@pytest.mark.parametrize(
    "visits",
    [(), *(pytest.param(v, marks=pytest.mark.soak) for v in [(1,), (2, 9), (5, 5, 5)])],
)
def test_migrated_store_answers_as_before_also_after_kills(old, visits):
    store, run_id, calm, count = old
    with pytest.raises(StorageError, match=r"format 1 is older than 2, .*videoar store migrate"):
        open_store(store.url)
    for visit in visits:
        assert exit_code(migrate, store.url, VIDEOAR_CRASH_AT=f"migrate.sealed:{visit}") == -9
        with pytest.raises(StorageError, match="format 1 is older"):
            open_store(store.url)
    result = videoar("store", "migrate", store=store.url)
    assert (result["from"], result["to"], result["damaged"]) == (1, 2, [])
    assert 0 < result["sealed"] < count if visits else result["sealed"] == count
    assert answers(open_store(store.url), run_id) == calm
    assert videoar("store", "migrate", store=store.url)["sealed"] == 0


def test_store_without_a_format_record_is_one_of_format_1(old):
    store, run_id, calm, _ = old
    store.objects.delete(layout.FORMAT_KEY)
    with pytest.raises(StorageError, match="format 1 is older"):
        open_store(store.url)
    with pytest.raises(StorageError, match="format 1 is older"):
        Store(store.objects).put_object(b"x", ".bin")
    api.store_migrate(store.url)
    assert answers(open_store(store.url), run_id) == calm


def test_damaged_record_stays_and_is_named_and_others_are_migrated(old):
    store, run_id, _, _ = old
    key = layout.run_key(run_id)
    store.objects.put(key, b"{")
    result = videoar("store", "migrate", store=store.url, code=7)
    assert [line.partition(":")[0] for line in result["damaged"]] == [key]
    assert api.refs(open_store(store.url))["refs"]


def test_record_that_lost_its_digest_is_damaged(tmp_path: Path):
    store = open_store((tmp_path / "store").as_uri())
    store.ledger.create("runs/x/run.json", {"a": 1})
    store.objects.put("runs/x/run.json", b'{"a": 1, "record_sha357": "0"}')
    with pytest.raises(DamagedError, match=r"runs/x/run.json: damaged"):
        store.ledger.read("runs/x/run.json")
