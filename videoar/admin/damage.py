"""Finds what commits, takedowns and rows name and the store has lost or damaged.

A lost data file makes its stage run again by itself: a commit without all of its files counts as
never made. A damaged one, and an object that only rows name, are found when they are read, which a
cached stage does not. Removing them, and the data files whose rows name them, makes the next run
make all of them again. A damaged record, or checkpoint of a Delta log, is removed if it can be
derived again.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain

from videoar.core.errors import (
    DamagedError,
    SnapshotNotFoundError,
    TransientStorageError,
    VideoARError,
)
from videoar.core.prefetch import concurrently
from videoar.core.scratch import Scratch
from videoar.core.types import Frozen
from videoar.records.run_folds import fold_runs
from videoar.storage import layout, references
from videoar.storage.audit import Finding, check_bytes
from videoar.storage.key_set import KeySet
from videoar.storage.log_checkpoints import damaged_checkpoints
from videoar.storage.references import NamedFile, NamedObject
from videoar.storage.store import Store

_KEPT_LOGS = (layout.REFS_PREFIX, layout.RUNS_PREFIX, f"{layout.DECISIONS_LOG}/")
_FIX = "restore it from a copy, or let `videoar doctor --verify --fix` remove it"
_FIXED = "removed; the next run of its pipeline makes it again"


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
    with Scratch() as folder, closing(KeySet(folder / "keys")) as seen:
        scan, is_mended = _Scan(store, seen), True
        for found in chain(scan.records(), scan.refs(), scan.checkpoints(), scan.named()):
            # the object first: with the file gone, nobody would find it any more
            for key in (found.key, *found.holders) if fix and found.can_fix else ():
                store.objects.delete(key)
            ok = fix and found.can_fix
            is_mended = is_mended and ok
            hint = _FIXED if ok else _FIX if found.can_fix else "restore it from a copy"
            yield Check(name=f"damage: {found.key}", ok=ok, detail=f"{found.what} ({hint})")
        if is_mended and fix:
            store.fold()
            fold_runs(store)
    what = f"{scan.keys} records, files and objects read, {scan.damaged} lost or damaged"
    yield Check(name="store: everything that is named", ok=is_mended, detail=what)


def _place_in_log(key: str) -> tuple[str, int]:
    """Return the log and the number of a record that nothing deletes; ("", 0) of another one."""
    if key.startswith(_KEPT_LOGS) and layout.is_numbered(key):
        return key.rpartition("/")[0], layout.number_of(key)
    return "", 0


def _without_gaps(keys: Iterable[str]) -> Iterator[str]:
    """Yield sorted keys, and those that are missing in a log between 0 and its last one."""
    current, expected = "", 0
    for key in keys:
        log, number = _place_in_log(key)
        if log:
            first = expected if log == current else 0
            yield from (layout.log_entry_key(log, lost) for lost in range(first, number))
            current, expected = log, number + 1
        yield key


@dataclass(frozen=True)
class _Damage:
    key: str
    what: str
    """What is wrong, and who names it."""
    holders: tuple[str, ...] = ()
    """The data file that names it."""
    can_fix: bool = True
    """Whether it is made again once it is removed."""


class _Scan:
    """One pass over everything that is named."""

    def __init__(self, store: Store, seen: KeySet) -> None:
        self._store, self._seen = store, seen
        self._bad: dict[str, Finding] = {}
        self.keys = self.damaged = 0

    def records(self) -> Iterator[_Damage]:
        """Yield the records that are lost or not what was written; `named` reads commits."""
        infos = self._store.objects.list("")
        keys = (info.key for info in infos if layout.is_record(info.key))
        for key, what in concurrently(self._wrong_with, _without_gaps(keys)):
            self.keys += 1
            if what:
                self.damaged += 1
                yield _Damage(key, what, can_fix=layout.is_made_again(key))

    def _wrong_with(self, key: str) -> str:
        try:
            if _place_in_log(key)[0]:
                self._store.ledger.read_entry(key)
            else:
                self._store.ledger.read(key)
        except DamagedError as error:
            return error.what
        return ""

    def refs(self) -> Iterator[_Damage]:
        """Yield the refs that point at no snapshot of the store."""
        for name in self._store.refs.names():
            with suppress(DamagedError):  # `records` and `named` have it
                head = self._store.refs.head(name)
                try:
                    self._store.snapshot(head or "")
                except SnapshotNotFoundError:
                    self.damaged += 1
                    yield _Damage(f"ref {name}", f"points at {head}, which is lost", can_fix=False)

    def checkpoints(self) -> Iterator[_Damage]:
        """Yield the checkpoints of Delta logs that cannot be read; they are derived."""
        for dataset in self._store.objects.folders(layout.TABLES_PREFIX):
            for key, what in damaged_checkpoints(self._store.objects, dataset):
                self.damaged += 1
                yield _Damage(key, f"damaged: {what}; derived from the log of its table")

    def named(self) -> Iterator[_Damage]:
        """Yield the data files and objects that are lost or damaged."""
        named = chain(
            references.committed_files(self._store.objects),
            references.replacement_files(self._store.ledger),
            self._recorded_files(),
        )
        new = (file for file in named if self._seen.add(file.file.key))
        try:
            for file, finding in concurrently(self._check_file, new):
                self.keys += 1
                if finding is None:
                    yield from self._objects(file)
                elif not self._is_made_again(file, finding):
                    self.damaged += 1
                    yield _Damage(file.file.key, f"{finding.message}; named by {file.by}")
        except DamagedError as error:
            self.damaged += 1
            what = f"{error.what}; what was committed after it was not read"
            yield _Damage(error.where, what, can_fix=False)

    def _recorded_files(self) -> Iterator[NamedFile]:
        for key in self._store.ledger.list(layout.STAGES_PREFIX):
            with suppress(DamagedError):  # `records` has it
                yield from references.recorded_files(key, self._store.ledger.read(key) or {})

    def _is_made_again(self, file: NamedFile, finding: Finding) -> bool:
        """Return whether a run makes a file again, or has already."""
        if file.contract is None:  # of a record alone, which a run looks at
            return finding.kind in {"MISSING", "SIZE"}
        return references.is_replaced(self._store.objects, file.file.key)

    def _check_file(self, named: NamedFile) -> Finding | None:
        file = named.file
        return self._check(file.key, file.sha256, file.size_bytes)

    def _check_object(self, named: NamedObject) -> Finding | None:
        return self._check(named.key, named.sha256, named.size_bytes)

    def _check(self, key: str, sha256: str, size_bytes: int | None) -> Finding | None:
        found = check_bytes(self._store.objects, key, sha256, size_bytes)
        return next((finding for finding in found if finding.kind != "WITHDRAWN"), None)

    def _objects(self, file: NamedFile) -> Iterator[_Damage]:
        try:
            objects = list(references.objects_of(self._store.objects, file))
        except TransientStorageError:
            raise
        except VideoARError:  # withdrawn
            return
        new = (named for named in objects if self._seen.add(named.key))
        for named, finding in concurrently(self._check_object, new):
            self.keys += 1
            if finding is not None:
                self.damaged += 1
                self._bad[named.key] = finding
        for named in objects:
            if (bad := self._bad.get(named.key)) is not None:
                what = f"{bad.message}; named by row {named.row} of {file.file.key} of {file.by}"
                yield _Damage(named.key, what, (file.file.key,))
