"""List the files of a raw input as rows of `sources@1`.

Every file gets a row, whatever its name or kind: ingest rejects what is no video, with a row of its
own, so that no file disappears without a reason (`listing` has what is left out).

A video may be a link to a file elsewhere, because its content is checked before it is decoded. A
caption may not: the text of any file that this user can read would be copied into the store.

Files are sorted, and matched with labels and captions, in a private database of SQLite. It is in
memory while it is small, and then in a file without a name: whatever the number of files, memory
holds `_CACHE_KIB` of it, and a kill leaves nothing behind.
"""

import logging
import posixpath
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pyarrow as pa

from videoar.contracts.contract import Contract, load_contract
from videoar.contracts.names import SOURCES
from videoar.core.errors import ConfigError, DiskError
from videoar.core.prefetch import concurrently
from videoar.core.settings import settings
from videoar.media import synthetic
from videoar.media.fetch import bucket_and_key
from videoar.media.labels import match, read_labels
from videoar.media.listing import ListedFile, Place, local_path, open_place
from videoar.storage.s3_store import S3ObjectStore

logger = logging.getLogger(__name__)
LABELS = "labels.csv"
_NOT_SOURCES = {LABELS, "manifest.csv", "expected.csv"}
_SIDECAR_BYTES = 64 << 10
_CACHE_KIB = 32 << 10  # chosen: with 8 MiB, a million files take a tenth more CPU time
_BATCH = 4_000  # chosen: rows as Python objects, a few MB

_TABLES = f"""
PRAGMA page_size = 16384;
PRAGMA cache_size = -{_CACHE_KIB};
PRAGMA journal_mode = OFF;
PRAGMA secure_delete = OFF;
CREATE TABLE listed (
    uri TEXT, name TEXT, etag TEXT, size_bytes INTEGER, is_regular INTEGER, folder TEXT
);
CREATE TABLE files (
    number INTEGER PRIMARY KEY,
    uri TEXT, name TEXT, etag TEXT, size_bytes INTEGER, is_regular INTEGER, folder TEXT
);
CREATE TABLE labels (
    number INTEGER PRIMARY KEY, line INTEGER, label TEXT, label_text TEXT, split TEXT, "group" TEXT,
    licence TEXT, origin TEXT
);
CREATE TABLE texts (stem TEXT PRIMARY KEY, number INTEGER, text TEXT) WITHOUT ROWID;
CREATE TABLE captions (number INTEGER PRIMARY KEY, text TEXT);
"""
# a folder that changes meanwhile may list a file twice
_SORT = """
INSERT INTO files SELECT NULL, * FROM listed GROUP BY uri ORDER BY uri;
DROP TABLE listed;
"""
_TEXTS = """
SELECT uri, name, etag, size_bytes, max(number) FROM files
WHERE is_text(name) AND is_regular AND size_bytes <= ?
GROUP BY stem(name) HAVING stem(name) IN (SELECT stem(name) FROM files WHERE NOT is_text(name))
"""
_SIDECARS = """
INSERT INTO captions SELECT files.number, text FROM files JOIN texts ON stem = stem(name)
WHERE text <> ''
"""
_LABELLED = """
CREATE VIEW labelled AS SELECT number, label, coalesce(label_text, label) AS caption,
    'labels' AS source, split, "group", licence, origin FROM labels
"""
_BY_FOLDER = """
CREATE VIEW labelled AS SELECT number, folder AS label, replace(folder, '_', ' ') AS caption,
    'folder' AS source,
    NULL AS split, NULL AS "group", NULL AS licence, NULL AS origin FROM files
"""
_ROWS = """
SELECT uri, files.name, etag, size_bytes, label, coalesce(text, caption) AS caption,
    CASE WHEN text IS NOT NULL THEN 'sidecar' WHEN caption IS NOT NULL THEN source END,
    "group", split, licence, origin
FROM files LEFT JOIN labelled USING (number) LEFT JOIN captions USING (number)
WHERE number NOT IN (SELECT number FROM texts) ORDER BY number
"""


def list_sources(url: str) -> Iterator[pa.Table]:
    """List a raw input: yield its rows of `sources@1`, a few thousand each, sorted by uri.

    Labels come from `labels.csv` in its top folder (column `file` and any other field of
    `labels.Label`), or else from folder names. A small text file beside a video (`<stem>.txt`) is
    its caption.

    Args:
        url: folder path, `file://`, `s3://bucket/prefix` or `rendered://shapes?num_videos=..`.

    Raises:
        ConfigError: the input is empty or unreadable, or `labels.csv` is invalid.
        DiskError: there is too little space for temporary files.
    """
    contract = load_contract(SOURCES)
    if url.startswith(synthetic.SCHEME):
        table = pa.Table.from_pylist(synthetic.list_synthetic(url), contract.arrow_schema)
        yield contract.conform(table.sort_by("uri"), url)
        return
    place = open_place(url)
    try:
        with closing(_database()) as db:
            labels = _list(place, db)
            if not db.execute("SELECT 1 FROM files").fetchone():
                raise ConfigError(url, "has no files", "give a folder with videos")
            _read_captions(place, db)
            is_labelled = labels is not None and _match_labels(url, place, labels, db)
            db.execute(_LABELLED if is_labelled else _BY_FOLDER)
            yield from _tables(db, contract)
    except sqlite3.DatabaseError as error:
        # without TMPDIR, SQLite takes /var/tmp before /tmp
        raise DiskError("temporary files", str(error), "free some space, or set TMPDIR") from error


def read_input(url: str) -> bytes:
    """Return the content of an input that is one file: a path, `file://` or `s3://`.

    Raises:
        ConfigError: there is no such file.
        StorageError: the bucket does not answer.
    """
    if url.startswith("s3://"):
        bucket, key = bucket_and_key(url)
        data = S3ObjectStore(bucket, "", settings().s3_endpoint).find(key)
        if data is None:
            raise ConfigError(url, "no such file")
        return data
    path = local_path(url)
    if not path.is_file():  # reading a pipe would block forever
        raise ConfigError(str(path), "is not a file" if path.exists() else "no such file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from error


def _database() -> sqlite3.Connection:
    # a generator that is not used up may be closed by another thread
    db = sqlite3.connect("", check_same_thread=False)
    db.executescript(_TABLES)
    for function in (_is_text, _stem):
        db.create_function(function.__name__.lstrip("_"), 1, function, deterministic=True)
    return db


def _list(place: Place, db: sqlite3.Connection) -> ListedFile | None:
    """Fill the table of files; return the file of labels."""
    labels: list[ListedFile] = []

    def sources() -> Iterator[tuple[str | int | None, ...]]:
        for file in place.files():
            if file.name == LABELS:
                labels.append(file)
            folder, name = posixpath.split(file.name)
            if name not in _NOT_SOURCES:
                yield (*file, folder.rpartition("/")[2] or None)

    db.executemany("INSERT INTO listed VALUES (?, ?, ?, ?, ?, ?)", sources())
    db.executescript(_SORT)
    return labels[0] if labels else None


def _match_labels(url: str, place: Place, labels: ListedFile, db: sqlite3.Connection) -> bool:
    """Fill the table of labels; return whether the file has any line."""
    where = f"{url.rstrip('/')}/{LABELS}"
    if not labels.is_regular:  # reading a pipe would block forever
        raise ConfigError(where, "not a regular file")
    try:
        return match(where, read_labels(where, place.open(labels)), db)
    except OSError as error:
        raise ConfigError(where, error.strerror or str(error)) from error


def _read_captions(place: Place, db: sqlite3.Connection) -> None:
    """Fill the tables of text files that are captions, and of the captions of other files."""
    texts = ((ListedFile(*file), number) for *file, number in db.execute(_TEXTS, [_SIDECAR_BYTES]))
    first, num_links, num_texts = "", 0, 0
    # on S3 one by one would take minutes; threads gain nothing from a page cache
    threads = 1 if place.is_local else 16
    for (file, number), text in concurrently(partial(_small_text, place), texts, threads):
        if isinstance(text, ConfigError):
            first, num_links = min(first or str(text), str(text)), num_links + 1
        elif text is not None:
            db.execute("INSERT INTO texts VALUES (?, ?, ?)", (_stem(file.name), number, text))
            num_texts += 1
    if num_texts:
        db.execute(_SIDECARS)
    if num_links:
        logger.warning("%s; %d such texts are not used as captions", first, num_links)


def _tables(db: sqlite3.Connection, contract: Contract) -> Iterator[pa.Table]:
    rows = db.execute(_ROWS)
    while batch := rows.fetchmany(_BATCH):
        columns = zip(contract.arrow_schema, zip(*batch, strict=True), strict=True)
        arrays = [pa.array(values, field.type) for field, values in columns]
        yield pa.Table.from_arrays(arrays, schema=contract.arrow_schema)


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _small_text(place: Place, text: tuple[ListedFile, int]) -> str | ConfigError | None:
    """Return the text of a caption file, None if the file is no caption; or why it is not used."""
    try:
        with place.open(text[0]) as opened:
            words = opened.read().decode("utf-8-sig")
    except ConfigError as error:
        return error
    except (UnicodeDecodeError, OSError):
        return None
    # NUL bytes: a binary file that happens to decode
    return None if "\0" in words else " ".join(words.split())
