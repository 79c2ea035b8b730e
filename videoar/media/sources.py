"""List the files of a raw input as rows of `sources@1`.

Every file gets a row, whatever its name or kind: ingest rejects what is no video, with a row of its
own, so that no file disappears without a reason (`listing` has what is left out).

A video may be a link to a file elsewhere, because its content is checked before it is decoded. A
caption may not: the text of any file that this user can read would be copied into the store.
"""

import logging
import posixpath
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice

import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.contracts.names import SOURCES
from videoar.core.errors import ConfigError
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
_BATCH = 1_000  # chosen: files as Python objects, which take ten times the memory of a row


def list_sources(url: str) -> pa.Table:
    """List a raw input, sorted by uri.

    Labels come from `labels.csv` in its top folder (column `file` and any of `labels.COLUMNS`), or
    else from folder names. A small text file beside a video (`<stem>.txt`) is its caption.

    Args:
        url: folder path, `file://`, `s3://bucket/prefix` or `rendered://shapes?num_videos=..`.

    Returns:
        Rows of `sources@1`. While they are listed, memory holds about 600 bytes per file.

    Raises:
        ConfigError: the input is empty or unreadable, or `labels.csv` is invalid.
    """
    contract = load_contract(SOURCES)
    if url.startswith(synthetic.SCHEME):
        table = pa.Table.from_pylist(synthetic.list_synthetic(url), contract.arrow_schema)
    else:
        table = _table(url, open_place(url))
    if not len(table):
        raise ConfigError(url, "has no files", "give a folder with videos")
    return contract.conform(table.sort_by("uri"), url)


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


def _table(url: str, place: Place) -> pa.Table:
    names: list[str] = []
    texts: list[ListedFile] = []
    tables: list[pa.Table] = []
    labels: ListedFile | None = None
    files = place.files()
    while batch := list(islice(files, _BATCH)):
        labels = next((file for file in batch if file.name == LABELS), labels)
        kept = [file for file in batch if posixpath.basename(file.name) not in _NOT_SOURCES]
        names += [file.name for file in kept]
        texts += filter(_may_be_caption, kept)
        tables.append(_addresses(kept))
    if not names:
        return _addresses([])
    captions = _captions(place, texts, names)
    columns = _labelled(url, place, labels, names) or _by_folder(names)
    by_stem = {_stem(name): text for name, text in captions.items()}
    for number, name in enumerate(names if by_stem else ()):
        if text := by_stem.get(_stem(name)):
            columns["caption"][number], columns["caption_source"][number] = text, "sidecar"
    table = pa.concat_tables(tables)
    for column, values in columns.items():
        table = table.append_column(column, pa.array(values, pa.string()))
    return table.filter(pa.array([name not in captions for name in names])) if captions else table


def _addresses(files: Sequence[ListedFile]) -> pa.Table:
    schema = load_contract(SOURCES).arrow_schema
    names = ("uri", "name", "etag", "size_bytes")
    columns = {name: [getattr(file, name) for file in files] for name in names}
    return pa.table(columns, schema=pa.schema([schema.field(name) for name in names]))


_Columns = dict[str, list[str | None]]


def _labelled(
    url: str, place: Place, labels: ListedFile | None, names: Sequence[str]
) -> _Columns | None:
    """Return the columns that `labels.csv` gives, None if there is none, or no line in it."""
    if labels is None:
        return None
    where = f"{url.rstrip('/')}/{LABELS}"
    if not labels.is_regular:  # reading a pipe would block forever
        raise ConfigError(where, "not a regular file")
    try:
        columns = match(where, read_labels(where, place.open(labels)), names)
    except OSError as error:
        raise ConfigError(where, error.strerror or str(error)) from error
    if columns is None:
        return None
    texts = columns.pop("label_text")
    captions = [text or label for text, label in zip(texts, columns["label"], strict=True)]
    sources = ["labels" if caption else None for caption in captions]
    return columns | {"caption": captions, "caption_source": sources}


def _by_folder(names: Sequence[str]) -> _Columns:
    """Return a label and a caption of each file: the name of its folder."""
    folders = [posixpath.basename(posixpath.dirname(name)) or None for name in names]
    return {
        "label": folders,
        "caption": [folder and folder.replace("_", " ") for folder in folders],
        "caption_source": [folder and "folder" for folder in folders],
    }


def _may_be_caption(file: ListedFile) -> bool:
    return _is_text(file.name) and file.is_regular and file.size_bytes <= _SIDECAR_BYTES


def _captions(place: Place, texts: Iterable[ListedFile], names: Sequence[str]) -> dict[str, str]:
    """Return captions from text files, by the names of these files."""
    by_stem = {_stem(file.name): file for file in texts}
    stems = {_stem(name) for name in names if by_stem and not _is_text(name)}
    files = [file for stem, file in by_stem.items() if stem in stems]
    links: list[ConfigError] = []
    captions: dict[str, str] = {}
    # on S3 one by one would take minutes; threads gain nothing from a page cache
    threads = 1 if place.is_local else 16
    for file, text in concurrently(partial(_small_text, place), files, threads):
        if isinstance(text, ConfigError):
            links.append(text)
        elif text is not None:
            captions[file.name] = text
    if links:
        first = min(map(str, links))
        logger.warning("%s; %d such texts are not used as captions", first, len(links))
    return captions


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _small_text(place: Place, file: ListedFile) -> str | ConfigError | None:
    """Return the text of a caption file, None if the file is no caption; or why it is not used."""
    try:
        with place.open(file) as opened:
            text = opened.read().decode("utf-8-sig")
    except ConfigError as error:
        return error
    except (UnicodeDecodeError, OSError):
        return None
    # NUL bytes: a binary file that happens to decode
    return None if "\0" in text else " ".join(text.split())
