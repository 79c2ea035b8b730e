"""Statistics in the Delta log: readers skip files by them; they have no captions or addresses."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, QueryBuilder

from tests.support.clip_rows import clip_row, clips_of
from tests.support.token_files import changed, commit_tables, token_rows
from videoar.admin.forget import forget
from videoar.api import show
from videoar.storage.store import open_store
from videoar.storage.writer import write_parquet


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path.as_uri())


def opened(store, dataset):
    return DeltaTable(store.objects.location(f"tables/{dataset}"))


def actions(store, dataset="tokens"):
    rows = pa.table(opened(store, dataset).get_add_actions(flatten=True)).to_pylist()
    return sorted(rows, key=lambda row: row["min.clip_id"])


def test_statistics_are_recorded_per_file(store):
    small = (1, 3, 2, 2)
    other = changed(token_rows(50, 4, shape=small, scales=[(2, 2)]), "caption", 1, None)
    commit_tables(store, token_rows(0, 10), other)
    first, second = actions(store)
    assert (first["num_records"], second["num_records"]) == (10, 4)
    assert (first["min.start_s"], first["max.start_s"]) == (0.0, 9.0)
    assert (second["min.start_s"], second["max.start_s"]) == (50.0, 53.0)
    assert (second["min.t"], second["max.h"], first["max.w"]) == (1, 2, 5)
    assert (first["min.clip_id"], first["max.clip_id"]) == (f"{0:032x}", f"{9:032x}")
    assert (first["null_count.caption"], first["null_count.t"]) == (3, 0)


def test_statistics_of_row_groups_are_merged(store):
    commit_tables(store, token_rows(0, 11), row_group_bytes=600)
    (only,) = actions(store)
    assert (only["min.start_s"], only["max.start_s"], only["null_count.caption"]) == (0.0, 10.0, 3)


def test_readers_skip_files_by_statistics(store):
    commit_tables(store, token_rows(0, 10), token_rows(50, 4), token_rows(90, 4))
    table = opened(store, "tokens")
    late = pc.field("start_s") > 60.0
    left = list(table.to_pyarrow_dataset().get_fragments(filter=late))
    assert len(left) == 1
    found = table.to_pyarrow_dataset().to_table(filter=late)
    assert found["start_s"].to_pylist() == [90, 91, 92, 93]
    query = QueryBuilder().register("tokens", table)
    counted = query.execute("select count(*) as n from tokens where start_s > 60.0").read_all()
    assert pa.table(counted)["n"].to_pylist() == [4]


def test_columns_beyond_the_32nd_have_statistics(store):
    clips_of(store, [clip_row("a", motion_max=0.5), clip_row("b", motion_max=2.25)])
    (only,) = actions(store, "clips")
    assert (only["min.motion_max"], only["max.motion_max"]) == (0.5, 2.25)


def test_log_has_no_captions_and_no_addresses(store):
    secret = {"caption": "a secret", "label": "a secret", "source_uri": "file:///a secret"}
    clips_of(store, [clip_row("a", **secret)])
    log = [store.objects.get(i.key) for i in store.objects.list("tables/clips/_delta_log/")]
    assert b"minValues" in b"".join(log)
    assert b"secret" not in b"".join(log)


def test_statistics_not_finite_are_left_out(store):
    endless = changed(token_rows(0, 3), "start_s", 1, float("inf"))
    commit_tables(store, endless, changed(token_rows(9, 1), "start_s", 0, float("nan")))
    for row in actions(store):
        assert row.get("min.start_s") is None
        assert row["max.rate_fps"] == 8.0


def test_show_prints_statistics(store):
    snapshot = commit_tables(store, token_rows(0, 10), token_rows(50, 4))
    found = show(store, snapshot.id)
    assert found["statistics"]["start_s"] == {"min": 0.0, "max": 53.0, "nulls": 0}
    assert found["statistics"]["caption"] == {"min": None, "max": None, "nulls": 4}
    assert found["schema"]["latent"] == "payload"
    assert "latent" not in found["statistics"]
    endless = commit_tables(
        store, token_rows(0, 10), changed(token_rows(50, 4), "start_s", 1, 1e39)
    )
    assert "start_s" not in show(store, endless.id)["statistics"]


def test_show_after_take_down_has_statistics_of_remaining_files(store):
    snapshot = commit_tables(store, token_rows(50, 4), token_rows(0, 10))
    forget(store, f"{3:064x}")
    assert show(store, snapshot.id)["statistics"]["start_s"]["max"] == 53.0


def test_empty_file_has_no_statistics(store):
    snapshot = store.dataset("tokens", "tokens@1")
    empty = token_rows(0, 1).slice(0, 0)
    assert write_parquet(snapshot.contract.conform(empty, "x"), snapshot.contract)
