"""Fetch one source to a local path and identify it by its SHA-256.

An unreachable network drive or server may block any call forever, even `stat`. So this runs in a
child process that can be killed (`videoar.media.sandbox`), and reports progress: the deadline
applies to each report, not to the whole source, which may be of any size.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from videoar.core.errors import DiskError, MediaError, SourceChangedError, StorageError
from videoar.core.settings import settings
from videoar.media.probe import read_error, require_file

SOURCE = "source"
"""Name of the file in the folder that it is fetched into: it has nothing of the original name."""
_CHUNK_BYTES = 1 << 20
_REPORT_BYTES = 64 << 20  # chosen: at 300 s per report, 0.2 MB/s are fast enough


Identity = tuple[int, ...]
"""What tells one state of a file from another: see `identity`."""


@dataclass(frozen=True)
class Fetched:
    """Progress of a fetch; the last report has the SHA-256 and the identity of what was hashed."""

    num_bytes: int
    sha256: str | None = None
    identity: Identity | None = None


def identity(path: Path) -> Identity:
    """Return device, inode, size and times of the last change of a file.

    Raises:
        OSError: the file cannot be reached.
    """
    status = path.stat()
    # not the time of reading; the second time also shows a write whose writer reset the first
    return (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


def require_unchanged(path: Path, expected: Identity, name: str) -> None:
    """Check that a file is still the one that was hashed.

    Raises:
        MediaError: `IO_TRANSIENT`: it has been replaced or written to.
        SourceChangedError: its mode, owner or number of links has changed, as `chmod` or a
            backup does, which is no verdict on it; or it was written to and its time was reset.
        VideoARError: see `read_error`.
    """
    try:
        actual = identity(path)
    except OSError as error:
        raise read_error(path, error) from error
    if actual[:-1] == tuple(expected[:-1]) and actual != tuple(expected):
        what = "its mode, owner or links have changed while it was read"
        raise SourceChangedError(name, what, "run again")
    if actual != tuple(expected):
        what = "has changed while it was read: it is read again once it is complete"
        raise MediaError(name, "IO_TRANSIENT", what)


def fetch(uri: str, into: Path, report_bytes: int = _REPORT_BYTES) -> Iterator[Fetched]:
    """Make a source readable as `into / SOURCE`; yield progress reports, the last with its digest.

    Args:
        uri: `file://` or `s3://` address from `list_sources`. A local file is neither copied nor
            changed, only linked.
        into: existing, empty folder.
        report_bytes: bytes between two reports.

    Raises:
        MediaError: `IO_PERMANENT` (does not exist, or is no regular file), `EMPTY`, or
            `IO_TRANSIENT` (it was written to meanwhile).
        StorageError: access is denied; transient where the store is unavailable or a disk fails.
    """
    path = into / SOURCE
    digest = hashlib.sha256()
    count = reports = 0
    linked = _link(uri, path) if uri.startswith("file://") else None
    for chunk in _content(path) if linked else _downloaded(uri, path):
        digest.update(chunk)
        count += len(chunk)
        if count // report_bytes > reports:
            reports = count // report_bytes
            yield Fetched(count)
    require_file(path)
    if linked:
        require_unchanged(path, linked, uri)
    yield Fetched(count, digest.hexdigest(), linked or identity(path))


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of an `s3://` address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, unquote(key)


def _link(uri: str, path: Path) -> Identity:
    try:
        path.symlink_to(os.fsdecode(unquote_to_bytes(urlsplit(uri).path)))
        require_file(path)
        return identity(path)
    except OSError as error:
        raise read_error(path, error) from error


def _content(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise read_error(path, error) from error


def _downloaded(uri: str, path: Path) -> Iterator[bytes]:
    # imported here, because children that only decode do not need boto3
    from videoar.storage.s3_store import S3ObjectStore

    bucket, key = bucket_and_key(uri)
    objects = S3ObjectStore(bucket, "", settings().s3_endpoint)
    try:
        with path.open("wb") as file:
            for chunk in objects.stream(key):
                file.write(chunk)
                yield chunk
    except OSError as error:  # of the local disk: errors of the store are StorageErrors
        raise DiskError(str(path), error.strerror or str(error)) from error
    except StorageError as error:
        if error.retryable or objects.size(key) is not None:
            raise
        raise MediaError(uri, "IO_PERMANENT", error.what) from error
