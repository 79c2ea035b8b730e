"""The folder that `videoar generate --out` writes, as rows of `samples@1`. Torch-free."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from videoar.contracts.contract import load_contract
from videoar.contracts.names import SAMPLES
from videoar.core.errors import ConfigError, ContractError
from videoar.core.ids import sha256_hex
from videoar.storage.layout import object_key

MANIFEST, TABLE = "manifest.jsonl", "samples.parquet"


def read_sample_folder(folder: Path) -> tuple[pa.Table, list[Path]]:
    """Return the rows, with the keys that the videos will have in a store, and the videos.

    Raises:
        ConfigError: it is no such folder, or its samples are not finished.
        ContractError: a row breaks the contract.
    """
    if not (folder / TABLE).is_file():
        unfinished = (folder / MANIFEST).is_file()
        what = "its samples are not finished" if unfinished else f"has no {TABLE}"
        hint = "make them with videoar generate --out"
        raise ConfigError(str(folder), what, "repeat the call" if unfinished else hint)
    try:
        table = pq.read_table(folder / TABLE)
    except (OSError, pa.ArrowInvalid) as error:
        raise ContractError(str(folder / TABLE), f"cannot be read: {error}") from error
    if "path" not in table.column_names:
        raise ContractError(str(folder / TABLE), "column path is missing")
    paths = [folder / name for name in table["path"].to_pylist()]
    rows = table.drop_columns("path").to_pylist()
    for row in rows:
        row["video_key"] = object_key(row.get("video_sha256") or "", ".mp4")
    contract = load_contract(SAMPLES)
    return contract.conform(pa.Table.from_pylist(rows), str(folder / TABLE)), paths


def read_sample(path: Path, sha256: str) -> bytes:
    """Return the bytes of a video of such a folder.

    Raises:
        ContractError: it is missing or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ContractError(str(path), f"cannot be read: {error.strerror}") from error
    if sha256_hex(data) != sha256:
        raise ContractError(str(path), f"is not the video that {TABLE} names", "generate it again")
    return data
