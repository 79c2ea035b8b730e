"""Bring one source here and name it by its bytes.

A network drive or a server that has died answers nothing, for ever, even to a question such as how
long a file is. So this runs in a child process that may be killed (`videoar.media.sandbox`), and it
tells how far it is: the deadline counts from one sign of life to the next.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from videoar.core.errors import MediaError, StorageError, TransientStorageError
from videoar.core.settings import settings
from videoar.media.probe import require_file

SOURCE = "source"
"""Name under which a source is found in the folder that it was fetched into: a harmless one."""
_PIECE_BYTES = 1 << 20
_SIGN_BYTES = 64 << 20  # chosen: with 300 s for each, 0.2 MB/s are fast enough


@dataclass(frozen=True)
class Fetched:
    """How far a source is; with its SHA-256 once it is here."""

    num_bytes: int
    sha256: str | None = None


def fetch(uri: str, into: Path) -> Iterator[Fetched]:
    """Make a source readable as `into / SOURCE`; yield signs of life, then what was fetched.

    Args:
        uri: `file://` or `s3://` address from `list_sources`. Local files are never copied nor
            changed, they get a link.
        into: existing, empty folder.

    Raises:
        MediaError: `IO_PERMANENT` (gone, or no regular file) or `EMPTY`.
        TransientStorageError: the store may answer later, or the disk may have room later.
    """
    path = into / SOURCE
    digest = hashlib.sha256()
    count = signs = 0
    for piece in _linked(uri, path) if uri.startswith("file://") else _downloaded(uri, path):
        digest.update(piece)
        count += len(piece)
        if count // _SIGN_BYTES > signs:
            signs = count // _SIGN_BYTES
            yield Fetched(count)
    require_file(path)
    yield Fetched(count, digest.hexdigest())


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Return the parts of an `s3://` address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, unquote(key)


def _linked(uri: str, path: Path) -> Iterator[bytes]:
    path.symlink_to(os.fsdecode(unquote_to_bytes(urlsplit(uri).path)))
    require_file(path)
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
    except OSError as error:
        raise MediaError(uri, "IO_PERMANENT", error.strerror or str(error)) from error


def _downloaded(uri: str, path: Path) -> Iterator[bytes]:
    from videoar.storage.s3_store import S3ObjectStore  # the decoding child has no use for it

    bucket, key = bucket_and_key(uri)
    try:
        with path.open("wb") as file:
            for piece in S3ObjectStore(bucket, "", settings().s3_endpoint).stream(key):
                file.write(piece)
                yield piece
    except OSError as error:
        raise TransientStorageError(str(path), error.strerror or str(error)) from error
    except StorageError as error:
        if error.retryable:
            raise
        raise MediaError(uri, "IO_PERMANENT", error.what) from error
