"""Small files become large ones with the same rows, spread; kills and takedowns as everywhere."""

import dataclasses
import io
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.child_process import exit_code
from tests.support.compaction import compact, compact_at
from tests.support.remote_objects import RemoteObjects
from tests.support.token_files import changed, commit_tables, flip_silently, token_rows
from videoar.admin.export import export
from videoar.admin.forget import forget
from videoar.admin.validate import validate_snapshot
from videoar.core.errors import ContractError, StorageError, WithdrawnError
from videoar.core.ids import sha256_hex
from videoar.core.types import FileRef
from videoar.pipeline.context import StageContext
from videoar.records.lineage import lineage
from videoar.stages.compact import CompactConfig, CompactStage
from videoar.storage.row_reader import RowReader
from videoar.storage.store import open_store
from videoar.storage.token_codec import checksum
from videoar.training import TokenLoader

ROOT = Path(__file__).parents[3]
SMALL = {"shape": (1, 3, 2, 2), "scales": [(2, 2)]}


def many(store):
    """Commit thirty files: of two shapes, three rows of one source each."""
    tables = [token_rows(3 * i, 3, source=i, **SMALL if i % 5 == 0 else {}) for i in range(30)]
    return commit_tables(store, *tables)


def by_clip(snapshot):
    rows = snapshot.table(verify=True).to_pylist()
    return {row["clip_id"]: row for row in rows}


@pytest.mark.slow
def test_output_has_the_same_rows_in_few_files_of_one_shape_each(store):
    tokens = many(store)
    stage, packed = compact(store, tokens.id)
    assert (len(tokens.files), len(packed.files)) == (30, 2)
    assert (stage.rows.in_, stage.rows.out, stage.shards.planned) == (90, 90, 2)
    assert by_clip(packed) == by_clip(tokens)
    shapes = [set(zip(*(t[n].to_pylist() for n in "thwk"), strict=True)) for t in packed.read()]
    assert sorted(map(len, shapes)) == [1, 1]
    assert validate_snapshot(store, packed.id, deep=True) == []
    assert validate_snapshot(store, tokens.id, deep=True) == []
    assert packed.commit.provenance.parents == {"tokens": tokens.id}
    edges = lineage(store, packed.id)["edges"]
    assert {"from": tokens.id, "to": packed.id} in edges


def test_clips_of_a_source_are_spread(store):
    tables = [token_rows(20 * i, 20, source=i) for i in range(20)]
    _, packed = compact(store, commit_tables(store, *tables).id)
    source = [int(s, 16) for s in packed.table(["source_id"])["source_id"].to_pylist()]
    assert np.mean(np.diff(source) == 0) < 0.15  # by chance 1 in 20; before it was 19 in 20


@pytest.mark.slow
def test_files_have_the_requested_size(store):
    tokens = commit_tables(store, *[token_rows(20 * i, 20, source=i) for i in range(8)])
    source = RowReader(tokens)
    for most in (60, 30, 1):
        size = most * int(source.payload.row_bytes_N[0])
        _, packed = compact(store, tokens.id, file_mib=size / (1 << 20))
        rows = [file.rows for file in packed.files]
        assert max(rows) <= most
        assert min(rows) >= most // 3
        assert by_clip(packed) == by_clip(tokens)
        clips = [table["clip_id"].to_pylist() for table in packed.read(["clip_id"])]
        ranges = [[hash_of(clip) for clip in of_file] for of_file in clips]
        assert all(hashes == sorted(hashes) for hashes in ranges)
        assert [h for hashes in sorted(ranges) for h in hashes] == sorted(
            map(hash_of, by_clip(tokens))
        )


def hash_of(clip):
    return checksum(clip.encode()) % (1 << 64) >> 1


@pytest.mark.slow
def test_new_and_deleted_clips_change_only_their_own_files(store):
    tables = [token_rows(20 * i, 20, source=i) for i in range(20)]
    tokens = commit_tables(store, *tables)
    size = int(RowReader(tokens).payload.row_bytes_N.sum()) / 16 / (1 << 20)
    _, packed = compact(store, tokens.id, file_mib=size)
    assert len(packed.files) >= 16

    def touched(*tables):
        """How many of the files are no more."""
        _, again = compact(store, commit_tables(store, *tables).id, file_mib=size)
        return len(set(packed.files) - set(again.files))

    assert touched(*tables, token_rows(400, 1)) == 1
    assert touched(*tables, token_rows(400, 3, **SMALL)) == 0
    assert touched(*tables, token_rows(400, 3, tokenizer_digest="0" * 64)) == 0
    assert touched(*tables[1:], tables[0].slice(1)) == 1  # in a file that was written again
    assert touched(pa.concat_tables(tables[:10]), pa.concat_tables(tables[10:])) == 0
    assert touched(*tables[1:], changed(tables[0], "caption", 3, "another")) == 1


def test_plan_does_not_grow_with_the_rows(store):
    stage = CompactStage(CompactConfig())
    many_rows = commit_tables(store, token_rows(0, 1000, (1, 3, 2, 2), [(2, 2)]))
    (shard,) = stage.shards({"tokens": many_rows})
    assert (shard.num_rows, len(shard.rows)) == (1000, 1)


def test_second_run_is_cached_and_recomputation_gives_the_same_bytes(store, tmp_path):
    tokens = many(store)
    _, packed = compact(store, tokens.id)
    stage, again = compact(store, tokens.id)
    assert (stage.status, again.commit) == ("CACHED", packed.commit)
    other = open_store((tmp_path / "other").as_uri())
    assert compact(other, many(other).id)[1].files == packed.files
    assert validate_snapshot(store, compact(store, packed.id)[1].id, deep=True) == []
    assert compact(store, packed.id)[1].id == packed.id


class Slow(RemoteObjects):
    """Answers late, and knows how many requests wait for it."""

    waiting = most = 0

    def read_into(self, key, spans):
        with self._lock:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        time.sleep(0.005)
        super().read_into(key, spans)
        with self._lock:
            self.waiting -= 1


def test_remote_store_gives_the_same_rows_with_concurrent_requests(store):
    tokens = many(store)
    far = dataclasses.replace(tokens, objects=Slow(tokens.objects))
    stage = CompactStage(CompactConfig())
    shards = stage.shards({"tokens": tokens})
    assert stage.shards({"tokens": far}) == shards
    near, from_far = (
        stage.open({"tokens": source}, StageContext(store)) for source in (tokens, far)
    )
    for shard in shards:
        places = pa.Table.from_pylist(list(shard.rows))
        assert from_far(places).rows.equals(near(places).rows, check_metadata=True)
    assert 8 <= far.objects.most <= 16
    source, every = RowReader(far), RowReader(tokens)
    for rows in (np.arange(3, 6), np.array([5, 3, 4]), np.array([4])):
        assert source.take(rows).equals(every.take(rows))
    far.objects.reads.clear()
    source.take(np.arange(3, 6))
    assert len(far.objects.reads) == 2  # neighbours: one request a column


def test_damage_in_a_remote_store_is_not_copied(store):
    bad = changed(token_rows(3, 3), "latent_xxh3", 1, 7)
    tokens = commit_tables(store, token_rows(0, 3), bad)
    source = RowReader(dataclasses.replace(tokens, objects=Slow(tokens.objects)))
    with pytest.raises(StorageError, match="row 1: latent fails its checksum"):
        source.take(np.arange(6)[::-1].copy())
    store.objects.delete(tokens.files[0].key)
    with pytest.raises(StorageError, match=tokens.files[0].key):
        source.take(np.array([0, 2, 5]))


def test_tokenizers_do_not_mix_and_metadata_is_kept(store):
    tokens = commit_tables(store, token_rows(0, 3), token_rows(3, 3, tokenizer_digest="b" * 64))
    _, packed = compact(store, tokens.id)
    notes = RowReader(packed).file_metadata
    assert {note["tokenizer_digest"] for note in notes} == {"a" * 64, "b" * 64}
    assert set(notes[0]) == {"tokenizer_digest", "scales", "interpolation", "layout_version"}


def test_files_of_another_writer_are_written_in_our_layout(store):
    """Payload that is plain binary, of no fixed width: as any Parquet library writes it."""
    ours = commit_tables(store, token_rows(0, 6), token_rows(6, 4, **SMALL))
    files = []
    for table in (token_rows(0, 6), token_rows(6, 4, **SMALL)):
        sink = io.BytesIO()
        pq.write_table(table, sink)
        sha256 = sha256_hex(sink.getvalue())
        key = f"tables/tokens/data/{sha256[:2]}/{sha256}.parquet"
        store.objects.put(key, sink.getvalue())
        size = len(sink.getvalue())
        files.append(FileRef(key=key, sha256=sha256, size_bytes=size, rows=table.num_rows))
    made = ours.commit.provenance.model_copy(update={"fingerprint": "theirs"})
    theirs = store.dataset("tokens", "tokens@1").commit(files, made, {})
    for snapshot in (theirs, dataclasses.replace(theirs, objects=RemoteObjects(theirs.objects))):
        batches = list(TokenLoader(snapshot, 4, 0, columns=["bits", "latent"]))
        clips = [int(clip, 16) for batch in batches for clip in batch["clip_ids"]]
        assert sorted(clips) == list(range(10))
    _, packed = compact(store, theirs.id)
    assert validate_snapshot(store, packed.id, deep=True) == []
    assert by_clip(packed) == by_clip(ours)


def test_empty_input_plans_no_shard(store):
    assert compact(store, commit_tables(store).id)[1].rows == 0


def test_damage_is_not_copied(store):
    bad = changed(token_rows(3, 3), "latent_xxh3", 1, 7)
    tokens = commit_tables(store, token_rows(0, 3), bad)
    words = f"{tokens.files[1].key}: row 1: latent fails its checksum"
    with pytest.raises(StorageError, match=words):
        compact(store, tokens.id)


@pytest.mark.parametrize("column", ["caption", "latent_xxh3", "start_s"])
def test_damage_of_small_columns_is_not_copied(store, column):
    tokens = commit_tables(store, token_rows(0, 30), token_rows(30, 30))
    file = tokens.files[1]
    flip_silently(store, file, column)
    words = f"{file.key}: damaged"
    with pytest.raises(StorageError, match=words):
        tokens.table([column])
    with pytest.raises(StorageError, match=words):
        RowReader(tokens)
    with pytest.raises(StorageError, match=words):
        compact(store, tokens.id)
    with pytest.raises(StorageError, match=words):
        export(store, tokens.id, "parquet", f"{store.url}-export")


def test_duplicate_clip_is_rejected(store):
    tokens = commit_tables(
        store, token_rows(0, 3), changed(token_rows(3, 3), "clip_id", 0, "0" * 32)
    )
    with pytest.raises(ContractError, match="packed: column clip_id: not unique"):
        compact(store, tokens.id)


def test_takedown_removes_rows_of_the_large_files(store):
    tokens = many(store)
    _, packed = compact(store, tokens.id)
    forget(store, f"{7:064x}")
    with pytest.raises(WithdrawnError):
        packed.table()
    with pytest.raises(WithdrawnError):
        compact(store, tokens.id)
    rest = [token_rows(3 * i, 3, source=i) for i in range(10) if i != 7]
    _, again = compact(store, commit_tables(store, *rest).id)
    assert again.rows == 27
    assert f"{7:064x}" not in again.table()["source_id"].to_pylist()


POINTS = [
    "put.before_publish", "write.before_put", "write.after_put", "shard-written", "before-commit",
    "rejects-committed", "commit.before_log", "commit.after_log", "commit.between_records",
    "commit.after_records", "committed",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_kill_at_any_step_leaves_the_old_or_the_new_state(store, tmp_path, point):
    tokens = many(store)
    calm = open_store((tmp_path / "calm").as_uri())
    expected = compact(calm, many(calm).id)[1]
    assert exit_code(compact_at, store.url, tokens.id, VIDEOAR_CRASH_AT=point) == -signal.SIGKILL
    there = [s.id for s in store.snapshots() if s.dataset == "packed"]
    assert there in ([], [expected.id])
    assert validate_snapshot(store, tokens.id, deep=True) == []
    _, packed = compact(store, tokens.id)
    assert (packed.id, packed.files) == (expected.id, expected.files)
    assert validate_snapshot(store, packed.id, deep=True) == []
    assert len([s for s in store.snapshots() if s.dataset == "packed"]) == 1
