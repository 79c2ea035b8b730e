"""The direct layout: the footer gives the offset of every payload row, for any reader."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from videoar.contracts.contract import load_contract
from videoar.core.errors import ContractError, StorageError
from videoar.core.ids import sha256_hex
from videoar.core.types import FileRef
from videoar.storage import open_store
from videoar.storage.payload import Payload
from videoar.storage.reader import read_file, read_footer, read_footers
from videoar.storage.writer import direct_blocks, find_footer, write_parquet

TOKENS = load_contract("tokens@1")
COLUMNS = ["bits", "latent"]


def tokens(rows, width=1000, seed=0):
    random = np.random.default_rng(seed)
    latents = [random.bytes(width) for _ in range(rows)]
    return TOKENS.conform(
        pa.table({
            "clip_id": [f"{i:032x}" for i in range(rows)],
            "source_id": [f"{i:064x}" for i in range(rows)],
            "split": ["train"] * rows,
            "label": ["a", None] * (rows // 2) + ["b"] * (rows % 2),
            **dict.fromkeys(("rate_fps", "start_s", "duration_s"), [1.0] * rows),
            **dict.fromkeys("thwk", [1] * rows),
            "bits": [latent[:7] for latent in latents],
            "latent": latents,
            "bits_xxh3": [0] * rows,
            "latent_xxh3": [0] * rows,
        }),
        "test",
    )


@pytest.fixture
def put():
    store = open_store(f"memory://{np.random.default_rng().integers(1 << 62)}")

    def keep(data, rows, footer=None):
        store.objects.put("x.parquet", data)
        file = FileRef(
            key="x.parquet",
            sha256=sha256_hex(data),
            size_bytes=len(data),
            rows=rows,
            footer=footer,
        )
        return store.objects, file

    return keep


def payload_of(objects, files, columns):
    return Payload(objects, files, read_footers(objects, files), columns)


@pytest.mark.parametrize(("rows", "width"), [(1, 1000), (5, 7_000_000), (300, 100_000)])
def test_rows_are_read_in_any_order_across_row_groups(put, rows, width):
    table = tokens(rows, width)
    data = write_parquet(table, TOKENS)
    groups = -(-rows // ((16 << 20) // (width + 7)))
    assert pq.read_metadata(io.BytesIO(data)).num_row_groups == groups
    objects, file = put(data, rows)
    payload = payload_of(objects, [file], ["bits", "latent"])
    assert payload.is_direct
    wanted = np.random.default_rng(1).permutation(rows)[:20]
    for column in ("latent", "bits"):
        got = np.empty((len(wanted), payload.width(column, 0)), np.uint8)
        payload.read(wanted, {column: got})
        assert [row.tobytes() for row in got] == table[column].take(wanted).to_pylist()


def test_consecutive_rows_of_a_row_group_are_one_read(monkeypatch):
    store = open_store("memory://neighbours")
    tables = [tokens(300, 100_000, seed) for seed in (0, 1)]
    files = []
    for number, table in enumerate(tables):
        data = write_parquet(table, TOKENS)
        assert pq.read_metadata(io.BytesIO(data)).num_row_groups == 2
        store.objects.put(f"{number}.parquet", data)
        key, sha = f"{number}.parquet", sha256_hex(data)
        files.append(FileRef(key=key, sha256=sha, size_bytes=len(data), rows=300))
    payload = payload_of(store.objects, files, COLUMNS)
    whole = pa.concat_tables(tables)
    reads = []
    read_into = payload._read_into
    monkeypatch.setattr(
        payload,
        "_read_into",
        lambda key, spans: (reads.extend((key, len(t)) for _, t in spans), read_into(key, spans)),
    )
    end = int((payload.row_group_N == 0).sum())  # of the first row group
    wanted = [end - 2, end - 1, end, end + 1, 299, 300, 301, 7, 6, 5, 299]
    out = {name: np.empty((len(wanted), payload.width(name, 0)), np.uint8) for name in COLUMNS}
    payload.read(np.array(wanted), out)
    for name in COLUMNS:
        assert [row.tobytes() for row in out[name]] == whole[name].take(wanted).to_pylist()
    runs = [length // 7 for key, length in reads if length < 100_000]
    assert sorted(runs) == [1, 1, 1, 1, 1, 2, 2, 2]
    assert {key for key, _ in reads} == {"0.parquet", "1.parquet"}


def test_file_is_plain_parquet_and_equal_rows_give_equal_bytes():
    table = tokens(20)
    data = write_parquet(table, TOKENS)
    assert data == write_parquet(tokens(20), TOKENS)
    again = pq.read_table(io.BytesIO(data))
    assert pa.types.is_fixed_size_binary(again["latent"].type)
    assert again.cast(TOKENS.arrow_schema).equals(table)
    chunk = pq.read_metadata(io.BytesIO(data)).row_group(0).column(again.column_names.index("bits"))
    assert chunk.compression == "UNCOMPRESSED"
    assert not chunk.has_dictionary_page


def test_footer_has_own_metadata_but_no_library_versions(put):
    table = tokens(3).replace_schema_metadata({"tokenizer_digest": "d", "pandas": "3.1"})
    data = write_parquet(TOKENS.conform(table, "x"), TOKENS)
    objects, file = put(data, 3)
    (notes,) = payload_of(objects, [file], ["bits"]).file_metadata
    assert notes["tokenizer_digest"] == "d"
    assert "pandas" not in notes


@pytest.mark.parametrize("width", [1000, -1])  # -1: of no fixed width
def test_file_of_another_writer_is_decoded(put, width):
    table = tokens(50)
    sink = io.BytesIO()
    schema = table.schema.set(
        table.schema.get_field_index("latent"), pa.field("latent", pa.binary(width))
    )
    pq.write_table(table.cast(schema), sink, data_page_size=4096, compression="snappy")
    assert direct_blocks(pq.read_metadata(sink), "latent") is None
    objects, file = put(sink.getvalue(), 50)
    payload = payload_of(objects, [file], ["latent"])
    assert not payload.is_direct
    assert payload.width("latent", 0) == 1000
    assert 1000 <= payload.row_bytes_N[0] < 1500
    got = np.empty((2, 1000), np.uint8)
    payload.read(np.array([3, 1]), {"latent": got})
    assert [row.tobytes() for row in got] == table["latent"].take([3, 1]).to_pylist()


@pytest.mark.parametrize("odd", [b"", b"x" * 999, None])
def test_file_of_another_writer_with_mixed_sizes_is_rejected(put, odd):
    def read(*values):
        sink = io.BytesIO()
        pq.write_table(pa.table({"latent": values}), sink)
        objects, file = put(sink.getvalue(), 2)
        payload = payload_of(objects, [file], ["latent"])
        got = np.empty((2, payload.width("latent", 0)), np.uint8)
        payload.read(np.array([0, 1]), {"latent": got})

    for values in ([odd, b"x" * 1000], [b"x" * 1000, odd]):
        with pytest.raises(StorageError, match=r"x\.parquet: damaged: column latent"):
            read(*values)


def test_file_with_many_pages_is_not_direct():
    table = (
        tokens(2000, 16)
        .select(["latent"])
        .cast(pa.schema([pa.field("latent", pa.binary(16), False)]))
    )
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        data_page_size=1024,
        write_batch_size=16,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    assert direct_blocks(pq.read_metadata(sink), "latent") is None


def test_file_with_two_shapes_is_rejected():
    mixed = pa.concat_tables([tokens(2, 10), tokens(2, 12)])
    with pytest.raises(ContractError, match="latent has values of \\[10, 12\\] bytes"):
        write_parquet(mixed, TOKENS)


def test_column_read_fetches_less_than_the_file(put):
    objects, file = put(write_parquet(tokens(100, 50_000), TOKENS), 100)
    fetched = []

    class Counting:
        url = objects.url

        def get_range(self, key, start, length):
            fetched.append(length)
            return objects.get_range(key, start, length)

    table = read_file(Counting(), file, ["clip_id"])
    assert table.num_rows == 100
    assert sum(fetched) < file.size_bytes / 10


def test_file_damaged_is_detected(put):
    data = bytearray(write_parquet(tokens(10), TOKENS))
    objects, file = put(bytes(data), 10)
    data[40] ^= 1
    objects.put("x.parquet", bytes(data))
    with pytest.raises(StorageError, match="damaged"):
        read_file(objects, file, None, verify=True)
    objects.put("x.parquet", bytes(data[:-1]))
    with pytest.raises(StorageError, match="damaged"):
        read_file(objects, file, None)


def flipped(data, place):
    changed = bytearray(data)
    changed[place] ^= 1 << place % 8
    return bytes(changed)


@pytest.mark.parametrize("name", TOKENS.arrow_schema.names)
def test_column_with_flipped_bit_names_the_file(put, name):
    data = bytes(write_parquet(tokens(50), TOKENS))
    there = pq.read_table(io.BytesIO(data))[name].to_pylist()
    metadata = pq.read_metadata(io.BytesIO(data))
    chunk = metadata.row_group(0).column(metadata.schema.names.index(name))
    size = chunk.total_compressed_size
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    named = []
    for place in {*range(start, start + size, 1 + size // 30), start + size - 3}:
        objects, file = put(flipped(data, place), 50)
        for columns in ([name], None):
            try:
                same = read_file(objects, file, columns)[name].to_pylist()
            except StorageError as error:
                named.append(error.where)
            else:  # of a page header, what nobody needs
                assert place < start + size - 3
                assert same == there
    assert set(named) == {f"{objects.url}/x.parquet"}


READS = {
    "footer": read_footer,
    "columns": lambda objects, file: read_file(objects, file, ["clip_id", "label"]),
    "whole": lambda objects, file: read_file(objects, file, None),
}


@pytest.mark.parametrize("how", READS)
def test_footer_with_flipped_bit_names_the_file(put, how):
    data = bytes(write_parquet(tokens(5), TOKENS))
    footer = find_footer(memoryview(data))
    objects, file = put(data, 5, footer)
    READS[how](objects, file)
    # a sample: the other readers call the first one
    step = 4 if how == "footer" else 16
    for place in range(len(data) - footer.size_bytes, len(data), step):
        objects, file = put(flipped(data, place), 5, footer)
        with pytest.raises(
            StorageError, match="its footer is not the one that was committed"
        ) as error:
            READS[how](objects, file)
        assert error.value.where == f"{objects.url}/x.parquet"


def test_file_truncated_fails_by_its_footer(put):
    data = bytes(write_parquet(tokens(5), TOKENS))
    for length in (len(data) - 1, len(data) // 2, 3, 0):
        objects, file = put(data, 5, find_footer(memoryview(data)))
        objects.put("x.parquet", data[:length])
        with pytest.raises(StorageError, match="its footer is not the one that was committed"):
            read_footer(objects, file)


def test_footer_without_recorded_checksum_is_read(put):
    data = bytes(write_parquet(tokens(5), TOKENS))
    objects, file = put(data, 5)
    assert read_footer(objects, file).num_rows == 5
    assert len(read_file(objects, file, ["label"])) == 5
    objects.put("x.parquet", data[:-1])
    with pytest.raises(StorageError, match="damaged"):
        read_footer(objects, file)
