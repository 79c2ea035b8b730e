"""A deep look finds every kind of damage, names the file and the row, and lists all of it."""

import dataclasses
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support.clip_rows import clip_row, clips_of, drawn_rows, video_columns
from tests.support.token_files import (
    NOTES,
    SCALES,
    SHAPE,
    changed,
    commit_tables,
    token_rows,
)
from videoar.admin.forget import forget
from videoar.admin.validate import requantize, validate_snapshot
from videoar.cli.app import app
from videoar.contracts.contract import load_contract
from videoar.core.errors import ConfigError, StorageError
from videoar.core.ids import sha256_hex
from videoar.media.synthetic import scenes
from videoar.storage.audit import audit
from videoar.storage.store import Store, open_store
from videoar.storage.token_codec import checksum
from videoar.storage.unique_keys import duplicate_keys
from videoar.storage.writer import find_footer
from videoar.testing.fault_store import FaultPlan, FaultStore


@pytest.fixture(
    params=[
        "file",
        pytest.param("moto", marks=pytest.mark.slow),  # a second per test
        pytest.param("ceph", marks=pytest.mark.s3),
    ]
)
def store(request, tmp_path) -> Store:
    if request.param == "file":
        return open_store((tmp_path / "store").as_uri())
    server = request.getfixturevalue({"moto": "moto_server", "ceph": "s3_server"}[request.param])
    return open_store(server.new_url(), endpoint=server.endpoint)


@pytest.fixture
def local(tmp_path) -> Store:
    return open_store((tmp_path / "store").as_uri())


def deep(store, snapshot, **options):
    """Return (kind, file, row) of all findings."""
    found = validate_snapshot(store, snapshot.id, deep=True, **options)
    return [(m["kind"], m["path"], m["row"]) for m in found]


def chunk(store, file, column):
    metadata = pq.read_metadata(io.BytesIO(store.objects.get(file.key)))
    index = metadata.schema.names.index(column)
    return metadata.row_group(0).column(index)


def flip(store, file, position):
    data = bytearray(store.objects.get(file.key))
    data[position] ^= 1
    store.objects.put(file.key, bytes(data))


def replace(store, snapshot, data, rows):
    """Commit a file that was made by somebody else as if it were ours."""
    sha256 = sha256_hex(data)
    key = f"tables/tokens/data/{sha256[:2]}/{sha256}.parquet"
    store.objects.put(key, data)
    file = snapshot.files[0].model_copy(
        update={
            "key": key,
            "sha256": sha256,
            "size_bytes": len(data),
            "rows": rows,
            "footer": find_footer(memoryview(data)),
        }
    )
    made = snapshot.commit.provenance.model_copy(update={"fingerprint": sha256})
    return store.dataset("tokens", "tokens@1").commit([file], made, {})


def test_undamaged_tokens_have_no_finding_on_any_store(store):
    scales = [(1, 1), (3, 2)]
    other = token_rows(100, 3, shape=(1, 3, 3, 2), scales=scales)
    snapshot = commit_tables(store, token_rows(0, 5), token_rows(5, 4), other)
    assert deep(store, snapshot) == []


def test_many_row_groups_are_read_one_by_one(local):
    table = changed(changed(token_rows(0, 11), "rate_fps", 9, 4.0), "label", 8, None)
    good = commit_tables(local, table, row_group_bytes=600)
    assert chunk(local, good.files[0], "latent").num_values == 2
    assert deep(local, good) == []
    latent = np.frombuffer(table["latent"][7].as_py(), "<f2").copy()
    latent[0] = -5 * np.sign(latent[0])
    bad = changed(table, "latent", 7, latent.tobytes())
    snapshot = commit_tables(local, bad, row_group_bytes=600)
    key = snapshot.files[0].key
    assert deep(local, snapshot) == [("XXH3", key, 7), ("BITS", key, 7)]


def test_files_are_read_in_pieces(local):
    snapshot = commit_tables(local, token_rows(0, 60), row_group_bytes=600)
    lengths = []

    class Counting:
        get = None

        def __getattr__(self, name):
            return getattr(local.objects, name)

        def get_range(self, key, start, length):
            lengths.append(length)
            return local.objects.get_range(key, start, length)

    counted = dataclasses.replace(snapshot, objects=Counting())
    assert list(audit(counted, requantize, len, piece_bytes=600)) == []
    footer = 32 << 10  # Arrow reads the end of a file at once
    assert max(length for length in lengths if length < footer) <= 600
    assert sum(length >= footer for length in lengths) <= 2


def test_truncated_file_is_named(store):
    snapshot = commit_tables(store, token_rows(0, 5), token_rows(5, 5))
    file = snapshot.files[1]
    store.objects.put(file.key, store.objects.get(file.key)[:-100])
    kinds = ["SIZE", "SHA256", "PARQUET"]
    assert deep(store, snapshot) == [(kind, file.key, None) for kind in kinds]


@pytest.mark.fault(10, "a listing without a data file")
def test_file_absent_from_a_listing_is_read(local):
    snapshot = commit_tables(local, token_rows(0, 5), token_rows(5, 5))
    late = dataclasses.replace(
        snapshot, objects=FaultStore(local.objects, FaultPlan(late_listing_s=60))
    )
    assert list(audit(late, requantize, len)) == []
    flip(local, snapshot.files[1], 100)
    seen, hidden = (list(audit(of, requantize, len)) for of in (snapshot, late))
    assert seen == hidden != []
    local.objects.delete(snapshot.files[1].key)
    assert [finding.kind for finding in audit(late, requantize, len)] == ["MISSING"]


def test_missing_file_is_listed_beside_other_damage(store):
    snapshot = commit_tables(store, token_rows(0, 5), token_rows(5, 5))
    first, second = snapshot.files
    store.objects.delete(first.key)
    flip(store, second, chunk(store, second, "latent").data_page_offset + 60)
    found = deep(store, snapshot)
    assert found[0] == ("MISSING", first.key, None)
    assert ("SHA256", second.key, None) in found
    assert ("PAGES", second.key, 0) in found


@pytest.mark.parametrize("column", ["latent", "bits", "clip_id", "caption", "latent_xxh3"])
def test_flipped_byte_names_its_column(local, column):
    snapshot = commit_tables(local, token_rows(0, 5))
    (file,) = snapshot.files
    place = chunk(local, file, column)
    start = place.dictionary_page_offset or place.data_page_offset
    flip(local, file, start + place.total_compressed_size - 3)
    found = validate_snapshot(local, snapshot.id, deep=True)
    assert [m["kind"] for m in found][:2] == ["SHA256", "PAGES"]
    assert f"column {column}, row group 0: " in found[1]["message"]
    assert {m["path"] for m in found} == {file.key}


def test_flipped_bit_anywhere_is_a_finding(local):
    snapshot = commit_tables(local, token_rows(0, 3))
    (file,) = snapshot.files
    good = local.objects.get(file.key)
    random = np.random.default_rng(0)
    footer = range(len(good) - 400, len(good))
    for position in [*random.integers(0, len(good), 60), *random.choice(footer, 60)]:
        data = bytearray(good)
        data[position] ^= 1 << random.integers(8)
        local.objects.put(file.key, bytes(data))
        assert ("SHA256", file.key, None) in deep(local, snapshot), position


def test_bits_that_differ_from_the_latents_name_the_row(local):
    table = token_rows(0, 6)
    bits = bytes([table["bits"][4].as_py()[0] ^ 0b11000000]) + table["bits"][4].as_py()[1:]
    table = changed(changed(table, "bits", 4, bits), "bits_xxh3", 4, checksum(bits))
    snapshot = commit_tables(local, table)
    (mistake,) = validate_snapshot(local, snapshot.id, deep=True)
    assert (mistake["kind"], mistake["row"]) == ("BITS", 4)
    assert mistake["message"] == "row 4: 2 bits differ from those of the latent"
    assert mistake["path"] == snapshot.files[0].key


def test_wrong_checksum_names_the_row(local):
    table = changed(changed(token_rows(0, 6), "bits_xxh3", 2, 7), "latent_xxh3", 5, 7)
    snapshot = commit_tables(local, table)
    key = snapshot.files[0].key
    assert sorted(deep(local, snapshot)) == [("XXH3", key, 2), ("XXH3", key, 5)]


def test_clip_in_two_files_names_both(local):
    tables = [token_rows(0, 5), token_rows(5, 3), token_rows(8, 4)]
    for row, clip in ((2, 3), (3, 7)):
        tables[2] = changed(tables[2], "clip_id", row, f"{clip:032x}")
    snapshot = commit_tables(local, *tables)
    first, second, third = (file.key for file in snapshot.files)
    shallow = validate_snapshot(local, snapshot.id)
    assert sorted((m["path"], m["message"]) for m in shallow) == sorted([
        (third, f"clip_id {3:032x} is also in row 3 of {first}"),
        (third, f"clip_id {7:032x} is also in row 2 of {second}"),
    ])
    assert sorted(deep(local, snapshot)) == [("KEYS", third, 2), ("KEYS", third, 3)]
    in_shares = duplicate_keys(snapshot, max_hashes=2)
    assert sorted(key.second_row for key in in_shares) == [2, 3]


def test_files_that_share_many_clips_are_one_finding(local):
    snapshot = commit_tables(local, token_rows(0, 6), token_rows(0, 6, source=9))
    (found,) = validate_snapshot(local, snapshot.id)
    assert found["message"] == f"clip_id {0:032x} is also in row 0 of {snapshot.files[0].key}"


def test_different_keys_of_equal_hash_are_no_finding(local):
    snapshot = commit_tables(local, token_rows(0, 4), token_rows(4, 4))
    assert list(duplicate_keys(snapshot, hash_bytes=len)) == []


def test_latents_that_are_not_finite_are_named(local):
    table = token_rows(0, 2)
    latents = np.frombuffer(b"".join(table["latent"].to_pylist()), "<f2").reshape(2, *SHAPE).copy()
    latents[1, 0, 0, 0, 0] = np.nan
    value = latents[1].tobytes()
    table = changed(changed(table, "latent", 1, value), "latent_xxh3", 1, checksum(value))
    assert ("LATENT", 1) in [
        (kind, row) for kind, _, row in deep(local, commit_tables(local, table))
    ]


@pytest.mark.parametrize(
    ("notes", "kinds"),
    [
        ({"scales": json.dumps([(1, 1), (1, 4), (4, 5)])}, {"BITS"}),  # as many positions
        ({"scales": json.dumps([(1, 1), (4, 5)])}, {"WIDTH"}),
        ({"scales": json.dumps([(1, 1), (2, 2), (5, 4)])}, {"SCALES"}),
        ({"scales": "all of them"}, {"FOOTER"}),
        ({"scales": "[]"}, {"FOOTER"}),
        ({"layout_version": "2"}, {"LAYOUT_VERSION"}),
        ({"layout_version": ""}, {"LAYOUT_VERSION"}),
    ],
)
def test_footer_of_other_rows_is_named(local, notes, kinds):
    liar = token_rows(3, 3).replace_schema_metadata({**NOTES, **notes})
    snapshot = commit_tables(local, token_rows(0, 3), liar)
    found = deep(local, snapshot)
    assert {kind for kind, _, _ in found} == kinds
    assert {path for _, path, _ in found} == {snapshot.files[1].key}


def test_file_without_token_metadata_is_named(local):
    snapshot = commit_tables(local, token_rows(0, 3).replace_schema_metadata(None))
    assert deep(local, snapshot) == [("LAYOUT_VERSION", snapshot.files[0].key, None)]


def model(store, digest, kind="tokenizer"):
    row = {
        "name": kind, "kind": kind, "digest": digest, "config_json": "{}", "files": [],
        "num_parameters": 1, "step": 1, "metrics": [], "history_json": "[]",
    }  # fmt: skip
    table = pa.Table.from_pylist([row], schema=load_contract("models@1").arrow_schema)
    return commit_tables(store, table, dataset=kind, contract="models@1")


def test_tokens_of_another_tokenizer_are_named(local):
    own, other = model(local, "a" * 64), model(local, "b" * 64)
    snapshot = commit_tables(local, token_rows(0, 3))
    key = snapshot.files[0].key
    assert deep(local, snapshot, tokenizer=own.id) == []
    assert deep(local, snapshot, tokenizer=other.id) == [("TOKENIZER", key, None)]
    lied = commit_tables(local, token_rows(3, 3), tokenizer=other.id)
    assert deep(local, lied) == [("TOKENIZER", lied.files[0].key, None)]
    # as `compact` commits: it names what it has rearranged, not who made that
    packed = commit_tables(local, token_rows(3, 3), dataset="packed", tokens=lied.id)
    assert [kind for kind, *_ in deep(local, packed)] == ["TOKENIZER"]
    mixed = commit_tables(local, token_rows(0, 3), token_rows(6, 3, tokenizer_digest="c" * 64))
    assert deep(local, mixed) == [("TOKENIZER", mixed.files[1].key, None)]
    for wrong in (snapshot.id, model(local, "d" * 64, "transformer").id):
        with pytest.raises(ConfigError, match="is not a tokenizer"):
            deep(local, snapshot, tokenizer=wrong)


def foreign(table, **options):
    sink = io.BytesIO()
    fixed = table.schema
    for name in ("bits", "latent"):
        index = table.column_names.index(name)
        width = len(table[name][0].as_py())
        fixed = fixed.set(index, pa.field(name, pa.binary(width), nullable=False))
    fixed = pa.schema([f.with_nullable(False) for f in fixed], fixed.metadata)
    contract = load_contract("tokens@1").arrow_schema
    table = table.cast(pa.schema(
        [f if f.name in ("bits", "latent") else contract.field(f.name) for f in fixed],
        fixed.metadata,
    ))  # fmt: skip
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def test_files_of_another_writer_are_validated(local):
    first = commit_tables(local, token_rows(0, 3))
    packed = replace(local, first, foreign(token_rows(0, 4), compression="snappy"), 4)
    key = packed.files[0].key
    assert deep(local, packed) == [("LAYOUT", key, None)] * 2
    short = token_rows(0, 4).drop_columns(["source_id"]).append_column("x", pa.array([1] * 4))
    sink = io.BytesIO()
    pq.write_table(short, sink)
    wrong = replace(local, first, sink.getvalue(), 5)
    found = validate_snapshot(local, wrong.id, deep=True)
    text = " ".join(m["message"] for m in found)
    assert {"ROW_COUNT", "SCHEMA"} <= {m["kind"] for m in found}
    assert "has 4 rows, 5 were committed" in text
    assert "column source_id: is missing" in text
    assert "column x: unknown to tokens@1" in text
    assert "column rate_fps: is double" in text


def test_rows_that_break_the_contract_are_all_listed(local):
    first = commit_tables(local, token_rows(0, 3))
    table = changed(changed(token_rows(0, 4), "split", 3, "test"), "clip_id", 2, f"{0:032x}")
    table = changed(table, "source_id", 1, "short")
    plain = {"compression": {"bits": "none", "latent": "none"}, "use_dictionary": ["split"]}
    data = foreign(table, **plain, data_page_size=1 << 30, write_statistics=["split"])
    found = deep(local, replace(local, first, data, 4))
    assert [(kind, row) for kind, _, row in found] == [("ROWS", 1), ("ROWS", 3), ("ROWS", 2)]


@pytest.fixture
def clips(store):
    """Rows of clips in the store, and a row that is read from its source."""
    rows = drawn_rows(store, scenes()[:3])
    reference = dict.fromkeys(("video_key", "video_sha256", "video_size_bytes"))
    return [*rows, clip_row("3", **reference)]


def test_damaged_videos_of_clips_are_named(store, clips):
    snapshot = clips_of(store, clips)
    assert deep(store, snapshot) == []
    keys = [row["video_key"] for row in clips]
    store.objects.delete(keys[0])
    flip(store, snapshot.files[0].model_copy(update={"key": keys[1]}), -9)
    store.objects.put(keys[2], store.objects.get(keys[2]) + b"more")
    assert deep(store, snapshot) == [
        ("MISSING", keys[0], 0),
        ("SHA256", keys[1], 1),
        ("SIZE", keys[2], 2),
        ("SHA256", keys[2], 2),
    ]


def test_clip_that_was_stored_cut_is_named(local):
    """Its size and hash are those committed, as after an encoder that hid a full disk."""
    rows = drawn_rows(local, scenes()[:3])
    for row, size in ((rows[1], 2048), (rows[2], 1)):
        data = local.objects.get(row["video_key"])[:size]
        row.update(video_columns(local, data, 9, 32, 32))
    snapshot = clips_of(local, rows[:1], rows[1:])
    found = validate_snapshot(local, snapshot.id, deep=True)
    assert [(m["kind"], m["path"], m["row"]) for m in found] == [
        ("FRAMES", rows[1]["video_key"], 0), ("FRAMES", rows[2]["video_key"], 1),
    ]  # fmt: skip
    assert "of 9 frames can be decoded" in found[0]["message"]
    assert f"(row 0 of {snapshot.files[1].key} of {snapshot.id})" in found[0]["message"]


def test_damaged_files_of_models_are_named(local):
    ref = local.put_object(b"weights", ".safetensors")
    row = model(local, "a" * 64).table().to_pylist()[0]
    row["files"] = [{"path": "w", **ref.model_dump(exclude={"rows"})}]
    table = pa.Table.from_pylist([row], schema=load_contract("models@1").arrow_schema)
    snapshot = commit_tables(local, table, dataset="model", contract="models@1")
    assert deep(local, snapshot) == []
    local.objects.put(ref.key, b"weightz")
    assert deep(local, snapshot) == [("SHA256", ref.key, 0)]


def test_withdrawn_source_is_no_damage(local):
    snapshot = commit_tables(local, token_rows(0, 3), token_rows(3, 3))
    forget(local, f"{4:064x}")
    assert deep(local, snapshot) == [("WITHDRAWN", snapshot.files[1].key, None)]


def test_unavailable_store_is_an_error_and_no_finding(local):
    snapshot = commit_tables(local, token_rows(0, 3))

    class Denied:
        def __getattr__(self, name):
            return getattr(local.objects, name)

        def size(self, key):
            raise StorageError(key, "access denied")

    with pytest.raises(StorageError, match="access denied"):
        validate_snapshot(Store(Denied()), snapshot.id, deep=True)


def call(store, *arguments):
    done = CliRunner().invoke(app, ["--store", store.url, "--json", *arguments])
    return done.exit_code, json.loads(done.stdout) if done.stdout else done.exception


def test_validate_command_prints_findings_and_exits_3(local):
    snapshot = commit_tables(local, token_rows(0, 3), token_rows(3, 3))
    assert call(local, "validate", snapshot.id, "--deep") == (0, {"ok": True, "errors": []})
    for file in snapshot.files:
        flip(local, file, 60)
    code, document = call(local, "validate", snapshot.id, "--deep")
    assert (code, document["ok"]) == (3, False)
    assert {error["path"] for error in document["errors"]} == {f.key for f in snapshot.files}
    assert {"path", "message", "kind", "row"} == set(document["errors"][0])
    code, document = call(local, "validate", snapshot.id)
    assert (code, len(document["errors"])) == (3, 2)
    assert call(local, "validate", "tokens:00")[0] != 0
    assert isinstance(call(local, "validate", "x.yaml", "--deep")[1], ConfigError)
    assert isinstance(call(local, "validate", snapshot.id, "--tokenizer", "x")[1], ConfigError)


def test_scales_of_the_tests_fit_their_shape():
    assert SCALES[-1] == SHAPE[2:]
