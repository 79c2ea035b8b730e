"""Finds what commits, takedowns and rows name and the store has lost or damaged.

A lost data file makes its stage run again by itself: a commit without all of its files counts as
never made. A damaged one, and an object that only rows name, are found when they are read, which a
cached stage does not. Removing them, and the data files whose rows name them, makes the next run
make all of them again.
"""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

from videoar.core.errors import TransientStorageError, VideoARError
from videoar.core.prefetch import concurrently
from videoar.core.types import FileRef, Frozen
from videoar.storage import references
from videoar.storage.audit import Finding, check_bytes
from videoar.storage.key_set import KeySet
from videoar.storage.references import NamedFile, NamedObject
from videoar.storage.store import Store

_REPAIR = "restore it from a copy, or let `videoar doctor --verify --fix` remove it"
_REPAIRED = "removed; the next run of its pipeline makes it again"


class Check(Frozen):
    """One check of `doctor` and its result."""

    name: str
    ok: bool
    detail: str
    is_required: bool = True
    """Whether a run can fail without it; what a metric needs is optional, and so are warnings."""


def damage(store: Store, *, fix: bool = False) -> Iterator[Check]:
    """Read everything that is named; yield a failed check for each damage, then a summary.

    Args:
        store: where.
        fix: remove what is damaged, and data files whose rows name it.

    Raises:
        StorageError: the store does not respond.
    """
    with tempfile.TemporaryDirectory() as folder, closing(KeySet(Path(folder, "keys"))) as seen:
        scan = _Scan(store, seen)
        for finding, by, holder in scan.findings():
            # the object first: with the file gone, nobody would find it any more
            for key in (finding.path, holder.key) if fix else ():
                store.objects.delete(key)
            detail = f"{finding.message}; named by {by} ({_REPAIRED if fix else _REPAIR})"
            yield Check(name=f"damage: {finding.path}", ok=fix, detail=detail)
    what = f"{scan.keys} files and objects read, {scan.damaged} lost or damaged"
    yield Check(name="store: everything that is named", ok=fix or not scan.damaged, detail=what)


class _Scan:
    """One pass over everything that is named."""

    def __init__(self, store: Store, seen: KeySet) -> None:
        self._store, self._seen = store, seen
        self._bad: dict[str, list[Finding]] = {}
        self.keys = 0

    @property
    def damaged(self) -> int:
        """Number of keys."""
        return len(self._bad)

    def findings(self) -> Iterator[tuple[Finding, str, FileRef]]:
        """Yield each damage with who names it and the data file that it is, or that names it."""
        named = chain(
            references.committed_files(self._store.objects),
            references.replacement_files(self._store.ledger),
        )
        new = (file for file in named if self._seen.add(file.file.key))
        for file, findings in concurrently(self._check_file, new):
            self.keys += 1
            if findings and references.is_replaced(self._store.objects, file.file.key):
                continue
            if findings:
                self._bad[file.file.key] = findings
            yield from ((finding, file.by, file.file) for finding in findings)
            if not findings:
                yield from self._objects(file)

    def _check_file(self, named: NamedFile) -> list[Finding]:
        file = named.file
        return self._check(file.key, file.sha256, file.size_bytes)

    def _check_object(self, named: NamedObject) -> list[Finding]:
        return self._check(named.key, named.sha256, named.size_bytes)

    def _check(self, key: str, sha256: str, size_bytes: int | None) -> list[Finding]:
        found = list(check_bytes(self._store.objects, key, sha256, size_bytes))
        return [finding for finding in found if finding.kind != "WITHDRAWN"][:1]

    def _objects(self, file: NamedFile) -> Iterator[tuple[Finding, str, FileRef]]:
        try:
            objects = list(references.objects_of(self._store.objects, file))
        except TransientStorageError:
            raise
        except VideoARError:  # withdrawn
            return
        new = (named for named in objects if self._seen.add(named.key))
        for named, findings in concurrently(self._check_object, new):
            self.keys += 1
            if findings:
                self._bad[named.key] = findings
        for named in objects:
            for finding in self._bad.get(named.key, ()):
                by = f"row {named.row} of {file.file.key} of {file.by}"
                yield finding, by, file.file
