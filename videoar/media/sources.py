"""List what lies under a raw input.

Every file gets a row, however odd its name or kind: what cannot be a video is refused later, with a
row of its own, never by being overlooked. Local files have percent-encoded `file://` addresses, so
that any name (newlines, bytes that are no UTF-8) is valid text and can be opened again.

A video may be a link to anywhere: what is no video is refused by its content. A text may not leave
the input, since any file's text would pass as a caption and be copied into the store.
"""

import csv
import io
import logging
import os
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
    """One listed file: how it is named, and how its bytes are read if they are needed here."""

    uri: str
    name: str
    etag: str
    size_bytes: int
    read: Callable[[], bytes]
    is_regular: bool = True


def list_sources(url: str) -> pa.Table:
    """List a raw input, sorted by uri.

    Labels come from a `labels.csv` at its top (columns `file`, `label` and optionally `label_text`,
    `split`, `group`, `licence` or `license`, `origin` or `source`), else from folder names;
    captions also from small text files beside a video (`<stem>.txt`).

    Args:
        url: folder path, `file://`, `s3://bucket/prefix` or `rendered://shapes?num_videos=..`.

    Returns:
        Rows of `sources@1`.

    Raises:
        ConfigError: nothing there, no permission, or a `labels.csv` that cannot be used.
    """
    if url.startswith("rendered://"):
        rows = synthetic.list_synthetic(url)
    else:
        files = list(_list_s3(url) if url.startswith("s3://") else _list_folder(_folder(url)))
        rows = _rows(url, files)
    if not rows:
        raise ConfigError(url, "no files", "point the input at a folder of videos")
    rows.sort(key=lambda row: str(row["uri"]))
    contract = load_contract(SOURCES)
    return contract.conform(pa.Table.from_pylist(rows, contract.arrow_schema), url)


def _folder(url: str) -> Path:
    folder = Path(os.fsdecode(unquote_to_bytes(urlsplit(url).path)) if "://" in url else url)
    if "://" in url and not url.startswith("file://"):
        raise ConfigError(url, "unknown kind of input", "a folder, file://, s3:// or rendered://")
    if not folder.exists():
        raise ConfigError(str(folder), "no such folder")
    if not folder.is_dir():
        raise ConfigError(str(folder), "not a folder", "point the input at the folder around it")
    return folder.absolute()


def _list_folder(root: Path) -> Iterator[_File]:
    def refuse(error: OSError) -> None:
        raise ConfigError(str(error.filename), error.strerror or str(error)) from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        odd = [name for name in subfolders if Path(name).suffix.lower() in _VIDEO_SUFFIXES]
        for name in (*names, *odd):
            if not name.startswith("."):
                yield _local_file(root, Path(folder) / name)


def _local_file(root: Path, path: Path) -> _File:
    status = path.stat() if path.exists() else path.lstat()
    is_regular = path.is_file()
    return _File(
        uri="file://" + quote(os.fsencode(path)),
        name=_name(os.fsencode(path.relative_to(root))),
        etag=f"{status.st_size}-{status.st_mtime_ns}",
        size_bytes=status.st_size if is_regular else 0,
        read=partial(_read_inside, root, path),
        is_regular=is_regular,
    )


def _read_inside(root: Path, path: Path) -> bytes:
    """Read a text of the input; refuse one that is a link out of it."""
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        hint = "put the file itself there, or take the link away"
        raise ConfigError(str(path), "is a link that leads out of the input folder", hint)
    return real.read_bytes()


def _name(raw: bytes) -> str:
    """Return a name as text that no other name has, since names are keys.

    Names that are no UTF-8 are escaped and get `./` in front, as no listed name has by itself.
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
    rows = [
        _row(file, labels, captions)
        for file in files
        if PurePosixPath(file.name).name not in _NOT_SOURCES and file.name not in captions.texts
    ]
    unknown = set(labels) - {str(row["name"]) for row in rows}
    if unknown:
        logger.warning("%s: %d labels without a file, such as %s", url, len(unknown), min(unknown))
    return rows


def _row(file: _File, labels: dict[str, dict[str, str]], captions: "_Sidecars") -> dict[str, Any]:
    row: dict[str, Any] = {
        "uri": file.uri,
        "name": file.name,
        "etag": file.etag,
        "size_bytes": file.size_bytes,
    }
    folder = PurePosixPath(file.name).parent.name
    sidecar = captions.by_stem.get(_stem(file.name))
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
    """Read the `labels.csv` at the top of the input, if there is one; empty cells are absent."""
    for file in files:
        if file.name == LABELS:
            where = f"{url.rstrip('/')}/{LABELS}"
            if not file.is_regular:  # a pipe would be read for ever
                raise ConfigError(where, "not a regular file")
            try:
                reader = csv.DictReader(io.StringIO(file.read().decode("utf-8-sig")), strict=True)
                return dict(_label_lines(where, reader))
            except (UnicodeDecodeError, csv.Error) as error:
                raise ConfigError(where, f"not a CSV file in UTF-8: {error}") from error
            except OSError as error:
                raise ConfigError(where, error.strerror or str(error)) from error
    return {}


def _label_lines(where: str, reader: "csv.DictReader[str]") -> Iterator[tuple[str, dict[str, str]]]:
    if "file" not in (reader.fieldnames or ()):
        raise ConfigError(where, "no column `file`", "its paths are relative to the input")
    for line in reader:
        given = {key: text for key, text in line.items() if key in _LABEL_COLUMNS and text}
        if given.get("split", "train") not in {"train", "val"}:
            what = f"line {reader.line_num}: split is {given['split']}"
            raise ConfigError(where, what, "allowed: train, val")
        yield line["file"], given


@dataclass(frozen=True)
class _Sidecars:
    """Captions in text files, by path without suffix, and the names of these files."""

    by_stem: dict[str, str]
    texts: frozenset[str]


def _read_sidecars(files: list[_File]) -> _Sidecars:
    videos = {_stem(file.name) for file in files if not _is_txt(file)}
    found = {
        file.name: text
        for file in files
        if _is_txt(file) and _stem(file.name) in videos and (text := _small_text(file)) is not None
    }
    return _Sidecars({_stem(name): text for name, text in found.items()}, frozenset(found))


def _is_txt(file: _File) -> bool:
    return file.name.lower().endswith(".txt")


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _small_text(file: _File) -> str | None:
    """Return the text of a caption file, None if it is something else under that name."""
    if not file.is_regular or file.size_bytes > _SIDECAR_BYTES:
        return None
    try:
        text = file.read().decode("utf-8-sig")
    except ConfigError as error:
        logger.warning("%s; it is no caption", error)
        return None
    except (UnicodeDecodeError, OSError):
        return None
    return None if "\0" in text else " ".join(text.split())
