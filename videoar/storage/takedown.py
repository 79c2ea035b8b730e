"""What a take-down leaves in a store: a tombstone per source and a note per withdrawn object.

Both are create-once and hold no content, and of addresses only digests: enough to know one again,
not to read it. The tombstone, `forgotten/<sha256>.json`, keeps a source
out for good. A note, `withdrawn/<key>.json`, says why an object is gone and, for a Parquet file,
what it held of which source: lineage and later take-downs still know what the file knew. A listing
names many sources, so it is written anew without the one; its note leads readers there.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pydantic import Field

from videoar.core.errors import WithdrawnError
from videoar.core.ids import digest_json
from videoar.core.types import FileRef, Stored
from videoar.storage.layout import (
    TABLES_PREFIX,
    TOMBSTONES_PREFIX,
    WITHDRAWN_PREFIX,
    data_sha256,
    tombstone_key,
    withdrawal_key,
)
from videoar.storage.ledger import Ledger
from videoar.storage.object_store import ObjectStore
from videoar.storage.reader import read_file

SOURCE_COLUMN = "source_id"
ADDRESS_COLUMNS = ("uri", "etag")
_COLUMNS = ("clip_id", "licence", "origin", "source_uri", "uri", "video_key", "video_size_bytes")


class Tombstone(Stored):
    """One source that must not come back."""

    source: str
    """SHA-256 of the file."""
    reason: str
    time: str
    addresses: tuple[str, ...]
    """Digests of where it was found, see `address_digest`."""


class Share(Stored):
    """What one Parquet file holds of one source."""

    rows: int = 0
    places: tuple[str, ...] = ()
    """Digests of its uris."""
    licence: str | None = None
    origin: str | None = None
    clips: tuple[str, ...] = ()
    objects: dict[str, int] = Field(default_factory=dict)
    """Keys of its clips in the store, and their bytes."""


class Withdrawal(Stored):
    """Why one object is gone."""

    source: str
    """Source whose take-down withdrew it."""
    size_bytes: int
    shares: dict[str, Share] = Field(default_factory=dict)
    """Parquet files: what they held, by source."""
    instead: FileRef | None = None
    """Listings: the file with the rows of all other sources."""


def address_digest(uri: str, etag: str) -> str:
    """Return what is remembered of a file at an address in one state."""
    return digest_json([uri, etag])


def place_digest(uri: str) -> str:
    """Return what is remembered of an address, whatever was there."""
    return digest_json([uri])


def find_tombstone(ledger: Ledger, source: str) -> Tombstone | None:
    """Return a source's tombstone, None if it was never taken down."""
    record = ledger.read(tombstone_key(source))
    return Tombstone.model_validate(record) if record is not None else None


def withdrawn_sources(ledger: Ledger) -> frozenset[str]:
    """Return the SHA-256 of every source that was taken down."""
    keys = ledger.list(TOMBSTONES_PREFIX)
    return frozenset(key.removeprefix(TOMBSTONES_PREFIX).removesuffix(".json") for key in keys)


def withdrawn_addresses(ledger: Ledger) -> frozenset[str]:
    """Return digests of where the taken-down sources were found."""
    stones = (find_tombstone(ledger, source) for source in withdrawn_sources(ledger))
    return frozenset(address for stone in stones if stone for address in stone.addresses)


def reject_withdrawn_sources(ledger: Ledger, table: pa.Table, where: str) -> None:
    """Refuse rows of a taken-down source: a run that began before must not bring them back.

    Raises:
        WithdrawnError: names the source.
    """
    if SOURCE_COLUMN in table.column_names:
        found = withdrawn_sources(ledger) & set(table[SOURCE_COLUMN].unique().to_pylist())
        if found:
            what = f"has rows of source {min(found)}, which was taken down"
            raise WithdrawnError(where, what, "run the pipeline again: it goes on without them")


def find_withdrawal(ledger: Ledger, key: str) -> Withdrawal | None:
    """Return why an object is gone, None if no take-down withdrew it."""
    record = ledger.read(withdrawal_key(key))
    return Withdrawal.model_validate(record) if record is not None else None


def withdrawn_keys(ledger: Ledger, prefix: str) -> frozenset[str]:
    """Return the withdrawn keys under a prefix."""
    notes = ledger.list(WITHDRAWN_PREFIX + prefix)
    return frozenset(key.removeprefix(WITHDRAWN_PREFIX).removesuffix(".json") for key in notes)


def shares_of(objects: ObjectStore, file: FileRef) -> dict[str, Share]:
    """Read what a Parquet file holds of each source; nothing if its rows name none."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in read_file(objects, file, [SOURCE_COLUMN, *_COLUMNS]).to_pylist():
        if row.get(SOURCE_COLUMN) is not None:
            rows.setdefault(row[SOURCE_COLUMN], []).append(row)
    return {source: _share(own) for source, own in rows.items()}


def _share(rows: list[dict[str, Any]]) -> Share:
    uris = {row.get("source_uri") or row.get("uri") for row in rows}
    return Share(
        rows=len(rows),
        places=tuple(sorted(place_digest(uri) for uri in uris if uri)),
        licence=rows[0].get("licence"),
        origin=rows[0].get("origin"),
        clips=tuple(row["clip_id"] for row in rows if row.get("clip_id")),
        objects={row["video_key"]: row["video_size_bytes"] for row in rows if row.get("video_key")},
    )


def holding(objects: ObjectStore, ledger: Ledger, source: str) -> Iterator[tuple[str, Withdrawal]]:
    """Yield every Parquet file that holds rows of a source, or did, committed or not."""
    noted = withdrawn_keys(ledger, TABLES_PREFIX)
    for key in sorted(noted):
        note = find_withdrawal(ledger, key)
        if note is not None and source in note.shares:
            yield key, note
    for file in data_files(objects):
        if file.key not in noted:
            ids = read_file(objects, file, [SOURCE_COLUMN])
            if ids.num_columns and source in ids[SOURCE_COLUMN].unique().to_pylist():
                shares = shares_of(objects, file)
                yield file.key, Withdrawal(source=source, size_bytes=file.size_bytes, shares=shares)


def listings(objects: ObjectStore) -> Iterator[tuple[FileRef, list[tuple[str, str]]]]:
    """Yield every file of a listing, committed or not, with the uris and etags in it."""
    for file in data_files(objects):
        rows = read_file(objects, file, list(ADDRESS_COLUMNS))
        if rows.column_names == list(ADDRESS_COLUMNS):
            yield file, [(row["uri"], row["etag"]) for row in rows.to_pylist()]


def data_files(objects: ObjectStore) -> Iterator[FileRef]:
    """Yield the Parquet files of all datasets: of snapshots, and of work that was never committed.

    The one place that lists data instead of reading a log: what nobody sees must go as well.
    """
    for info in objects.list(TABLES_PREFIX):
        sha256 = data_sha256(info.key)
        if sha256 is not None:
            yield FileRef(key=info.key, sha256=sha256, size_bytes=info.size_bytes)
