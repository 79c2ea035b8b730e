"""A folder of `videoar generate` as the input of a pipeline."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.sample_folder import sample_folder
from tests.support.stage_chain import provenance
from videoar.core.errors import ConfigError, ContractError
from videoar.runner.inputs import Listing, resolve
from videoar.storage.store import Store
from videoar.training.sample_folder import read_sample_folder


def test_folder_is_committed_with_its_videos_and_found_again(store: Store, tmp_path: Path):
    folder = sample_folder(tmp_path / "out")
    listed = resolve(store, "samples", str(folder))
    assert isinstance(listed, Listing)
    assert not list(store.objects.list(""))  # planning writes nothing
    samples = listed.commit(store, provenance("samples"))
    rows = samples.table().to_pylist()
    assert (samples.contract, len(rows)) == ("samples@1", 3)
    for row in rows:
        assert (
            store.objects.get(row["video_key"]) == (folder / f"{row['seed']:05d}.mp4").read_bytes()
        )
    assert resolve(store, "samples", str(folder)).id == samples.id


def test_damaged_or_missing_video_is_named(store: Store, tmp_path: Path):
    folder = sample_folder(tmp_path / "out")
    (folder / "00001.mp4").write_bytes(b"x")
    listed = resolve(store, "samples", str(folder))
    with pytest.raises(ContractError, match=r"00001.mp4: is not the video"):
        listed.commit(store, provenance("samples"))
    (folder / "00001.mp4").unlink()
    with pytest.raises(ContractError, match=r"00001.mp4: cannot be read"):
        listed.commit(store, provenance("samples"))


def test_folder_that_is_none_of_ours_is_rejected(tmp_path: Path):
    folder = sample_folder(tmp_path / "out")
    table = pq.read_table(folder / "samples.parquet")
    pq.write_table(table.drop_columns("prompt"), folder / "samples.parquet")
    with pytest.raises(ContractError, match="prompt is missing"):
        read_sample_folder(folder)
    pq.write_table(table.drop_columns("path"), folder / "samples.parquet")
    with pytest.raises(ContractError, match="path is missing"):
        read_sample_folder(folder)
    (folder / "samples.parquet").write_bytes(b"x")
    with pytest.raises(ContractError, match="cannot be read"):
        read_sample_folder(folder)
    (folder / "samples.parquet").unlink()
    with pytest.raises(ConfigError, match=r"has no samples.parquet"):
        read_sample_folder(folder)
    (folder / "manifest.jsonl").write_text("")
    with pytest.raises(ConfigError, match="not finished"):
        read_sample_folder(folder)
