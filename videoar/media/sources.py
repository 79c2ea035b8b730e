"""List the files of a raw input as rows of `sources@1`.

Every file gets a row, whatever its name or kind: ingest rejects what is no video, with a row of its
own, so that no file disappears without a reason. Local files have percent-encoded `file://`
addresses: any name (newlines, bytes that are no UTF-8) is then valid text and can be opened again.

A video may be a link to a file elsewhere, because its content is checked before it is decoded. A
caption may not: the text of any file that this user can read would be copied into the store.
"""

import csv
import io
import logging
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.contracts.names import SOURCES
from videoar.core.errors import ConfigError
from videoar.core.settings import settings
from videoar.media import synthetic
from videoar.media.fetch import bucket_and_key
from videoar.storage.s3_store import S3ObjectStore

logger = logging.getLogger(__name__)
LABELS = "labels.csv"
_NOT_SOURCES = {LABELS, "manifest.csv", "expected.csv"}
_VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".flv", ".ts", ".mpg", ".mpeg", ".3gp"}
_SIDECAR_BYTES = 64 << 10
_LABEL_COLUMNS = {"label", "label_text", "split", "group"}
_LABEL_COLUMNS |= {"licence", "license", "origin", "source"}


@dataclass(frozen=True)
class _File:
    """One listed file, with a function that reads its bytes."""

    uri: str
    name: str
    etag: str
    size_bytes: int
    read: Callable[[], bytes]
    is_regular: bool = True


def list_sources(url: str) -> pa.Table:
    """List a raw input, sorted by uri.

    Labels come from `labels.csv` in its top folder (columns `file`, `label` and optionally
    `label_text`, `split`, `group`, `licence` or `license`, `origin` or `source`), or else from
    folder names. A small text file beside a video (`<stem>.txt`) is its caption.

    Args:
        url: folder path, `file://`, `s3://bucket/prefix` or `rendered://shapes?num_videos=..`.

    Returns:
        Rows of `sources@1`.

    Raises:
        ConfigError: the input is empty or unreadable, or `labels.csv` is invalid.
    """
    if url.startswith(synthetic.SCHEME):
        rows = synthetic.list_synthetic(url)
    else:
        files = list(_list_s3(url) if url.startswith("s3://") else _list_folder(_folder(url)))
        rows = _rows(url, files)
    if not rows:
        raise ConfigError(url, "has no files", "give a folder with videos")
    rows.sort(key=lambda row: str(row["uri"]))
    contract = load_contract(SOURCES)
    return contract.conform(pa.Table.from_pylist(rows, contract.arrow_schema), url)


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
    path = _path(url)
    if not path.is_file():  # reading a pipe would block forever
        raise ConfigError(str(path), "is not a file" if path.exists() else "no such file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from error


def _path(url: str) -> Path:
    if "://" in url and not url.startswith("file://"):
        hint = "use a folder, file://, s3:// or rendered://"
        raise ConfigError(url, "unknown kind of input", hint)
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(url).path)) if "://" in url else url)


def _folder(url: str) -> Path:
    folder = _path(url)
    if not folder.exists():
        raise ConfigError(str(folder), "no such folder")
    if not folder.is_dir():
        raise ConfigError(str(folder), "not a folder", "give the folder that contains it")
    return folder.absolute()


def _list_folder(root: Path) -> Iterator[_File]:
    def fail(error: OSError) -> None:
        raise ConfigError(str(error.filename), error.strerror or str(error)) from error

    # without onerror, os.walk skips unreadable folders silently
    for folder, subfolders, names in os.walk(root, onerror=fail):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        # a folder named like a video is listed, and rejected as no regular file
        misnamed = [name for name in subfolders if Path(name).suffix.lower() in _VIDEO_SUFFIXES]
        for name in (*names, *misnamed):
            if not name.startswith("."):
                yield _local_file(root, os.path.join(folder, name))


def _local_file(root: Path, path: str) -> _File:
    # plain strings: Path takes most of the time of a large listing
    try:
        status = os.stat(path)
    except OSError:
        status = os.lstat(path)  # of a broken link, the link itself
    is_regular = stat.S_ISREG(status.st_mode)
    return _File(
        uri="file://" + quote(os.fsencode(path)),
        name=_name(os.fsencode(path.removeprefix(str(root)).lstrip("/"))),
        etag=f"{status.st_size}-{status.st_mtime_ns}",
        size_bytes=status.st_size if is_regular else 0,
        read=partial(_read_inside, root, path),
        is_regular=is_regular,
    )


def _read_inside(root: Path, path: str) -> bytes:
    """Read a text file of the input; fail if it is a link to a file outside."""
    real = Path(path).resolve()
    if not real.is_relative_to(root.resolve()):
        hint = "replace the link by the file, or remove it"
        raise ConfigError(path, "is a link to a file outside the input folder", hint)
    return real.read_bytes()


def _name(raw: bytes) -> str:
    """Return a file name as text; different names give different texts, because names are keys.

    Names that are not UTF-8 are escaped. They get the prefix `./`, which no listed name has, so
    that the escaped form cannot equal the name of another file.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "./" + raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def _list_s3(url: str) -> Iterator[_File]:
    bucket, key = bucket_and_key(url)
    prefix = key.rstrip("/")
    objects = S3ObjectStore(bucket, prefix, settings().s3_endpoint)
    for info in objects.list(""):
        if not PurePosixPath(info.key).name.startswith(".") and not info.key.endswith("/"):
            yield _File(
                uri=f"s3://{bucket}/{quote(f'{prefix}/{info.key}'.lstrip('/'))}",
                name=info.key,
                etag=info.etag,
                size_bytes=info.size_bytes,
                read=lambda key=info.key: objects.get(key),  # type: ignore[misc] # default argument
            )


def _rows(url: str, files: list[_File]) -> list[dict[str, Any]]:
    labels = _read_labels(url, files)
    captions = _read_sidecars(files)
    caption_of = {_stem(name): text for name, text in captions.items()}
    rows = [
        _row(file, labels, caption_of.get(_stem(file.name)))
        for file in files
        if file.name.rpartition("/")[2] not in _NOT_SOURCES and file.name not in captions
    ]
    unknown = set(labels) - {str(row["name"]) for row in rows}
    if unknown:
        logger.warning("%s: %d labels have no file, e.g. %s", url, len(unknown), min(unknown))
    return rows


def _row(file: _File, labels: dict[str, dict[str, str]], sidecar: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {n: getattr(file, n) for n in ("uri", "name", "etag", "size_bytes")}
    folder = file.name.rpartition("/")[0].rpartition("/")[2]
    given = labels.get(file.name)
    if given:
        text = given.get("label_text") or given.get("label")
        row |= {key: given.get(key) for key in ("label", "split", "group")}
        row |= {"licence": given.get("licence") or given.get("license")}
        row |= {"origin": given.get("origin") or given.get("source")}
        row |= {"caption": text, "caption_source": "labels" if text else None}
    elif folder and not labels:
        row |= {"label": folder, "caption": folder.replace("_", " "), "caption_source": "folder"}
    if sidecar:
        row |= {"caption": sidecar, "caption_source": "sidecar"}
    return row


def _read_labels(url: str, files: list[_File]) -> dict[str, dict[str, str]]:
    """Read `labels.csv` from the top folder, if it exists; empty cells are left out."""
    for file in files:
        if file.name == LABELS:
            where = f"{url.rstrip('/')}/{LABELS}"
            if not file.is_regular:  # reading a pipe would block forever
                raise ConfigError(where, "not a regular file")
            try:
                reader = csv.DictReader(io.StringIO(file.read().decode("utf-8-sig")), strict=True)
                return dict(_label_lines(where, reader))
            except (UnicodeDecodeError, csv.Error) as error:
                raise ConfigError(where, f"is not a CSV file in UTF-8: {error}") from error
            except OSError as error:
                raise ConfigError(where, error.strerror or str(error)) from error
    return {}


def _label_lines(where: str, reader: "csv.DictReader[str]") -> Iterator[tuple[str, dict[str, str]]]:
    if "file" not in (reader.fieldnames or ()):
        hint = "add it, with paths relative to the input folder"
        raise ConfigError(where, "has no column `file`", hint)
    for line in reader:
        given = {key: text for key, text in line.items() if key in _LABEL_COLUMNS and text}
        if given.get("split", "train") not in {"train", "val"}:
            what = f"line {reader.line_num}: split {given['split']} is unknown"
            raise ConfigError(where, what, "use train or val")
        yield line["file"], given


def _read_sidecars(files: list[_File]) -> dict[str, str]:
    """Return captions from text files, by the names of these files."""
    videos = {_stem(file.name) for file in files if not _is_txt(file)}
    return {
        file.name: text
        for file in files
        if _is_txt(file) and _stem(file.name) in videos and (text := _small_text(file)) is not None
    }


def _is_txt(file: _File) -> bool:
    return file.name.lower().endswith(".txt")


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _small_text(file: _File) -> str | None:
    """Return the text of a caption file, None if the file is no caption."""
    if not file.is_regular or file.size_bytes > _SIDECAR_BYTES:
        return None
    try:
        text = file.read().decode("utf-8-sig")
    except ConfigError as error:
        logger.warning("%s; not used as a caption", error)
        return None
    except (UnicodeDecodeError, OSError):
        return None
    # NUL bytes: a binary file that happens to decode
    return None if "\0" in text else " ".join(text.split())
