"""The store's format version, records of other versions, and one contract per dataset."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pyarrow as pa
import pytest

from videoar.contracts.names import CLIPS, SCORES, SOURCES
from videoar.core.errors import ConfigError, DamagedError, StorageError
from videoar.core.types import Provenance
from videoar.storage import layout, open_store
from videoar.storage.layout import FORMAT_KEY, log_version_key
from videoar.storage.ledger import seal, unseal


@pytest.fixture
def url(tmp_path):
    return (tmp_path / "store").as_uri()


def sources(*names):
    row = {"etag": "1", "size_bytes": 1}
    return pa.Table.from_pylist([{**row, "uri": name, "name": name} for name in names])


def scores(*metrics):
    row = {
        "status": "ok",
        "value": 1.0,
        "higher_is_better": True,
        "num_samples": 1,
        "num_reference": 1,
        "lock_digest": "0",
        "lock_json": "{}",
        "details_json": "{}",
    }
    return pa.Table.from_pylist([{**row, "metric": name} for name in metrics])


def provenance(fingerprint):
    return Provenance(
        run_id="r", pipeline="p", stage="s", fingerprint=fingerprint, code_version="1"
    )


def commit(store, rows, contract=SOURCES, fingerprint="f", name="videos"):
    dataset = store.dataset(name, contract)
    return dataset.commit([dataset.write(rows)], provenance(fingerprint), {})


def test_opening_and_reading_write_nothing(url, tmp_path):
    store = open_store(url)
    assert store.dataset("videos", SOURCES).find("f") is None
    assert list(store.snapshots()) == []
    assert store.refs.head("champion") is None
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.ledger.create("runs/x/run.json", {}),
        lambda store: store.put_object(b"x", ".bin"),
        lambda store: store.dataset("videos", SOURCES).write(sources("a")),
    ],
    ids=["record", "object", "rows"],
)
def test_first_write_records_the_format(url, write):
    write(open_store(url))
    assert json.loads(open_store(url).objects.get(FORMAT_KEY)) == {"format_version": 2}


def test_newer_format_is_rejected_by_readers_and_by_a_writer_that_was_open(url):
    store = open_store(url)
    store.objects.put(FORMAT_KEY, b'{"format_version": 3, "by": "later"}')
    what = r"format.json: store format 3 is newer than 2, .* \(upgrade videoar\)$"
    with pytest.raises(StorageError, match=what) as caught:
        open_store(url)
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match=what):
        store.put_object(b"x", ".bin")


def test_format_record_may_gain_fields(url):
    open_store(url).objects.put(FORMAT_KEY, b'{"format_version": 2, "by": "later"}')
    commit(open_store(url), sources("a"))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"format_version": "1"}'])
def test_format_record_damaged_is_named(url, data):
    open_store(url).objects.put(FORMAT_KEY, data)
    with pytest.raises(DamagedError, match=r"format.json: damaged: no format version in it"):
        open_store(url)


def test_commit_with_unknown_fields_at_every_level_is_read(url):
    store = open_store(url)
    made = commit(store, sources("a"))
    key = log_version_key("videos", 1)
    lines = [json.loads(line) for line in store.objects.get(key).splitlines()]
    for line in lines:
        if "videoar" in line.get("commitInfo", {}):
            stored = unseal(key, json.loads(line["commitInfo"]["videoar"]))
            for part in (stored, stored["provenance"], *stored["files"]):
                part["added_later"] = {"x": 1}
            stored["files"][0]["footer"]["added_later"] = 1
            line["commitInfo"]["videoar"] = json.dumps(seal(key, stored))
    store.objects.put(key, "\n".join(map(json.dumps, lines)).encode())
    found = open_store(url).snapshot(made.id)
    assert found.commit == made.commit
    assert [snapshot.id for snapshot in store.snapshots()] == [made.id]


def test_dataset_rejects_a_second_contract(url):
    store = open_store(url)
    made = commit(store, sources("a"))
    what = f"videos: this dataset has contract {SOURCES}, not {SCORES} .give the stage or input"
    with pytest.raises(ConfigError, match=what):
        store.dataset("videos", SCORES).find("g")
    with pytest.raises(ConfigError, match=what):
        commit(store, scores("psnr"), SCORES, "g")
    assert commit(store, sources("b"), SOURCES, "h").rows == 1
    assert store.snapshot(made.id).table(["uri"])["uri"].to_pylist() == ["a"]


def test_cached_snapshot_is_found_in_a_dataset_of_its_contract(url):
    store = open_store(url)
    made = commit(store, sources("a"))
    assert store.dataset("videos", SOURCES).find("f").id == made.id
    assert store.dataset("clips", CLIPS).find("f") is None


def test_contracts_that_race_for_a_dataset_have_one_winner(url):
    store, both = open_store(url), [(SOURCES, sources("a")), (SCORES, scores("psnr"))]
    for number in range(5):
        barrier = Barrier(2)

        def attempt(given, name=f"d{number}", barrier=barrier):
            contract, rows = given
            dataset = store.dataset(name, contract)
            files = [dataset.write(rows)]
            barrier.wait()
            try:
                return dataset.commit(files, provenance("f" + contract), {})
            except ConfigError as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(attempt, both))
        (winner,) = (r for r in results if not isinstance(r, ConfigError))
        (loser,) = (r for r in results if isinstance(r, ConfigError))
        assert f"has contract {winner.contract}, not " in str(loser)
        assert winner.table().num_rows == 1


@pytest.mark.parametrize(
    ("key", "is_record"),
    [
        ("runs/r/run.json", True),
        ("runs/r/progress/model.json", False),
        (f"checkpoints/model/{'a' * 64}/000000004.json", True),
        (f"checkpoints/model/{'a' * 64}/000000004-{'b' * 64}.json", False),
        (f"objects/ab/{'b' * 64}.json", False),
        ("mlflow-artifacts/models/m-1/artifacts/config.json", False),
        ("format.json", False),
    ],
)
def test_content_is_not_taken_for_a_record(key, is_record):
    assert layout.is_record(key) == is_record
