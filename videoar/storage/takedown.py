"""Records of takedowns: a tombstone per source, a withdrawal record per removed object.

Both are create-once and have no content. Of addresses they have digests only: enough to recognize
an address, not enough to read it.

    forgotten/<sha256>.json   Tombstone: this source must not be ingested again
    withdrawn/<key>.json      Withdrawal: why an object was removed; for a Parquet file also the
                              shares of its sources, for lineage and later takedowns

A listing (`sources@1`) has rows of many sources. It is rewritten without the withdrawn one, and its
withdrawal record points readers to the replacement.
"""

import re
from base64 import b64encode
from collections.abc import Collection, Iterable, Iterator, Sequence

import pyarrow as pa
from pydantic import ConfigDict, Field

from videoar.core.errors import WithdrawnError
from videoar.core.ids import digest_json
from videoar.core.prefetch import concurrently
from videoar.core.types import FileRef, Row, Stored
from videoar.storage import layout
from videoar.storage.ledger import Ledger
from videoar.storage.object_store import ObjectStore
from videoar.storage.reader import read_file

SOURCE_COLUMN = "source_id"
ADDRESS_COLUMNS = ("uri", "etag")
_VIDEO = "video_key"
_MARK_CHARS = 6
_DIGEST = re.compile("[0-9a-f]{64}")
# whichever of these a table has: clips, rejects and listings differ
_COLUMNS = ("clip_id", "licence", "origin", "source_uri", "uri", "video_key", "video_size_bytes")


class Tombstone(Stored):
    """One source that must not be ingested again."""

    source: str
    """SHA-256 of the file."""
    reason: str
    time: str
    addresses: tuple[str, ...]
    """Addresses under which it was listed, see `address_digest`."""


class Share(Stored):
    """Content of one source in one Parquet file."""

    rows: int = 0
    places: tuple[str, ...] = ()
    """Its URIs, see `place_digest`."""
    licence: str | None = None
    origin: str | None = None
    clips: tuple[str, ...] = ()
    objects: dict[str, int] = Field(default_factory=dict)
    """Keys of its clips in the store, and their sizes in bytes."""


class Withdrawal(Stored):
    """Why one object was removed."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    source: str
    """Source whose takedown removed it."""
    size_bytes: int
    shares: dict[str, Share] = Field(default_factory=dict)
    """Of a Parquet file: what it held, by source."""
    replacement: FileRef | None = Field(default=None, alias="instead")
    """Of a listing: the file with the rows of all other sources. `instead` in stored records."""


def address_digest(uri: str, etag: str) -> str:
    """Return the digest of an address with one state of its content."""
    return digest_json([uri, etag])


def place_digest(uri: str) -> str:
    """Return the digest of an address, whatever its content is."""
    return digest_json([uri])


def find_tombstone(ledger: Ledger, source: str) -> Tombstone | None:
    """Return the tombstone of a source, None if it was not withdrawn."""
    record = ledger.read(layout.tombstone_key(source))
    return Tombstone.model_validate(record) if record is not None else None


def withdrawn_sources(ledger: Ledger) -> frozenset[str]:
    """Return the SHA-256 of all withdrawn sources."""
    return _names(ledger, layout.TOMBSTONES_PREFIX)


def withdrawn_addresses(ledger: Ledger) -> frozenset[str]:
    """Return the address digests of all withdrawn sources."""
    tombstones = (find_tombstone(ledger, source) for source in withdrawn_sources(ledger))
    return frozenset(address for stone in tombstones if stone for address in stone.addresses)


def reject_withdrawn_sources(ledger: Ledger, table: pa.Table, where: str) -> None:
    """Raise if rows belong to a withdrawn source: a run that began before must not re-add them.

    Raises:
        WithdrawnError: names the source.
    """
    if SOURCE_COLUMN in table.column_names:
        sources = withdrawn_sources(ledger) & set(table[SOURCE_COLUMN].unique().to_pylist())
        if sources:
            what = f"has rows of source {min(sources)}, which was withdrawn"
            raise WithdrawnError(where, what, "run the pipeline again, it omits the source")


def find_withdrawal(ledger: Ledger, key: str) -> Withdrawal | None:
    """Return the withdrawal record of an object, None if it was not withdrawn."""
    record = ledger.read(layout.withdrawal_key(key))
    return Withdrawal.model_validate(record) if record is not None else None


def withdrawn_keys(ledger: Ledger, prefix: str) -> frozenset[str]:
    """Return the keys under a prefix that were withdrawn."""
    return _names(ledger, layout.WITHDRAWN_PREFIX, prefix)


def _names(ledger: Ledger, prefix: str, start: str = "") -> frozenset[str]:
    """Return the names of the records under a prefix that begin with `start`."""
    keys = ledger.list(prefix + start)
    return frozenset(key.removeprefix(prefix).removesuffix(".json") for key in keys)


def shares_of(objects: ObjectStore, file: FileRef) -> dict[str, Share]:
    """Return the share of each source in a Parquet file; empty if its rows name no source."""
    rows: dict[str, list[Row]] = {}
    for row in read_file(objects, file, [SOURCE_COLUMN, *_COLUMNS]).to_pylist():
        if row.get(SOURCE_COLUMN) is not None:
            rows.setdefault(row[SOURCE_COLUMN], []).append(row)
    return {source: _share(of_source) for source, of_source in rows.items()}


def _share(rows: list[Row]) -> Share:
    # clips have source_uri, rejects have uri
    uris = {row.get("source_uri") or row.get("uri") for row in rows}
    return Share(
        rows=len(rows),
        places=tuple(sorted(place_digest(uri) for uri in uris if uri)),
        licence=rows[0].get("licence"),
        origin=rows[0].get("origin"),
        clips=tuple(row["clip_id"] for row in rows if row.get("clip_id")),
        objects={row["video_key"]: row["video_size_bytes"] for row in rows if row.get("video_key")},
    )


def marks_of(table: pa.Table) -> str | None:
    """Return marks of the sources and stored videos that rows name; None: they name others, too.

    Of a listing, marks of the addresses. A mark is 36 bits of a digest in 6 characters: a takedown
    reads the few files that have it.
    """
    if _is_listing(table):
        addresses = zip(*(table[name].to_pylist() for name in ADDRESS_COLUMNS), strict=True)
        return "".join(sorted({_mark(address_digest(*address)) for address in addresses}))
    names = [name for name in (SOURCE_COLUMN, _VIDEO) if name in table.column_names]
    values = {value for name in names for value in table[name].unique().to_pylist() if value}
    digests = {value: layout.object_sha256(value) or value for value in values}.values()
    if not all(map(_DIGEST.fullmatch, digests)):
        return None
    return "".join(sorted(set(map(_mark, digests))))


def _mark(digest: str) -> str:
    return b64encode(bytes.fromhex(digest[:12]))[:_MARK_CHARS].decode()


def may_have(file: FileRef, digests: Iterable[str]) -> bool:
    """Return whether rows of a file may name any of these sources, videos or addresses."""
    if file.marks is None:
        return True
    marks = {file.marks[i : i + _MARK_CHARS] for i in range(0, len(file.marks), _MARK_CHARS)}
    return not marks.isdisjoint(map(_mark, digests))


def files_of_source(
    objects: ObjectStore, ledger: Ledger, source: str, files: Iterable[FileRef]
) -> Iterator[tuple[str, Withdrawal]]:
    """Yield key and withdrawal record of every Parquet file with rows of a source.

    Files that were withdrawn before come with their stored record, others with the record to
    create. Files that no commit names are included.

    Args:
        objects: the store.
        ledger: of the store.
        source: its SHA-256.
        files: of all tables.
    """
    withdrawn = withdrawn_keys(ledger, layout.TABLES_PREFIX)
    # sorted: the output of `forget` is stable
    for key in sorted(withdrawn):
        record = find_withdrawal(ledger, key)
        if record is not None and source in record.shares:
            yield key, record
    present = (f for f in files if f.key not in withdrawn and may_have(f, [source]))
    for file, ids in read_each(objects, present, [SOURCE_COLUMN]):
        if ids.num_columns and source in ids[SOURCE_COLUMN].unique().to_pylist():
            shares = shares_of(objects, file)
            yield file.key, Withdrawal(source=source, size_bytes=file.size_bytes, shares=shares)


def _is_listing(table: pa.Table) -> bool:
    return set(ADDRESS_COLUMNS) <= set(table.column_names)  # only listings have both


def listings(
    objects: ObjectStore, files: Iterable[FileRef], addresses: Collection[str]
) -> Iterator[tuple[FileRef, list[tuple[str, str]]]]:
    """Yield the files that are listings and may have an address, with their URIs and ETags."""
    # "": of earlier versions, which marked no addresses
    possible = (file for file in files if not file.marks or may_have(file, addresses))
    for file, rows in read_each(objects, possible, ADDRESS_COLUMNS):
        if _is_listing(rows):
            yield file, [(row["uri"], row["etag"]) for row in rows.to_pylist()]


def read_each(
    objects: ObjectStore, files: Iterable[FileRef], columns: Sequence[str]
) -> Iterator[tuple[FileRef, pa.Table]]:
    """Yield files with those of the columns that they have; concurrently from a remote store."""
    threads = 1 if objects.is_local else 16
    yield from concurrently(lambda file: read_file(objects, file, columns), files, threads)


def data_files(objects: ObjectStore) -> Iterator[FileRef]:
    """Yield the Parquet files of all datasets, also those that no commit names.

    The only function that lists data instead of reading a log: a takedown must include the files
    of runs that were killed before their commit.
    """
    for info in objects.list(layout.TABLES_PREFIX):
        sha256 = layout.data_sha256(info.key)
        if sha256 is not None:
            yield FileRef(key=info.key, sha256=sha256, size_bytes=info.size_bytes)
