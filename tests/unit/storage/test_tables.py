"""Snapshots and commits on one machine. Races and S3 are in the integration tests."""

import pickle
import random
import threading

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from tests.support.remote_objects import RemoteObjects
from videoar.core.errors import (
    ConfigError,
    ContractError,
    DamagedError,
    SnapshotNotFoundError,
    StorageError,
    TransientStorageError,
)
from videoar.core.types import Provenance
from videoar.storage import object_store, open_store
from videoar.storage.delta_log import iter_commits, missing_files
from videoar.storage.snapshot import snapshot_digest
from videoar.testing.fault_store import FaultPlan, FaultStore


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path.as_uri())


@pytest.fixture
def dataset(store):
    return store.dataset("videos", "sources@1")


def rows(*names):
    return pa.table({
        "uri": names,
        "name": names,
        "etag": names,
        "size_bytes": pa.array([1] * len(names), "i8"),
    })


def made_by(fingerprint):
    return Provenance(
        run_id="r",
        pipeline="p",
        stage="s",
        fingerprint=fingerprint,
        code_version="c",
        parents={"in": "a:b"},
    )


def delta_files(store, dataset, version=None):
    table = DeltaTable(store.objects.location(f"tables/{dataset}"), version=version)
    return {uri.rpartition("/")[2] for uri in table.file_uris()}


def names(files):
    return {f"{file.sha256}.parquet" for file in files}


def test_write_without_commit_is_invisible_and_idempotent(store, dataset):
    file = dataset.write(rows("a", "b"))
    assert file == dataset.write(rows("a", "b"))
    assert file.rows == 2
    assert list(store.objects.list("tables/videos/_delta_log")) == []
    with pytest.raises(SnapshotNotFoundError):
        store.snapshot("videos:0123456789abcdef")


def test_log_version_has_exactly_the_files_of_its_snapshot(store, dataset):
    a, b, c = (dataset.write(rows(name)) for name in "abc")
    for number, files in enumerate(([a, b], [b, c], [c], [], [c, a], [a, b])):
        snapshot = dataset.commit(files, made_by(f"f{number}"), {"n": number})
        assert snapshot.commit.version == number + 1
        assert snapshot.files == tuple(files)
        assert delta_files(store, "videos") == names(files)
    assert delta_files(store, "videos", version=2) == names([b, c])
    assert DeltaTable(store.objects.location("tables/videos")).count() == 2


def test_commit_is_found_by_fingerprint_id_and_ref(store, dataset):
    file = dataset.write(rows("a"))
    snapshot = dataset.commit([file], made_by("f"), {"loss": 0.5}, rejects="videos.rejects:00")
    store.refs.advance("latest", snapshot.id, expect=None, evidence={})
    for found in (dataset.find("f"), store.snapshot(snapshot.id), store.snapshot("latest")):
        assert found.commit == snapshot.commit
    assert snapshot.commit.provenance == made_by("f")
    assert snapshot.commit.metrics == {"loss": 0.5}
    assert snapshot.id == f"videos:{snapshot.digest[:16]}"
    assert dataset.find("g") is None


def test_index_records_lost_are_created_by_writers_only(store, dataset):
    file = dataset.write(rows("a"))
    snapshot = dataset.commit([file], made_by("f"), {})
    records = list(store.ledger.list("commits/"))
    assert len(records) == 2
    for key in records:
        store.objects.delete(key)
    assert dataset.find("f").commit == snapshot.commit
    assert store.snapshot(snapshot.id).commit == snapshot.commit
    assert list(store.ledger.list("commits/")) == []
    assert dataset.commit([file], made_by("f"), {}).commit == snapshot.commit
    assert list(store.ledger.list("commits/")) == records


def test_commits_without_index_records_are_listed(store, dataset):
    made = dataset.commit([dataset.write(rows("a"))], made_by("f1"), {})
    for key in list(store.ledger.list("commits/")):
        store.objects.delete(key)
    assert [snapshot.id for snapshot in store.snapshots()] == [made.id]


def test_commits_of_a_remote_store_are_read_at_once_and_listed_in_order(store, dataset):
    for name in "abcd":
        dataset.commit([dataset.write(rows(name))], made_by(name), {})
    in_flight = threading.Barrier(5)  # version 0 creates the table

    class Together(RemoteObjects):
        def get(self, key):
            in_flight.wait(30)  # raises if they come one after the other
            return self.objects.get(key)

    commits = list(iter_commits(Together(store.objects)))
    assert commits == list(iter_commits(store.objects))
    assert [commit.provenance.fingerprint for commit in commits] == list("abcd")


def test_commit_with_equal_fingerprint_or_content_resolves_to_the_first(store, dataset):
    a, b = dataset.write(rows("a")), dataset.write(rows("b"))
    first = dataset.commit([a], made_by("f"), {"n": 1})
    assert dataset.commit([b], made_by("f"), {"n": 2}).commit == first.commit
    dataset.commit([b], made_by("g"), {})
    again = dataset.commit([a], made_by("h"), {"n": 3})
    assert again.id == first.id
    assert store.snapshot(again.id).commit == first.commit
    assert dataset.find("h").commit.metrics == {"n": 3}
    assert delta_files(store, "videos") == names([a])


def test_digest_depends_on_content_only(dataset):
    a, b = dataset.write(rows("a")), dataset.write(rows("b"))
    assert snapshot_digest([a, b], "x@1") == snapshot_digest([b, a], "x@1")
    assert snapshot_digest([a, b], "x@1") != snapshot_digest([a, b], "x@2")
    assert snapshot_digest([a], "x@1") != snapshot_digest([a, b], "x@1")
    elsewhere = a.model_copy(update={"key": "elsewhere"})
    assert snapshot_digest([elsewhere], "x@1") == snapshot_digest([a], "x@1")


def test_reading(store, dataset):
    a, b = dataset.write(rows("x", "y")), dataset.write(rows("z"))
    snapshot = pickle.loads(pickle.dumps(dataset.commit([a, b], made_by("f"), {})))
    assert [len(table) for table in snapshot.read()] == [2, 1]
    assert snapshot.table().schema.equals(dataset.contract.arrow_schema)
    assert snapshot.table(["name", "uri"]).to_pydict() == {"name": list("xyz"), "uri": list("xyz")}
    assert snapshot.rejects() is None
    with pytest.raises(ConfigError, match="no column colour"):
        snapshot.table(["colour"])
    empty = dataset.commit([], made_by("e"), {})
    assert empty.rows == 0
    assert empty.table().schema.equals(dataset.contract.arrow_schema)


def test_file_damaged_or_missing_is_named(store, dataset):
    file = dataset.write(rows("a"))
    snapshot = dataset.commit([file], made_by("f"), {})
    data = bytearray(store.objects.get(file.key))
    data[10] ^= 1
    store.objects.put(file.key, bytes(data))
    with pytest.raises(StorageError, match=file.sha256):
        snapshot.table(verify=True)
    store.objects.delete(file.key)
    with pytest.raises(StorageError, match=file.sha256):
        snapshot.table()
    with pytest.raises(StorageError, match=file.sha256):
        snapshot.table(["uri"])


def test_commit_with_missing_file_is_not_cached(store, dataset):
    some = [dataset.write(rows(str(n))) for n in range(3)]
    many = [dataset.write(rows(str(n))) for n in range(40)]
    refused = store.dataset("videos.rejects", "sources@1")
    rejects = refused.commit([refused.write(rows("x"))], made_by("r"), {})
    made = {
        "f": dataset.commit(some, made_by("f"), {}),
        "g": dataset.commit(many, made_by("g"), {}),
        "h": dataset.commit([], made_by("h"), {}, rejects.id),
    }
    for fingerprint, file in (("f", some[1]), ("g", many[30]), ("h", rejects.files[0])):
        data = store.objects.get(file.key)
        for there in (b"", data[:-1]):
            store.objects.put(file.key, there)
            assert dataset.find(fingerprint) is None
        store.objects.delete(file.key)
        assert dataset.find(fingerprint) is None
        store.objects.put(file.key, data)
        assert dataset.find(fingerprint).commit == made[fingerprint].commit
    store.objects.delete(some[0].key)
    other = dataset.commit([many[5]], made_by("f"), {})  # made again, and otherwise
    assert dataset.find("f").commit == other.commit


def test_file_not_listed_yet_is_not_missing(store, dataset):
    few = [dataset.write(rows("a"))]
    many = [dataset.write(rows(str(n))) for n in range(40)]
    late = FaultStore(store.objects, FaultPlan(late_listing_s=60))
    for files in (few, many):
        assert list(missing_files(late, files)) == []
        store.objects.delete(files[0].key)
        assert list(missing_files(late, files)) == [files[0].key]


def test_object_damaged_is_replaced_by_the_next_write():
    objects = open_store("memory://replaced").objects
    small, large = b"12345x", bytes(object_store.MULTIPART_BYTES + 1)
    for content, damages in ((small, (b"12345", b"123456")), (large, (b"12345", large[:-1]))):
        for damaged in damages:
            objects.put("a", damaged)
            objects.put("ab", content)
            object_store.put_content(objects, "a", content)
            assert objects.get("a") == content


def test_rows_breaking_the_contract_are_not_written(store, dataset):
    with pytest.raises(ContractError, match="videos: column uri: not unique: row 1"):
        dataset.write(rows("a", "a"))
    assert list(store.objects.list("tables/")) == []


def test_contract_with_new_column_reads_old_files_and_extends_the_table(store, dataset):
    from videoar.contracts.contract import Contract
    from videoar.storage.tables import Dataset

    full = dataset.contract
    older = Contract.model_validate({
        **full.model_dump(by_alias=True),
        "columns": [c.model_dump() for c in full.columns[:-1]],
    })
    old = Dataset(store.objects, store.ledger, "videos", older)
    kept = old.write(rows("a"))
    snapshot = old.commit([kept], made_by("old"), {})
    assert snapshot.table()["origin"].to_pylist() == [None]
    assert snapshot.table(["origin"]).to_pydict() == {"origin": [None]}
    dataset.commit([kept, dataset.write(rows("b"))], made_by("new"), {})
    table = DeltaTable(store.objects.location("tables/videos"))
    assert "origin" in [field.name for field in table.schema().fields]
    assert table.to_pyarrow_table().num_rows == 2


@pytest.fixture
def answers(monkeypatch):
    """Let the Delta library answer commits as told: (whether it commits, what it then raises)."""
    told = []
    real = DeltaTable.create_write_transaction

    def create_write_transaction(table, *arguments, **options):
        commits, error = told.pop(0) if told else (True, None)
        if commits:
            real(table, *arguments, **options)
        if error is not None:
            raise error

    monkeypatch.setattr(DeltaTable, "create_write_transaction", create_write_transaction)
    return told


ERRORS = [OSError("500 after PUT"), DeltaError("Generic S3 error: timed out")]


@pytest.mark.parametrize("error", ERRORS, ids=["OSError", "DeltaError"])
def test_commit_error_after_success_is_ignored(store, dataset, answers, error):
    old = dataset.commit([dataset.write(rows("a"))], made_by("f"), {})
    answers += [(True, error)]
    made = dataset.commit([dataset.write(rows("b"))], made_by("g"), {})
    assert dataset.find("g").commit == made.commit == store.snapshot(made.id).commit
    assert made.commit.version == old.commit.version + 1
    assert DeltaTable(store.objects.location("tables/videos")).version() == made.commit.version
    assert made.table(["uri"], verify=True)["uri"].to_pylist() == ["b"]
    assert old.table(["uri"], verify=True)["uri"].to_pylist() == ["a"]


@pytest.mark.parametrize("error", ERRORS, ids=["OSError", "DeltaError"])
def test_commit_not_written_is_retried(store, dataset, answers, error):
    answers += [(False, error)] * 2
    made = dataset.commit([dataset.write(rows("a"))], made_by("f"), {})
    assert not answers
    assert (made.commit.version, dataset.find("f").commit) == (1, made.commit)


@pytest.mark.slow
def test_commit_never_written_is_transient_error_with_cause(dataset, answers):
    answers += [(False, OSError("503\n slow down"))] * 20
    with pytest.raises(
        TransientStorageError, match="20 attempts, last error: 503 slow down"
    ) as caught:
        dataset.commit([dataset.write(rows("a"))], made_by("f"), {})
    assert isinstance(caught.value.__cause__, OSError)
    assert not answers
    assert dataset.find("f") is None
    assert dataset.commit([dataset.write(rows("a"))], made_by("f"), {}).rows == 1


@pytest.mark.parametrize(
    ("version", "damage"),
    [(0, lambda data: b"{"), (1, lambda data: data.replace(b'"txn":{"appId"', b'"txn":{"appIe"'))],
    ids=["cut", "read late"],
)
def test_log_unreadable_is_named(store, dataset, version, damage):
    made = dataset.commit([dataset.write(rows("a"))], made_by("f"), {})
    key = f"tables/videos/_delta_log/{version:020}.json"
    store.objects.put(key, damage(store.objects.get(key)))
    assert version or store.snapshot(made.id).commit == made.commit
    with pytest.raises(TransientStorageError) as caught:
        dataset.find("g")
    assert "tables/videos: its Delta log cannot be read: " in str(caught.value)
    assert "<unknown>" not in str(caught.value)


def test_lost_version_of_a_log_is_named(store, dataset):
    for name in "abc":
        dataset.commit([dataset.write(rows(name))], made_by(name), {})
    key = f"tables/videos/_delta_log/{2:020}.json"
    store.objects.delete(key)
    with pytest.raises(DamagedError, match=f"{key}: lost, but .*{3:020}.json exists"):
        list(iter_commits(store.objects))


def test_numbers_of_a_commit_keep_every_bit(store, dataset):
    chance = random.Random(0)
    metrics = {f"m{i}": chance.uniform(-1, 1) * 10 ** chance.randrange(-12, 9) for i in range(500)}
    snapshot = dataset.commit([dataset.write(rows("a"))], made_by("f"), metrics)
    assert snapshot.commit.metrics == metrics
    assert [commit.metrics for commit in iter_commits(store.objects)] == [metrics]
