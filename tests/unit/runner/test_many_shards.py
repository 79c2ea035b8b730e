"""Stages of many shards: those that are finished cost a plan few requests, and are never wrong."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import many_shards
from tests.support.child_process import exit_code
from tests.support.many_shards import add
from tests.support.remote_objects import Counting
from videoar.admin.damage import damage
from videoar.core.errors import DamagedError, StageError, TransientStorageError
from videoar.core.ids import canonical_json, digest_json
from videoar.pipeline.fingerprint import ShardFingerprints
from videoar.pipeline.stage import Shard
from videoar.records.run import Run
from videoar.runner import stage_work
from videoar.storage import layout, record_folds
from videoar.storage.ledger import Ledger, seal
from videoar.storage.local_store import LocalObjectStore
from videoar.storage.store import Store, open_store

RECORDS = layout.shard_records_prefix("copied")
FOLDS = layout.folds_prefix(RECORDS)


def run(base: Path) -> Run:
    return many_shards.run(base / "videos", open_store((base / "store").as_uri()))


def planned(base: Path) -> tuple[int, int, int]:
    """Return the numbers of shards, of finished ones, and of requests of a plan."""
    counting = Counting(open_store((base / "store").as_uri()).objects)
    counts = many_shards.plan_of(base / "videos", Store(counting)).shards
    return counts.planned, counts.cached, counting.requests


def test_requests_of_a_plan_do_not_grow_with_finished_shards(tmp_path):
    requests = []
    for count in (17, 33):
        add(tmp_path / "videos", count)
        assert run(tmp_path).stage("copied").shards.done == count
        add(tmp_path / "videos", 1)
        *_, number = planned(tmp_path)
        requests.append(number)
        run(tmp_path)
    assert requests[1] <= requests[0] + 4  # a second fold, versions of two logs
    assert requests[1] < 30


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """A store with a fold of eight records, and a new source."""
    monkeypatch.setattr(record_folds, "_MIN", 4)
    add(tmp_path / "videos", 8)
    run(tmp_path)
    add(tmp_path / "videos", 1)
    return tmp_path


def fold_of(base: Path) -> tuple[Store, str]:
    store = open_store((base / "store").as_uri())
    (key,) = store.ledger.list(FOLDS)
    return store, key


@pytest.mark.parametrize("kind", ["lost", "cut", "flipped", "of other records"])
def test_fold_that_cannot_be_trusted_costs_requests_only(base: Path, kind, caplog):
    store, key = fold_of(base)
    before, data = planned(base), store.objects.get(key)
    assert before[:2] == (9, 8)
    half = len(data) // 2
    if kind == "of other records":  # a store that was copied: sizes and texts are equal
        record = json.loads(data)
        record.pop("record_sha256")
        entries = [[name, size, "other", text] for name, size, _, text in record["entries"]]
        data = canonical_json(seal(key, {"entries": entries})).encode()
    elif kind == "flipped":
        data = data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :]
    else:
        data = data[:half]
    store.objects.delete(key) if kind == "lost" else store.objects.put(key, data)
    assert planned(base) == (9, 8, before[2] + 8 - (kind == "lost"))
    if kind in ("cut", "flipped"):
        assert key in caplog.text
        assert [c.name for c in damage(store, fix=True) if "folds/" in c.name] == [f"damage: {key}"]
    shards = run(base).stage("copied").shards
    assert (shards.cached, shards.done) == (8, 1)
    assert planned(base)[:2] == (0, 0)  # all of it is cached
    add(base / "videos", 1)
    assert planned(base)[:2] == (10, 9)


def test_flipped_bits_of_a_fold_change_no_plan(base: Path, caplog):
    store, key = fold_of(base)
    data = store.objects.get(key)
    for place in range(3, len(data), len(data) // 16):
        flipped = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        store.objects.put(key, flipped)
        caplog.clear()
        assert planned(base)[:2] == (9, 8)
        assert f"{key}: damaged" in caplog.text


def test_record_that_was_made_again_is_not_taken_from_a_fold(base: Path):
    store, _ = fold_of(base)
    key = next(iter(store.ledger.list(RECORDS)))
    record = store.ledger.read(key)
    store.objects.delete(key)
    assert planned(base)[:2] == (9, 7)
    (file,) = record["files"]
    lost = {**file, "sha256": "0" * 64, "key": layout.data_key("copied", "0" * 64)}
    store.ledger.create(key, {**record, "files": [lost]})  # of the same size
    assert planned(base)[:2] == (9, 7)
    add(base / "videos", 3)
    assert run(base).stage("copied").shards.done == 5
    assert store.ledger.read(key)["files"] == [file]
    assert folded(store).count(key) == 2  # as it was, and as it is


def test_damaged_record_is_named_although_a_fold_has_it(base: Path):
    store, _ = fold_of(base)
    key = next(iter(store.ledger.list(RECORDS)))
    data = store.objects.get(key)
    store.objects.put(key, data.replace(b'"rows_out":1', b'"rows_out":2'))
    with pytest.raises(DamagedError, match=key):
        planned(base)


def test_records_are_folded_while_a_stage_runs(base: Path, monkeypatch):
    monkeypatch.setattr(stage_work, "_FOLD_EACH", 5)
    add(base / "videos", 7)
    copy = many_shards.Copy.open

    def fails_at_the_end(*args):
        mapper, rows = copy(*args), []

        def work(batch):
            rows.append(batch)
            assert len(rows) < 8, "broken"
            return mapper(batch)

        return work

    with monkeypatch.context() as patch:
        patch.setattr(many_shards.Copy, "open", fails_at_the_end)
        with pytest.raises(StageError, match="broken"):
            run(base)
    store = open_store((base / "store").as_uri())
    assert len(folded(store)) == 8 + 5
    assert run(base).stage("copied").shards.cached == 8 + 7
    assert sorted(folded(store)) == sorted({*folded(store)})


def write(url: str, names: list[str]) -> None:
    """Create records and fold them."""
    record_folds._MIN = 4
    store = open_store(url)
    keys = [f"{RECORDS}{name}.json" for name in names]
    for key in keys:
        store.ledger.create(key, {"name": key})
    record_folds.write_if_due(store.objects, store.ledger, f"{FOLDS}g/", RECORDS, keys)


def folded(store: Store) -> list[str]:
    """Return the keys of all entries of folds."""
    folds = map(store.ledger.read, store.ledger.list(FOLDS))
    return [entry[0] for fold in folds for entry in fold["entries"]]


def test_small_folds_are_merged_without_records_that_are_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(record_folds, "_MIN", 4)
    url = (tmp_path / "store").as_uri()
    store = open_store(url)
    for number in range(4):
        write(url, [f"{number}{letter}" for letter in "abcd"])
    assert len(list(store.ledger.list(FOLDS))) == 4
    write(url, ["few", "too"])
    store.objects.delete(f"{RECORDS}0a.json")
    write(url, list("wxyz"))
    assert len(list(store.ledger.list(FOLDS))) == 1
    single = {f"{RECORDS}{name}.json" for name in ("few", "too")}
    assert sorted(folded(store)) == sorted({*store.ledger.list(RECORDS)} - single)
    listed = list(store.objects.list(RECORDS))
    found = record_folds.read(store.ledger, f"{FOLDS}g/", listed)
    assert found == {key: canonical_json({"name": key}) for key in folded(store)}


@pytest.mark.slow
def test_killed_between_merged_folds_and_those_before_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(record_folds, "_MIN", 4)
    url = (tmp_path / "store").as_uri()
    store = open_store(url)
    for number in range(4):
        write(url, [f"{number}{letter}" for letter in "abcd"])
    killed = exit_code(write, url, list("wxyz"), VIDEOAR_CRASH_AT="record_fold.written")
    assert killed == -signal.SIGKILL
    assert len(list(store.ledger.list(FOLDS))) == 5
    assert {*folded(store)} == {*store.ledger.list(RECORDS)}
    write(url, list("stuv"))
    assert len(list(store.ledger.list(FOLDS))) == 1
    assert sorted(folded(store)) == sorted(store.ledger.list(RECORDS))


def test_folds_have_few_bytes_each(tmp_path, monkeypatch):
    monkeypatch.setattr(record_folds, "_MAX_BYTES", 300)
    write((tmp_path / "store").as_uri(), list("abcdefgh"))
    store = open_store((tmp_path / "store").as_uri())
    assert len(list(store.ledger.list(FOLDS))) == 4
    assert sorted(folded(store)) == sorted(store.ledger.list(RECORDS))


def test_records_are_not_folded_where_listings_have_no_etags(tmp_path, monkeypatch):
    listing = LocalObjectStore.list

    def without(*args):
        return (replace(info, etag="") for info in listing(*args))

    monkeypatch.setattr(LocalObjectStore, "list", without)
    write((tmp_path / "store").as_uri(), list("abcdefgh"))
    assert list(open_store((tmp_path / "store").as_uri()).ledger.list(FOLDS)) == []


def test_run_succeeds_although_its_records_cannot_be_folded(base: Path, monkeypatch, caplog):
    create = Ledger.create

    def fail(self, key, record):
        if key.startswith(FOLDS):
            raise TransientStorageError(key, "no answer")
        return create(self, key, record)

    monkeypatch.setattr(Ledger, "create", fail)
    add(base / "videos", 4)
    assert run(base).status == "SUCCEEDED"
    assert "not folded" in caplog.text


def test_fingerprint_of_a_shard_is_the_digest_of_its_parts():
    common = {"stage": "s", "version": 1, "config": {"shard": "x"}, "code": {"é": "1"}}
    parts = {**common, "inputs": {"a": "1", "b": "2"}, "tools": {"t": "3"}}
    names = ShardFingerprints(parts, {"b"})
    for digest in ("d", '"'):
        whole = {**common, "inputs": {"a": "1"}, "tools": {"t": "3"}, "shard": digest}
        assert names.of(Shard(0, digest)) == digest_json(whole)
