"""Bytes under keys, and the one primitive that everything else rests on: put-if-absent.

Three stores share one protocol: a folder (hard link of a synced temporary file), S3 (one single
`PutObject` with `If-None-Match: *`) and a private temporary folder for tests. Nothing else is asked
of a store: no `If-Match`, no conditional delete, no conditional multipart completion, no versions,
because popular S3 servers lack or ignore them.
"""

import atexit
import contextlib
import errno
import fcntl
import io
import json
import os
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol, TypeVar

from videoar.core.crash_points import crash_point
from videoar.core.errors import ConfigError, StorageError, TransientStorageError, WithdrawnError

T = TypeVar("T")
MULTIPART_BYTES = 64 << 20
"""Plain puts above this size go up in parts."""
_PIECE_BYTES = 1 << 20
_BROKEN_S = 60.0
"""chosen: so long a body that breaks is asked for again."""
_LEFT_AFTER_S = 3600.0
"""chosen: no put takes as long; for file systems whose locks other machines do not see, and S3."""
NOTES = "withdrawn/"


@dataclass(frozen=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    size_bytes: int
    etag: str = ""
    """What the store says of the content, where it says anything."""


class ObjectStore(Protocol):
    """What the platform asks of a store. Keys are relative `a/b/c` paths."""

    url: str
    is_local: bool
    """Whether reading waits for no network."""

    def find(self, key: str) -> bytes | None:
        """Return an object's bytes, None if there is no such object."""
        ...

    def get(self, key: str) -> bytes:
        """Return an object's bytes.

        Raises:
            StorageError: there is no such object.
        """
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer at the end of the object."""
        ...

    def read_into(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> None:
        """Fill each piece of memory with the object's bytes from a position on.

        Raises:
            StorageError: there is no such object, or it ends too early.
        """
        ...

    def read_cached(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> bool:
        """Do what `read_into` does if all of it is in this machine's memory; else return False.

        Then the memory is partly filled. An object that ends too early counts as not there.

        Raises:
            StorageError: there is no such object.
        """
        ...

    def put(self, key: str, data: bytes | memoryview, *, if_absent: bool = False) -> bool:
        """Write an object whole or not at all; with `if_absent`, False means that it existed."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Write a file's content, as `put` does, without holding it in memory."""
        ...

    def size(self, key: str) -> int | None:
        """Return how many bytes an object has; None if there is none. No answer is an error."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose keys start with `prefix`, sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object; deleting nothing is no error."""
        ...

    def purge(self, key: str) -> None:
        """Delete an object with all of its older versions, where the store keeps them."""
        ...

    def purge_older(self, prefix: str) -> None:
        """Delete all but the newest versions of the objects whose keys start with `prefix`."""
        ...

    def sweep(self) -> None:
        """Remove what killed writers have left half-written, which no listing shows."""
        ...

    def location(self, key: str) -> str:
        """Return the address of a key for libraries that open the store by themselves."""
        ...

    def options(self) -> dict[str, str]:
        """Return what such a library must know besides the address (endpoint, credentials)."""
        ...


def put_content(objects: ObjectStore, key: str, data: bytes | memoryview) -> None:
    """Write an object whose key ends in its content hash: idempotent, in parts when big."""
    if not _is_kept(objects, key, len(data)):
        objects.put(key, data)


def put_content_of(objects: ObjectStore, key: str, path: Path) -> None:
    """Do what `put_content` does with a file, which is never whole in memory."""
    if not _is_kept(objects, key, path.stat().st_size):
        objects.put_file(key, path)


def _is_kept(objects: ObjectStore, key: str, size_bytes: int) -> bool:
    """Say whether a big object is there as a whole.

    A small one is written anew: it may be damaged, and asking costs as much as writing.
    """
    return size_bytes > MULTIPART_BYTES and objects.size(key) == size_bytes


def note_key(key: str) -> str:
    """Return the key under which a take-down notes that it withdrew an object."""
    return f"{NOTES}{key}.json"


def _missing(objects: ObjectStore, key: str) -> StorageError:
    """Say why an object is not there; asked only when it is not, so that reading costs no more."""
    where, note = f"{objects.url}/{key}", objects.find(note_key(key))
    if note is None:
        return StorageError(where, "no such object", "deleted, or never written to this store")
    source = json.loads(note)["source"]
    return WithdrawnError(
        where, f"withdrawn by the take-down of source {source}", "run its pipeline again"
    )


_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_WOULD_WAIT = {errno.EAGAIN, errno.EOPNOTSUPP}  # not cached; the file system cannot say
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)  # Linux alone has it
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK}


@contextlib.contextmanager
def _os_errors(path: Path | str) -> Iterator[None]:
    """Turn what the file system says into a `StorageError` that names the path."""
    try:
        yield
    except OSError as error:
        raise _told(error, path) from error


def _told(error: OSError, path: Path | str) -> StorageError:
    where = str(error.filename or path)
    if isinstance(error, PermissionError):
        return StorageError(where, "no permission", "choose another store or fix its rights")
    if error.errno in _DISK_FULL:
        return TransientStorageError(where, "disk full", "free some, then resume")
    hint = "the file system has no hard links" if error.errno in _NO_LINKS else ""
    return StorageError(where, error.strerror or str(error), hint)


def _fill(target: memoryview, read: Callable[[memoryview], int], where: object) -> None:
    """Read until memory is full.

    Raises:
        StorageError: the object ends before.
    """
    while target:
        count = read(target)
        if not count:
            what = "damaged: shorter than it was when it was committed"
            raise StorageError(str(where), what, "restore it from a copy")
        target = target[count:]


def _whole(body: Any) -> bytes:  # noqa: ANN401 - botocore has no types
    return body.read()  # type: ignore[no-any-return]


def _fill_from(target: memoryview, url: str, key: str, body: Any) -> None:  # noqa: ANN401 - same
    _fill(target, body.readinto, f"{url}/{key}")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class LocalObjectStore:
    """A folder. Durable: files and folders are synced before a put returns."""

    _TEMPORARY = ".tmp"
    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()
        self._has_swept = False

    def _path(self, key: str) -> Path:
        return Path(self._name(key))

    def _name(self, key: str) -> str:
        if key.startswith("/") or not key or {"", ".", ".."} & set(key.split("/")):
            raise ConfigError(key or "''", "not a store key", "keys are relative a/b/c paths")
        return f"{self.root}/{key}"

    def find(self, key: str) -> bytes | None:
        """Read the file, if it is there."""
        path = self._path(key)
        with _os_errors(path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def get(self, key: str) -> bytes:
        """Read the file."""
        data = self.find(key)
        if data is None:
            raise _missing(self, key)
        return data

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read a span of the file."""
        with self._reading(key) as handle:
            return os.pread(handle, length, start)

    def read_into(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> None:
        """Read spans of the file without a copy; one plain system call each."""
        with self._reading(key) as handle:
            for start, target in spans:
                count = os.preadv(handle, [target], start)
                if count != len(target):  # a signal came, or 2 GiB are full, or the end is near
                    os.lseek(handle, start + count, os.SEEK_SET)
                    where = f"{self.root}/{key}"
                    _fill(target[count:], lambda rest: os.readv(handle, [rest]), where)

    def read_cached(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> bool:
        """Read out of the page cache.

        Called so often that the context managers of the other methods would be a tenth of it.
        """
        if not _NO_WAIT:
            return False
        handle, path = -1, self._name(key)
        try:
            handle = os.open(path, os.O_RDONLY)
            for start, target in spans:
                if os.preadv(handle, [target], start, _NO_WAIT) != len(target):
                    return False
        except FileNotFoundError:
            raise _missing(self, key) from None
        except OSError as error:
            if error.errno in _WOULD_WAIT:
                return False
            raise _told(error, path) from error
        finally:
            if handle >= 0:
                os.close(handle)
        return True

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[int]:
        path = self._path(key)
        with _os_errors(path):
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                raise _missing(self, key) from None
            try:
                yield handle
            finally:
                os.close(handle)

    def put(self, key: str, data: bytes | memoryview, *, if_absent: bool = False) -> bool:
        """Sync a temporary file, then link (`if_absent`) or rename it to its place."""
        return self._publish(key, lambda file: file.write(data), if_absent)

    def put_file(self, key: str, path: Path) -> None:
        """Copy the file, then do as `put` does."""
        with path.open("rb") as source:
            self._publish(key, lambda file: shutil.copyfileobj(source, file, _PIECE_BYTES))

    def _publish(
        self, key: str, write: Callable[[BinaryIO], object], if_absent: bool = False
    ) -> bool:
        path = self._path(key)
        with _os_errors(path):
            self._make_folder(path.parent)
            with self._temporary(write) as temporary:
                crash_point("put.before_publish")
                try:
                    if if_absent:
                        os.link(temporary, path)
                    else:
                        temporary.rename(path)
                except FileExistsError:
                    return False
            _sync_folder(path.parent)
        return True

    @contextlib.contextmanager
    def _temporary(self, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
        """Yield a synced file as `write` fills it, which afterwards is gone from where it was."""
        if not self._has_swept:
            self._has_swept = True
            self._sweep(_LEFT_AFTER_S)
        temporary, file = self._locked()
        with file:
            try:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    def _locked(self) -> tuple[Path, BinaryIO]:
        """Make a file with a lock that the kernel takes from us when we die."""
        folder = self.root / self._TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = folder / secrets.token_hex(8)
            file = path.open("xb")
            with contextlib.suppress(OSError):  # a file system without locks: nobody sweeps there
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                return path, file
            file.close()  # swept before it was ours

    def sweep(self) -> None:
        """Unlink the temporary files whose writers are dead."""
        self._sweep(0.0)

    def _sweep(self, older_than_s: float) -> None:
        for path in (self.root / self._TEMPORARY).glob("*"):
            # its writer lives, or it or another sweeper was faster, or it is another user's
            with contextlib.suppress(OSError), path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - path.stat().st_mtime >= older_than_s:
                    path.unlink()

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)

    def size(self, key: str) -> int | None:
        """Ask the file system."""
        path = self._path(key)
        with _os_errors(path):
            try:
                return path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Walk the folder; temporary files are not objects."""
        start = self.root / prefix.rpartition("/")[0]
        with _os_errors(start):
            paths = [path for path in start.rglob("*") if path.is_file()] if start.is_dir() else []
            keys = sorted((path.relative_to(self.root).as_posix(), path) for path in paths)
            for key, path in keys:
                if key.startswith(prefix) and not key.startswith(self._TEMPORARY):
                    yield ObjectInfo(key, path.stat().st_size)

    def delete(self, key: str) -> None:
        """Unlink the file."""
        path = self._path(key)
        with _os_errors(path):
            path.unlink(missing_ok=True)

    def purge(self, key: str) -> None:
        """Unlink the file: a folder keeps no versions."""
        self.delete(key)

    def purge_older(self, prefix: str) -> None:
        """Do nothing: a folder keeps no versions."""

    def location(self, key: str) -> str:
        """Return the path."""
        return str(self._path(key))

    def options(self) -> dict[str, str]:
        """Return nothing: a path is enough."""
        return {}


class MemoryObjectStore(LocalObjectStore):
    """A store of this process alone: gone at exit, shared by all openers of the same name.

    Kept in a temporary folder, because Delta's own writer cannot be handed a Python dictionary.
    """

    _folders: ClassVar[dict[str, Path]] = {}

    def __init__(self, name: str) -> None:
        if name not in self._folders:
            self._folders[name] = Path(tempfile.mkdtemp(prefix="videoar-memory-"))
            atexit.register(shutil.rmtree, self._folders[name], ignore_errors=True)
        super().__init__(self._folders[name])
        self.url = f"memory://{name}"


class S3ObjectStore:
    """A bucket and prefix on AWS or any S3 server; credentials from the standard AWS chain."""

    is_local = False

    def __init__(self, bucket: str, prefix: str, endpoint: str = "") -> None:
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = endpoint
        self._client, self._session = _s3_client(endpoint)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel by address: every process opens its own connections and credentials."""
        return S3ObjectStore, (self._bucket, self._prefix.rstrip("/"), self._endpoint)

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from botocore import exceptions

        try:
            yield
        except exceptions.ClientError as error:
            if _code(error) == "NoSuchKey":
                raise _missing(self, key) from None
            raise _client_error(f"{self.url}/{key}", self._bucket, error) from error
        except exceptions.NoCredentialsError as error:
            raise StorageError(
                self.url, "no AWS credentials", "set AWS_ACCESS_KEY_ID or AWS_PROFILE"
            ) from error
        except (
            exceptions.HTTPClientError,
            exceptions.ConnectionError,
            exceptions.IncompleteReadError,
        ) as error:
            where = self._endpoint or self.url
            hint = "check the network and VIDEOAR_S3_ENDPOINT"
            raise TransientStorageError(where, "the S3 endpoint gives no answer", hint) from error
        except exceptions.BotoCoreError as error:
            raise StorageError(self.url, str(error)) from error

    def _call(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        return getattr(self._client, operation)(  # type: ignore[no-any-return]
            Bucket=self._bucket, Key=self._prefix + key, **arguments
        )

    def find(self, key: str) -> bytes | None:
        """GET, if it is there."""
        with self._errors(key):
            try:
                return self._read(key, _whole)
            except self._client.exceptions.NoSuchKey:
                return None

    def get(self, key: str) -> bytes:
        """GET the object."""
        with self._errors(key):
            return self._read(key, _whole)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """GET a range."""
        with self._errors(key):
            return self._read(key, _whole, (start, length))

    def read_into(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> None:
        """GET range after range."""
        with self._errors(key):
            for start, target in spans:
                self._read(key, partial(_fill_from, target, self.url, key), (start, len(target)))

    def _read(self, key: str, read: Callable[[Any], T], span: tuple[int, int] | None = None) -> T:
        """GET an object, or (start, length) of it, and read the body.

        A connection that breaks in the body is tried again for a while: the client's own attempts
        end with the headers.
        """
        from botocore import exceptions as s3

        until, wait_s = time.monotonic() + _BROKEN_S, 0.1
        while True:
            try:
                return read(self._body(key, span))
            except (s3.ResponseStreamingError, s3.IncompleteReadError, s3.ReadTimeoutError):
                if time.monotonic() > until:
                    raise
            time.sleep(random.uniform(0, wait_s))  # noqa: S311 - jitter
            wait_s = min(2 * wait_s, 5.0)

    def _body(self, key: str, span: tuple[int, int] | None) -> Any:  # noqa: ANN401
        """GET; the body is empty where a span begins behind the end.

        Raises:
            StorageError: the answer is not the span that was asked for.
        """
        from botocore.exceptions import ClientError

        if span is None:
            return self._call("get_object", key)["Body"]
        start, length = span
        try:
            answer = self._call("get_object", key, Range=f"bytes={start}-{start + length - 1}")
        except ClientError as error:
            if _code(error) not in {"InvalidRange", "416"}:
                raise
            return io.BytesIO()
        begin, *_ = answer.get("ContentRange", "bytes 0-").removeprefix("bytes ").split("-")
        if begin != str(start) or answer["ContentLength"] > length:
            what = f"asked for {length} bytes from {start}, the S3 server gave others"
            raise StorageError(f"{self.url}/{key}", what, "does a proxy on the way ignore ranges?")
        return answer["Body"]

    def read_cached(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> bool:  # noqa: ARG002
        """Nothing of it is here."""
        return False

    def stream(self, key: str) -> Iterator[bytes]:
        """GET the object piece by piece, for those too big for memory.

        Raises:
            StorageError: there is no such object.
            TransientStorageError: the connection broke on the way.
        """
        with self._errors(key):
            yield from self._body(key, None).iter_chunks(_PIECE_BYTES)

    def put(self, key: str, data: bytes | memoryview, *, if_absent: bool = False) -> bool:
        """PUT in one request or, unconditional and big, in parts."""
        with self._errors(key):
            if if_absent:
                return self._put_if_absent(key, data)
            if len(data) > MULTIPART_BYTES:
                self._put_parts(key, io.BytesIO(data))
            else:
                self._call("put_object", key, Body=bytes(data))
        return True

    def _put_if_absent(self, key: str, data: bytes | memoryview) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._call("put_object", key, Body=bytes(data), IfNoneMatch="*")
        except ClientError as error:
            if _code(error) not in {"PreconditionFailed", "412"}:
                raise
            # A 412 after a retry may be our own success whose answer was lost: look, then decide.
            retried = error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
            return retried and self.find(key) == data
        return True

    def put_file(self, key: str, path: Path) -> None:
        """PUT in parts, some of them at a time in memory."""
        with self._errors(key), path.open("rb") as file:
            self._put_parts(key, file)

    def _put_parts(self, key: str, file: BinaryIO) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=16 << 20)
        self._client.upload_fileobj(file, self._bucket, self._prefix + key, Config=config)

    def size(self, key: str) -> int | None:
        """HEAD the object."""
        from botocore.exceptions import ClientError

        with self._errors(key):
            try:
                return int(self._call("head_object", key)["ContentLength"])
            except ClientError as error:
                if _code(error) == "404":
                    return None
                raise

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """LIST page by page."""
        pages = self._client.get_paginator("list_objects_v2")
        with self._errors(prefix):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for item in page.get("Contents", ()):
                    key = item["Key"].removeprefix(self._prefix)
                    yield ObjectInfo(key, item["Size"], item.get("ETag", "").strip('"'))

    def delete(self, key: str) -> None:
        """DELETE the object."""
        with self._errors(key):
            self._call("delete_object", key)

    def purge(self, key: str) -> None:
        """DELETE every version: in a versioned bucket a plain DELETE only hides the object."""
        self._delete_versions(key, lambda item: item["Key"] == self._prefix + key)

    def purge_older(self, prefix: str) -> None:
        """DELETE the versions that others have replaced."""
        self._delete_versions(prefix, lambda item: not item["IsLatest"])

    def sweep(self) -> None:
        """Abort uploads in parts that began long ago; nothing else tells the dead from the living.

        A bucket may do so by itself, after some days, by a lifecycle rule.
        """
        before = datetime.now(UTC) - timedelta(seconds=_LEFT_AFTER_S)
        pages = self._client.get_paginator("list_multipart_uploads")
        with self._errors(""):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for item in page.get("Uploads", ()):
                    if item["Initiated"] < before:
                        key = item["Key"].removeprefix(self._prefix)
                        self._call("abort_multipart_upload", key, UploadId=item["UploadId"])

    def _delete_versions(self, prefix: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        pages = self._client.get_paginator("list_object_versions")
        with self._errors(prefix):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for item in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]:
                    if wanted(item):
                        key = item["Key"].removeprefix(self._prefix)
                        self._call("delete_object", key, VersionId=item["VersionId"])

    def location(self, key: str) -> str:
        """Return the `s3://` address."""
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def options(self) -> dict[str, str]:
        """Return endpoint, region and the credentials of this moment."""
        credentials = self._session.get_credentials()
        if credentials is None:
            raise StorageError(
                self.url, "no AWS credentials", "set AWS_ACCESS_KEY_ID or AWS_PROFILE"
            )
        frozen = credentials.get_frozen_credentials()
        given = {
            "AWS_ACCESS_KEY_ID": frozen.access_key,
            "AWS_SECRET_ACCESS_KEY": frozen.secret_key,
            "AWS_SESSION_TOKEN": frozen.token,
            "AWS_REGION": self._client.meta.region_name,
            "AWS_ENDPOINT_URL": self._endpoint,
            "AWS_ALLOW_HTTP": "true" if self._endpoint.startswith("http://") else "",
        }
        return {name: value for name, value in given.items() if value}


def _s3_client(endpoint: str) -> tuple[Any, Any]:
    """Make a client that also pleases servers without trailing checksums (Ceph answers 411)."""
    import boto3
    from botocore.config import Config

    session = boto3.session.Session()
    config = Config(
        retries={"mode": "standard", "max_attempts": 5},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint else None,
        connect_timeout=5,
        max_pool_connections=32,
    )
    region = session.region_name or "us-east-1"
    client = session.client("s3", endpoint_url=endpoint or None, region_name=region, config=config)
    return client, session


def _code(error: Any) -> str:  # noqa: ANN401 - botocore has no types
    return str(error.response["Error"].get("Code", ""))


_TRANSIENT = {409, 429, 500, 502, 503, 504}
"""409: another conditional write of the same key is under way."""
_DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}


def _client_error(where: str, bucket: str, error: Any) -> StorageError:  # noqa: ANN401
    code, status = _code(error), error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return StorageError(f"s3://{bucket}", "no such bucket", "create it, or fix the store URL")
    if code in _DENIED:
        return StorageError(
            where, f"access denied ({code})", "check the AWS credentials and policy"
        )
    if status in _TRANSIENT:
        return TransientStorageError(where, f"the store answered {code}")
    return StorageError(where, f"the store answered {code}: {error}")
