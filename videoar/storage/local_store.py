"""A folder as an object store, and a private temporary folder for tests.

A put writes a temporary file in `.tmp/`, syncs it, then links (put-if-absent) or renames it to its
key. Both are atomic by POSIX: a reader sees the whole object or none, also after a power failure.
"""

import atexit
import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, ClassVar

from videoar.core.crash_points import crash_point
from videoar.core.errors import ConfigError, StorageError, TransientStorageError
from videoar.core.scratch import Scratch
from videoar.storage.layout import TEMPORARY_FOLDER
from videoar.storage.object_store import (
    PIECE_BYTES,
    STALE_TEMP_S,
    ObjectInfo,
    missing_error,
    read_exactly,
)

# EDQUOT: the user's quota is full, the disk is not
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_CACHED = {errno.EAGAIN, errno.EOPNOTSUPP}  # the second: file systems without RWF_NOWAIT
_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)  # Linux only
# FAT and some FUSE and network file systems; EMLINK: a file system's limit of links per file
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK}


@contextlib.contextmanager
def _os_errors(path: Path | str) -> Iterator[None]:
    """Raise errors of the file system as a `StorageError` that names the path."""
    try:
        yield
    except OSError as error:
        raise _as_storage_error(error, path) from error


def _as_storage_error(error: OSError, path: Path | str) -> StorageError:
    where = str(error.filename or path)
    if isinstance(error, PermissionError):
        return StorageError(where, "no permission", "change its permissions")
    if error.errno in _DISK_FULL:
        return TransientStorageError(where, "disk full", "free space, then resume")
    hint = "the file system has no hard links" if error.errno in _NO_LINKS else ""
    return StorageError(where, error.strerror or str(error), hint)


def _require_target(link: Path) -> None:
    """Raise if a path is a link to nothing, such as a disk that is not mounted.

    What it stands for would be left out of a listing.
    """
    if link.is_symlink() and not link.exists():
        hint = "mount or restore its target, or remove the link"
        raise StorageError(str(link), "a link to nothing", hint)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder, or a link to one."""
    if entry.is_symlink():
        _require_target(Path(entry.path))
    return entry.is_dir()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)  # fsync needs a handle; folders open for reading only
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class LocalObjectStore:
    """A folder. Durable: files and their folders are synced before a put returns."""

    is_local = True
    unavailable_s = 0.0

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()
        self._has_swept = False

    def _path(self, key: str) -> Path:
        return Path(self._name(key))

    def _name(self, key: str) -> str:
        # keys come from records and command lines: `..` would address files outside of the store
        if key.startswith("/") or not key or {"", ".", ".."} & set(key.split("/")):
            raise ConfigError(key or "''", "not a store key", "keys are relative a/b/c paths")
        return f"{self.root}/{key}"

    def find(self, key: str) -> bytes | None:
        """Read the file, if it exists."""
        path = self._path(key)
        with _os_errors(path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):  # the latter: `a/b` where `a` is a file
                return None

    def get(self, key: str) -> bytes:
        """Read the file."""
        data = self.find(key)
        if data is None:
            raise missing_error(self, key)
        return data

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Read a span of the file."""
        with self._reading(key) as handle:
            return os.pread(handle, length, start)

    def read_into(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> None:
        """Read spans of the file without a copy; one system call each."""
        with self._reading(key) as handle:
            for start, target in spans:
                count = os.preadv(handle, [target], start)
                if count != len(target):  # interrupted, over 2 GiB, or at the end
                    os.lseek(handle, start + count, os.SEEK_SET)
                    where = f"{self.root}/{key}"
                    read_exactly(target[count:], lambda rest: os.readv(handle, [rest]), where)

    def read_cached(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> bool:
        """Read from the page cache.

        Without the context managers of the other methods: they would take a tenth of the time of
        a call that the loader makes for every batch.
        """
        if not _NO_WAIT:
            return False
        handle, path = -1, self._name(key)  # a plain string: Path costs microseconds
        try:
            handle = os.open(path, os.O_RDONLY)
            for start, target in spans:
                if os.preadv(handle, [target], start, _NO_WAIT) != len(target):
                    return False
        except FileNotFoundError:
            raise missing_error(self, key) from None
        except OSError as error:
            if error.errno in _NOT_CACHED:
                return False
            raise _as_storage_error(error, path) from error
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
                raise missing_error(self, key) from None
            try:
                yield handle
            finally:
                os.close(handle)

    def put(self, key: str, data: bytes | memoryview, *, if_absent: bool = False) -> bool:
        """Sync a temporary file, then link (`if_absent`) or rename it to its place."""
        return self._publish(key, lambda file: file.write(data), if_absent)

    def put_file(self, key: str, path: Path) -> None:
        """Copy the file, then publish it as `put` does."""
        with path.open("rb") as source:
            self._publish(key, lambda file: shutil.copyfileobj(source, file, PIECE_BYTES))

    def _publish(
        self, key: str, write: Callable[[BinaryIO], object], if_absent: bool = False
    ) -> bool:
        path = self._path(key)
        with _os_errors(path):
            self._make_folder(path.parent)
            with self._temporary(write) as temporary:
                # link and rename need one file system: `.tmp` is a folder of the store
                crash_point("put.before_publish")
                try:
                    if if_absent:
                        # rename would replace an existing file, link fails with EEXIST
                        os.link(temporary, path)
                    else:
                        temporary.rename(path)
                except FileExistsError:
                    # NFS repeats a request whose answer was lost: the file may be this one
                    return if_absent and path.samefile(temporary)
            # without it, a power failure may lose the name of a file whose content was synced
            _sync_folder(path.parent)
        return True

    @contextlib.contextmanager
    def _temporary(self, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
        """Yield a synced temporary file that `write` has filled; remove it afterwards."""
        if not self._has_swept:  # once per process, before its first put
            self._has_swept = True
            self._sweep(STALE_TEMP_S)
        temporary, file = self._create_locked()
        with file:
            try:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    def _create_locked(self) -> tuple[Path, BinaryIO]:
        """Create a temporary file and lock it; the lock is released on process exit.

        A sweeper can take the lock between creation and locking and unlink the file. The file
        exists after locking, or it is created again.
        """
        folder = self.root / TEMPORARY_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            path = folder / secrets.token_hex(8)
            file = path.open("xb")
            with contextlib.suppress(OSError):  # no locks on this file system: sweeps skip the file
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                return path, file
            file.close()

    def sweep(self) -> None:
        """Unlink the temporary files of writers that no longer run."""
        self._sweep(0.0)

    def _sweep(self, older_than_s: float) -> None:
        for path in (self.root / TEMPORARY_FOLDER).glob("*"):
            # OSError: locked by its writer, already removed, or owned by another user
            with contextlib.suppress(OSError), path.open("r+b") as file:
                # fails while the writer runs; an age limit protects writers whose lock this
                # machine cannot see (NFS)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - path.stat().st_mtime >= older_than_s:
                    path.unlink()

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        # one by one from the top, because each new name has to be synced in its parent
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)

    def size(self, key: str) -> int | None:
        """Return the file size."""
        path = self._path(key)
        with _os_errors(path):
            try:
                return path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def age_s(self, key: str) -> float | None:
        """Compare the time of modification with the clock."""
        written_at = self.written_at(key)
        return None if written_at is None else time.time() - written_at

    def written_at(self, key: str) -> float | None:
        """Return the time of modification."""
        path = self._path(key)
        with _os_errors(path):
            try:
                return path.stat().st_mtime
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Walk the folder, one folder in memory; temporary files are left out.

        Links are followed. A file that is deleted meanwhile is left out, too.
        """
        folder, slash, _ = prefix.rpartition("/")
        with _os_errors(self.root / folder):
            yield from self._walk(folder + slash, prefix, after)

    def _walk(self, folder: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(self.root / folder) as entries:
                # with its slash, a folder sorts as the keys in it do
                named = {e.name + "/" * _is_folder(e): e for e in entries}
        except (FileNotFoundError, NotADirectoryError):
            self._require_links(folder)
            return
        for name in sorted(named):
            key = folder + name
            if not key.startswith(prefix) or key.startswith(TEMPORARY_FOLDER):
                continue
            if name.endswith("/"):
                if key > after or after.startswith(key):
                    yield from self._walk(key, prefix, after)
                continue
            try:
                found = named[name].stat()
            except FileNotFoundError:
                continue
            if key > after:
                # not the inode: some network file systems give another number each time
                yield ObjectInfo(key, found.st_size, f"{found.st_mtime_ns:x}")

    def _require_links(self, folder: str) -> None:
        path = self.root / folder
        while path != self.root.parent:
            _require_target(path)
            path = path.parent

    def folders(self, prefix: str) -> Iterator[str]:
        """Scan the folder; empty folders are left out."""
        with _os_errors(self.root / prefix):
            try:
                with os.scandir(self.root / prefix) as entries:
                    names = sorted(e.name for e in entries if _is_folder(e))
            except (FileNotFoundError, NotADirectoryError):
                self._require_links(prefix)
                return
            for name in names:
                if any(self._walk(f"{prefix}{name}/", prefix, "")):
                    yield name

    def delete(self, key: str) -> None:
        """Unlink the file."""
        path = self._path(key)
        with _os_errors(path):
            path.unlink(missing_ok=True)

    def purge(self, key: str) -> None:
        """Unlink the file; there are no versions."""
        self.delete(key)

    def purge_older(self, prefix: str) -> None:
        """Do nothing; there are no versions."""

    def location(self, key: str) -> str:
        """Return the path."""
        return str(self._path(key))

    def options(self) -> dict[str, str]:
        """Return no options."""
        return {}


class MemoryObjectStore(LocalObjectStore):
    """A store of this process, removed at exit; the same name opens the same store.

    It is a temporary folder because delta-rs writes to paths and URLs, not to Python objects.
    """

    _folders: ClassVar[dict[str, Scratch]] = {}

    def __init__(self, name: str) -> None:
        if name not in self._folders:
            self._folders[name] = Scratch()
            atexit.register(shutil.rmtree, self._folders[name].path, ignore_errors=True)
        super().__init__(self._folders[name].path)
        # instead of the file:// URL
        self.url = f"memory://{name}"
