"""Exports are read back by the standard library, by Arrow and, where they are there, by users."""

import io
import json
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support.child_process import exit_code
from tests.support.token_files import SCALES, changed, commit_tables, token_rows
from videoar.admin.export import export
from videoar.cli.app import app
from videoar.core.errors import ConfigError, ContractError, StorageError
from videoar.core.ids import sha256_hex
from videoar.storage.local_store import LocalObjectStore
from videoar.storage.store import open_store
from videoar.storage.token_codec import unpack_bits

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tokens(store):
    other = token_rows(50, 4, shape=(1, 3, 2, 2), scales=[(1, 1), (2, 2)])
    return commit_tables(store, token_rows(0, 7), other)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.name != ".tmp")


def check(row, facts, bits, latent):
    """Compare an exported sample with the store's row."""
    assert facts["scales"] == [list(s) for s in (SCALES if row["t"] == 2 else [(1, 1), (2, 2)])]
    assert facts["tokenizer"] == "a" * 64
    for name in ("clip_id", "source_id", "split", "label", "caption", "start_s", *"thwk"):
        assert facts[name] == row[name]
    t, h, w, k = (row[name] for name in "thwk")
    np.testing.assert_array_equal(latent, np.frombuffer(row["latent"], "<f2").reshape(t, k, h, w))
    ours = unpack_bits(row["bits"], t, facts["scales"], k)
    count = sum(h * w for h, w in facts["scales"]) * k
    flat = np.unpackbits(bits, axis=1, count=count)  # as the README says
    np.testing.assert_array_equal(flat, np.concatenate([b.reshape(t, -1) for b in ours], axis=1))


def test_webdataset_export_has_tars_of_clips(store, tokens, tmp_path):
    made = export(store, tokens.id, "webdataset", str(tmp_path / "out"), shard_mib=0.01)
    assert len(made["files"]) > 1
    assert names(tmp_path / "out") == sorted([f["name"] for f in made["files"]] + ["manifest.json"])
    rows = {row["clip_id"]: row for row in tokens.table().to_pylist()}
    for file in made["files"]:
        data = (tmp_path / "out" / file["name"]).read_bytes()
        assert (len(data), sha256_hex(data)) == (file["size_bytes"], file["sha256"])
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = tar.getmembers()
            read = {m.name: tar.extractfile(m).read() for m in members}
        assert {(m.mtime, m.uid, m.uname, m.mode) for m in members} == {(0, 0, "", 0o644)}
        for clip in {name.partition(".")[0] for name in read}:
            bits, latent = (
                np.load(io.BytesIO(read[f"{clip}.{n}.npy"])) for n in ("bits", "latent")
            )
            check(rows.pop(clip), json.loads(read[f"{clip}.json"]), bits, latent)
    assert rows == {}


def test_parquet_export_has_the_rows(store, tokens, tmp_path):
    made = export(store, tokens.id, "parquet", str(tmp_path / "out"), shard_mib=0.01)
    paths = [tmp_path / "out" / file["name"] for file in made["files"]]
    table = pa.concat_tables(pq.read_table(path) for path in paths)
    assert table.schema.field("latent").type == pa.binary()
    rows = tokens.table().to_pylist()
    for row, facts in zip(rows, table.to_pylist(), strict=True):
        t, h, w, k = (facts[name] for name in "thwk")
        latent = np.frombuffer(facts["latent"], np.float16).reshape(t, k, h, w)
        check(row, facts, np.frombuffer(facts["bits"], np.uint8).reshape(t, -1), latent)


def test_webdataset_library_reads_the_export(store, tokens, tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    made = export(store, tokens.id, "webdataset", str(tmp_path / "out"), shard_mib=0.01)
    urls = [str(tmp_path / "out" / file["name"]) for file in made["files"]]
    rows = {row["clip_id"]: row for row in tokens.table().to_pylist()}
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        row = rows.pop(sample["__key__"])
        check(row, sample["json"], sample["bits.npy"], sample["latent.npy"])
    assert rows == {}


def test_hugging_face_datasets_reads_the_export(store, tokens, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    export(store, tokens.id, "parquet", str(tmp_path / "out"), shard_mib=0.01)
    files = str(tmp_path / "out" / "*.parquet")
    found = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    rows = tokens.table().to_pylist()
    for row, facts in zip(rows, found["train"], strict=True):
        t, h, w, k = (facts[name] for name in "thwk")
        latent = np.frombuffer(facts["latent"], np.float16).reshape(t, k, h, w)
        check(row, facts, np.frombuffer(facts["bits"], np.uint8).reshape(t, -1), latent)


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_export_twice_gives_equal_bytes_and_writes_once(store, tokens, tmp_path, form):
    made = export(store, tokens.id, form, str(tmp_path / "a"))
    assert made["files"] == export(store, tokens.id, form, (tmp_path / "b").as_uri())["files"]
    (tmp_path / "a" / made["files"][0]["name"]).touch()
    before = (tmp_path / "a" / made["files"][0]["name"]).stat().st_mtime_ns
    assert export(store, tokens.id, form, str(tmp_path / "a")) == made
    assert (tmp_path / "a" / made["files"][0]["name"]).stat().st_mtime_ns == before
    assert (made["snapshot"], made["rows"]) == (tokens.id, 11)


def test_export_with_a_missing_file_is_rewritten(store, tokens, tmp_path):
    def again():
        return export(store, tokens.id, "webdataset", str(out), shard_mib=0.01)

    out = tmp_path / "out"
    made = again()
    first, *_, last = (out / file["name"] for file in made["files"])
    whole = {path.name: path.read_bytes() for path in (first, last)}
    first.unlink()
    assert again() == made
    last.write_bytes(whole[last.name][:-1])
    assert again() == made
    assert {path.name: path.read_bytes() for path in (first, last)} == whole
    last.unlink()
    key, latent = tokens.files[1].key, tokens.table(["latent"])["latent"][-1].as_py()
    data = store.objects.get(key)
    store.objects.put(key, data.replace(latent, bytes(len(latent))))
    with pytest.raises(StorageError, match="latent fails its checksum"):
        again()
    assert not (out / "manifest.json").exists()  # it would say that all is there
    store.objects.put(key, data)
    assert again() == made


@pytest.mark.slow
def test_export_to_a_bucket_equals_that_to_a_folder(store, tokens, tmp_path, moto_server):
    far = open_store(moto_server.new_url(), endpoint=moto_server.endpoint)
    same = commit_tables(far, token_rows(0, 7), token_rows(50, 4))
    here = export(store, tokens.id, "webdataset", str(tmp_path / "out"))
    there = export(far, same.id, "webdataset", f"{far.url}/export")
    assert far.objects.find("export/manifest.json")
    assert [f["rows"] for f in there["files"]] == [f["rows"] for f in here["files"]]


def test_export_to_a_folder_with_other_files_is_rejected(store, tokens, tmp_path):
    export(store, tokens.id, "webdataset", str(tmp_path / "out"))
    more = commit_tables(store, token_rows(0, 3))
    for arguments in [(tokens.id, "parquet"), (more.id, "webdataset")]:
        with pytest.raises(ConfigError, match="give an empty folder"):
            export(store, *arguments, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="give an empty folder"):
        export(store, tokens.id, "webdataset", str(tmp_path / "out"), shard_mib=0.01)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"has thesis.txt in it"):
        export(store, tokens.id, "parquet", str(tmp_path / "own"))


def test_export_of_other_contracts_or_damaged_tokens_is_rejected(store, tokens, tmp_path):
    with pytest.raises(ConfigError, match="did you mean webdataset"):
        export(store, tokens.id, "webdatasets", str(tmp_path / "out"))
    row = {"uri": "a", "name": "a", "etag": "a", "size_bytes": 1}
    sources = commit_tables(
        store, pa.Table.from_pylist([row]), dataset="videos", contract="sources@1"
    )
    with pytest.raises(ConfigError, match="only tokens@1"):
        export(store, sources.id, "parquet", str(tmp_path / "out"))
    bad = commit_tables(store, changed(token_rows(0, 3), "bits_xxh3", 2, 7))
    with pytest.raises(StorageError, match=f"{bad.files[0].key}: row 2: bits fails its checksum"):
        export(store, bad.id, "parquet", str(tmp_path / "out"))
    mute = commit_tables(store, token_rows(0, 3).replace_schema_metadata(None))
    with pytest.raises(ContractError, match=f"{mute.files[0].key}: its footer does not declare"):
        export(store, mute.id, "webdataset", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def killed_export(store_url, tokens, out):
    """Export in a process that is killed at the second shard."""
    put = LocalObjectStore.put

    def killed_put(self, key, data, **options):
        if "00001-of" in key:
            os.kill(os.getpid(), signal.SIGKILL)
        return put(self, key, data, **options)

    LocalObjectStore.put = killed_put
    export(open_store(store_url), tokens, "webdataset", out, shard_mib=0.01)


@pytest.mark.slow
def test_killed_export_has_no_manifest_and_resumes(store, tokens, tmp_path):
    out = tmp_path / "out"
    assert exit_code(killed_export, store.url, tokens.id, str(out)) == -signal.SIGKILL
    assert len(names(out)) == 1
    made = export(store, tokens.id, "webdataset", str(out), shard_mib=0.01)
    assert names(out) == sorted([f["name"] for f in made["files"]] + ["manifest.json"])


def test_export_command_prints_the_manifest(store, tokens, tmp_path):
    call = ["--store", store.url, "--json", "export", tokens.id, "--format", "parquet", "--to"]
    done = CliRunner().invoke(app, [*call, str(tmp_path / "out")])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "manifest.json").read_text())
