"""The files of a commit as the log has them: all, or how they differ from an earlier commit.

A dataset of 100,000 files to which ten are added each day would have a log of 9 GB after a year if
each commit had all of them. So a commit names another one, its base, and lists spans of the base's
files and the files that are new between them, in order. The base of version v is v without its
lowest bit: 13 = 0b1101 has 12, 12 has 8, and 8, of one bit, has 1. So the log grows by what
changes, and a commit is read with at most log2(v) others (a Fenwick tree).

    files of 12   a b c d e
    files of 13   a b x d e     edits [[0, 2], x, [3, 5]]
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from videoar.core.types import Commit, FileRef

Files = tuple[FileRef, ...]
_FILE_CHARS, _MIN_CHARS = 300, 20_000
"""Of a file without its marks, about; chosen: less is less to read than another request."""


def base_of(version: int) -> int:
    """Return the version whose files those of a version may refer to; 0: none."""
    return version & (version - 1) or int(version > 1)


def bases_of_later(version: int) -> Iterator[int]:
    """Yield the versions up to this one that later versions may have as a base."""
    while version:
        yield version
        version = base_of(version)


def encode(commit: Commit, files_of_base: Callable[[int], Files | None]) -> dict[str, Any]:
    """Return a commit as JSON values, with the files that its base does not have.

    Args:
        commit: with its version.
        files_of_base: returns the files of a version, None if that is no commit.
    """
    base = base_of(commit.version)
    chars = sum(_FILE_CHARS + len(file.marks or "") for file in commit.files)
    if chars > _MIN_CHARS and base and (files := files_of_base(base)) is not None:
        edits = list(_edits(commit.files, files))
        if 2 * len(edits) <= len(commit.files):
            texts = [e.model_dump(mode="json") if isinstance(e, FileRef) else e for e in edits]
            rest = commit.model_dump(mode="json", exclude={"files"})
            return {**rest, "base": base, "edits": texts}
    return commit.model_dump(mode="json")


def _edits(files: Sequence[FileRef], base: Sequence[FileRef]) -> Iterator[FileRef | list[int]]:
    places = {file.sha256: place for place, file in enumerate(base)}
    span: list[int] | None = None
    for file in files:
        place = places.get(file.sha256)
        if place is None or base[place] != file:
            if span:
                yield span
            span = None
            yield file
        elif span and span[1] == place:
            span[1] += 1
        else:
            if span:
                yield span
            span = [place, place + 1]
    if span:
        yield span


def decode(record: Mapping[str, Any], files_of_base: Callable[[int], Files]) -> Commit:
    """Return a commit from its JSON values.

    Raises:
        TypeError, ValueError, KeyError: it is none.
    """
    if "base" not in record:
        return Commit.model_validate(record)
    base, files = files_of_base(record["base"]), list[FileRef]()
    for edit in record["edits"]:
        if isinstance(edit, list):
            start, stop = edit
            files += base[start:stop]
        else:
            files.append(FileRef.model_validate(edit))
    return Commit.model_validate({**record, "files": files})
