"""Walk a folder or a bucket: one entry per file, whatever its name or kind.

Names that begin with a dot, of files and of folders at any depth, are left out on both sides. Local
files have percent-encoded `file://` addresses: any name (newlines, bytes that are no UTF-8) is then
valid text and can be opened again.

Links to folders are followed, each real folder once: by its own path if that is in the input,
otherwise by the first link to it. A link to a folder above the input is not followed: it would list
the neighbours of the input.
"""

import heapq
import io
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol
from urllib.parse import quote, unquote_to_bytes, urlsplit

from videoar.core.errors import ConfigError
from videoar.core.settings import settings
from videoar.media.fetch import bucket_and_key
from videoar.storage.s3_store import S3ObjectStore

logger = logging.getLogger(__name__)
# `quote` changes nothing of these, but takes longer to find out
_is_plain = re.compile(r"[\w.~/-]+", re.ASCII).fullmatch
_VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".flv", ".ts", ".mpg", ".mpeg", ".3gp"}


class ListedFile(NamedTuple):
    """One file of an input."""

    uri: str
    name: str
    """Path relative to the input."""
    etag: str
    size_bytes: int
    is_regular: bool = True


class Place(Protocol):
    """Where the files of an input are."""

    is_local: bool

    def files(self) -> Iterator[ListedFile]:
        """Yield the files, in no particular order.

        Raises:
            ConfigError: a folder cannot be read.
            StorageError: the bucket does not answer.
        """

    def open(self, file: ListedFile) -> BinaryIO:
        """Open a small file of text.

        Raises:
            ConfigError: it is a link to a file outside the input.
            OSError: it cannot be read.
        """


def open_place(url: str) -> Place:
    """Return the folder or bucket of an input.

    Raises:
        ConfigError: there is no such folder, or the URL is of another kind.
    """
    if url.startswith("s3://"):
        return Bucket(url)
    folder = local_path(url)
    if not folder.exists():
        raise ConfigError(str(folder), "no such folder")
    if not folder.is_dir():
        raise ConfigError(str(folder), "not a folder", "give the folder that contains it")
    return Folder(folder.absolute())


def local_path(url: str) -> Path:
    """Return the path of an input that is a path or a `file://` URL.

    Raises:
        ConfigError: it is another URL.
    """
    if "://" in url and not url.startswith("file://"):
        hint = "use a folder, file://, s3:// or rendered://"
        raise ConfigError(url, "unknown kind of input", hint)
    return Path(_decoded(url) if "://" in url else url)


def _decoded(url: str) -> str:
    return os.fsdecode(unquote_to_bytes(urlsplit(url).path))


class Folder:
    """A local folder."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self._root = str(root)

    def files(self) -> Iterator[ListedFile]:
        """Walk the folder, real folders before links to others."""
        above = {_identity(str(folder)) for folder in Path(self._root).resolve().parents}
        seen: set[tuple[int, int]] = set()
        folders, links = [self._root], list[str]()
        while folders or links:
            folder = folders.pop() if folders else heapq.heappop(links)
            try:
                identity = _identity(folder)
                if identity in above:
                    logger.warning("%s: links to a folder above the input; not followed", folder)
                elif identity not in seen:
                    seen.add(identity)
                    yield from self._scan(folder, folders, links)
            except OSError as error:  # an unreadable folder is never an empty one
                what = error.strerror or str(error)
                raise ConfigError(str(error.filename or folder), what) from error

    def _scan(self, folder: str, folders: list[str], links: list[str]) -> Iterator[ListedFile]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    status = os.stat(entry.path)
                except OSError:
                    status = os.lstat(entry.path)  # of a broken link, the link itself
                is_folder = stat.S_ISDIR(status.st_mode)
                if is_folder and entry.is_symlink():
                    heapq.heappush(links, entry.path)
                elif is_folder:
                    folders.append(entry.path)
                # a folder named like a video is listed, and rejected as no regular file
                if not is_folder or os.path.splitext(entry.name)[1].lower() in _VIDEO_SUFFIXES:
                    yield self._file(entry.path, status)

    def _file(self, path: str, status: os.stat_result) -> ListedFile:
        # plain strings: Path takes most of the time of a large listing
        is_regular = stat.S_ISREG(status.st_mode)
        name = _name(path.removeprefix(self._root).lstrip("/"))
        etag = f"{status.st_size}-{status.st_mtime_ns}"
        size_bytes = status.st_size if is_regular else 0
        quoted = path if _is_plain(path) else quote(os.fsencode(path))
        return ListedFile("file://" + quoted, name, etag, size_bytes, is_regular)

    def open(self, file: ListedFile) -> BinaryIO:
        """Open a file that is really in the folder."""
        path = _decoded(file.uri)
        real = Path(path).resolve()
        if not real.is_relative_to(Path(self._root).resolve()):
            hint = "replace the link by the file, or remove it"
            raise ConfigError(path, "is a link to a file outside the input folder", hint)
        return real.open("rb")


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _name(path: str) -> str:
    """Return a path as text; different paths give different texts, because names are keys.

    Paths that are not UTF-8 are escaped. They get the prefix `./`, which no listed name has, so
    that the escaped form cannot equal the name of another file.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(path)
        return "./" + raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return path


class Bucket:
    """A prefix of a bucket."""

    is_local = False

    def __init__(self, url: str) -> None:
        self._bucket, key = bucket_and_key(url)
        self._prefix = key.rstrip("/")
        self._objects = S3ObjectStore(self._bucket, self._prefix, settings().s3_endpoint)

    def files(self) -> Iterator[ListedFile]:
        """List the prefix; an empty object whose key ends in `/` stands for a folder."""
        folder = f"{self._prefix}/" if self._prefix else ""
        for info in self._objects.list(""):
            is_hidden = any(part.startswith(".") for part in info.key.split("/"))
            if not is_hidden and (info.size_bytes or not info.key.endswith("/")):
                # a key may begin with `/`, or have it twice: it is no path
                uri = f"s3://{self._bucket}/{quote(folder + info.key)}"
                yield ListedFile(uri, info.key, info.etag, info.size_bytes)

    def open(self, file: ListedFile) -> BinaryIO:
        """Fetch the object."""
        return io.BytesIO(self._objects.get(file.name))
