"""What of a store is garbage: one walk over it.

`admin.gc` has the kinds, the reasons why runs may go on meanwhile, and deletes it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

from videoar.core.errors import TransientStorageError, VideoARError, WithdrawnError
from videoar.core.prefetch import concurrently
from videoar.core.types import Stored
from videoar.records.run_record import load_run
from videoar.storage import layout, references, takedown
from videoar.storage.key_set import KeySet
from videoar.storage.lease import ENDED, HolderWatch
from videoar.storage.ledger import Record
from videoar.storage.object_store import ObjectInfo
from videoar.storage.store import Store

DAY_S = 86_400.0
_SLACK_S = 5.0
"""chosen: ages in S3 are whole seconds."""
_CHECKPOINT_DEPTH = 3
"""Slashes in `checkpoints/<stage>/<fingerprint>/<name>`."""
_ZOMBIE_S = DAY_S
"""chosen: a process that was silent for longer does not wake up."""


class Retention(Stored):
    """How old garbage must be, in seconds by the clock of the store."""

    keep_s: float = 7 * DAY_S
    unfinished_s: float = 30 * DAY_S
    """Of what a resumed run would continue: work records and checkpoints."""


class _UnreadableError(Exception):
    """A data file is lost or damaged, so the objects that its rows name are not known."""


@dataclass(frozen=True)
class Garbage:
    """One key that nothing needs."""

    key: str
    size_bytes: int
    kind: str
    reason: str


@dataclass(frozen=True)
class _Living:
    """The runs that a driver works on."""

    age_s: float
    """Of the oldest one; what is younger may be its work."""
    stages: frozenset[str] | None
    """Names of all of their stages; None: a run has no record yet."""

    def has(self, stage: str) -> bool:
        return self.stages is None or stage in self.stages


class GarbageWalk:
    """One walk over the store.

    Args:
        store: where.
        plan: id of the plan that it is for, which is not garbage.
        retention: how old garbage must be.
        folder: for files of this process.
    """

    def __init__(self, store: Store, plan: str, retention: Retention, folder: Path) -> None:
        self._store, self._plan, self._retention = store, plan, retention
        self._claims = _last_entries(store.ledger.list(layout.CLAIMS_PREFIX))
        self._runs: dict[tuple[str, int], str] = {}
        """Runs by the lease and epoch of their newest drivers."""
        self._living = self._find_living()
        self._files, self._objects = KeySet(folder / "files"), KeySet(folder / "objects")
        self.problems: list[str] = []

    def close(self) -> None:
        """Delete the files of this process."""
        self._files.close()
        self._objects.close()

    def garbage(self) -> Iterator[Garbage]:
        """Yield what is garbage; records before what they name."""
        yield from self._work_records()
        yield from self._old(self._half_written())
        yield from self._unnamed(layout.TABLES_PREFIX, "data", self._files, layout.data_sha256)
        self._name_objects()
        if not self.problems:
            prefix = layout.OBJECTS_PREFIX
            yield from self._unnamed(prefix, "object", self._objects, layout.object_sha256)
        yield from self._checkpoints()
        yield from self._progress()
        yield from self._replaced_claims()
        yield from self._replaced_epochs()
        yield from self._videos()
        yield from self._old(self._own())

    def _find_living(self) -> _Living:
        ages, stages, known = [0.0], set[str](), True
        claims = self._claims.items()
        runs = {key: run for right, (key, _) in claims if (run := layout.claimed_run(right))}
        for key, (claim, age_s) in concurrently(self._driver, runs):
            run_id = runs[key]
            self._runs[claim["lease"], claim["epoch"]] = run_id
            if age_s is not None:
                ages.append(age_s + _SLACK_S)
                record = self._store.ledger.read(layout.run_key(run_id))
                known = known and record is not None
                stages |= {stage["name"] for stage in (record or {"stages": ()})["stages"]}
        return _Living(max(ages), frozenset(stages) if known else None)

    def _driver(self, key: str) -> tuple[Record, float | None]:
        """Return a claim, and its age if its owner lives."""
        claim = self._store.ledger.read(key) or {"lease": "", "epoch": -1}
        is_driven = claim["lease"] and self._is_driven(claim)
        return claim, (self._store.objects.age_s(key) or 0.0) if is_driven else None

    def _is_driven(self, claim: Record) -> bool:
        holder = HolderWatch(self._store, claim["lease"], claim["epoch"])
        return not holder.has_ended() and not holder.is_silent()

    def _is_older(self, key: str, than_s: float) -> bool:
        age_s = self._store.objects.age_s(key)
        return age_s is not None and age_s >= max(than_s, self._living.age_s)

    def _old(self, items: Iterable[Garbage]) -> Iterator[Garbage]:
        """Yield the items that are older than the retention time."""
        limit_s = self._retention.keep_s
        for item, is_old in concurrently(lambda item: self._is_older(item.key, limit_s), items):
            if is_old:
                yield item

    def _work_records(self) -> Iterator[Garbage]:
        """Collect the names of data files; yield the records that nobody needs."""
        named = chain(
            references.committed_files(self._store.objects),
            references.replacement_files(self._store.ledger),
        )
        for file in named:
            self._files.add(file.file.key)
        infos = self._store.objects.list(layout.STAGES_PREFIX)
        reads = concurrently(lambda info: self._store.ledger.read(info.key), infos)
        for info, record in reads:
            files = references.recorded_files(info.key, record or {})
            if all(file.file.key in self._files for file in files):
                continue  # committed: a shard that a later run reuses
            is_kept = self._living.has(layout.dataset_of(info.key)) or not self._is_older(
                info.key, max(self._retention.keep_s, self._retention.unfinished_s)
            )
            if not is_kept:
                yield _garbage(info, "work", "never committed, and no run continues it")
                continue
            for file in files:
                self._files.add(file.file.key)
                # a record whose files are lost does not count: its work runs again
                with suppress(_UnreadableError):
                    self._name_objects_of(file)

    def _half_written(self) -> Iterator[Garbage]:
        for info in self._store.objects.list(layout.TABLES_PREFIX):
            if layout.is_log_leftover(info.key):
                yield _garbage(info, "data", "half-written by a killed process")

    def _unnamed(
        self, prefix: str, kind: str, named: KeySet, sha256_of: Callable[[str], str | None]
    ) -> Iterator[Garbage]:
        infos = (info for info in self._store.objects.list(prefix) if sha256_of(info.key))
        unnamed = (info for info in infos if info.key not in named)
        yield from self._old(_garbage(i, kind, "no commit or record names it") for i in unnamed)

    def _name_objects(self) -> None:
        """Collect the names of objects in the rows of committed files."""
        with closing(KeySet(self._objects.path.with_name("read"))) as read:
            files = references.committed_files(self._store.objects)
            for file in (file for file in files if read.add(file.file.key)):
                try:
                    self._name_objects_of(file)
                except _UnreadableError as error:
                    # its rows may come back from a copy: their objects must be there then
                    if not references.is_replaced(self._store.objects, file.file.key):
                        self.problems.append(f"objects are kept: {error}, named by {file.by}")
        for key in takedown.withdrawn_keys(self._store.ledger, layout.TABLES_PREFIX):
            withdrawal = takedown.find_withdrawal(self._store.ledger, key)
            for share in withdrawal.shares.values() if withdrawal else ():
                for name in share.objects:
                    self._objects.add(name)

    def _name_objects_of(self, file: references.NamedFile) -> None:
        try:
            for named in references.objects_of(self._store.objects, file):
                self._objects.add(named.key)
        except TransientStorageError:
            raise
        except WithdrawnError:
            pass  # `_name_objects` reads its record
        except VideoARError as error:
            raise _UnreadableError(str(error)) from error

    def _checkpoints(self) -> Iterator[Garbage]:
        listed = self._store.objects.list(layout.CHECKPOINTS_PREFIX)
        infos = (info for info in listed if info.key.count("/") == _CHECKPOINT_DEPTH)
        for prefix, group in groupby(infos, lambda info: layout.checkpoints_of(info.key)):
            # a record goes before its files: what has a record can be loaded
            keys = sorted(group, key=lambda info: not info.key.endswith(".json"))
            reason, limit_s = self._why_done(prefix)
            newest = max(keys, key=lambda info: info.key)
            if reason and self._is_older(newest.key, limit_s):
                yield from (_garbage(info, "checkpoint", reason) for info in keys)

    def _why_done(self, prefix: str) -> tuple[str, float]:
        """Return why the checkpoints of a training are not needed, and from which age on."""
        stage = layout.dataset_of(prefix)
        key, _ = self._claims.get(prefix.rstrip("/"), (None, 0))
        claim = self._store.ledger.read(key) if key else None
        if self._living.has(stage) or (claim and self._is_driven(claim)):
            return "", 0.0
        run_id = self._runs.get((claim["lease"], claim["epoch"])) if claim else None
        if run_id is not None and self._store.ledger.read(layout.run_key(run_id)) is not None:
            stages = {run.name: run.status for run in load_run(self._store, run_id).stages}
            if stages.get(stage) in {"SUCCEEDED", "CACHED"}:
                return f"its training has finished in run {run_id}", self._retention.keep_s
        limit_s = max(self._retention.keep_s, self._retention.unfinished_s)
        return "its training was not continued", limit_s

    def _progress(self) -> Iterator[Garbage]:
        infos = self._store.objects.list(layout.RUNS_PREFIX)
        shown = (info for info in infos if layout.run_of_progress(info.key))
        old = self._old(_garbage(info, "progress", "its run has succeeded") for info in shown)
        for run_id, group in groupby(old, lambda item: layout.run_of_progress(item.key)):
            if run_id and load_run(self._store, run_id).status == "SUCCEEDED":
                yield from group

    def _replaced_claims(self) -> Iterator[Garbage]:
        infos = _entries_of_logs(self._store.objects.list(layout.CLAIMS_PREFIX))
        last = {key for key, _ in self._claims.values()}
        yield from self._old(
            _garbage(info, "claim", "a newer claim has replaced it")
            for info in infos
            if info.key not in last
        )

    def _replaced_epochs(self) -> Iterator[Garbage]:
        """Yield the epochs of each lease before the last one that an owner may come back to.

        An owner that was suspended finds out by the epoch after its own. So an epoch goes only with
        all before it, if their owners have all released the lease, or are silent for a day.
        """
        infos = _entries_of_logs(self._store.objects.list(layout.LEASES_PREFIX))
        logs = groupby(infos, lambda info: layout.lease_of(info.key))
        for name, group in logs:
            parts = defaultdict[int, list[ObjectInfo]](list)
            for info in group:
                parts[layout.number_of(info.key)].append(info)
            for epoch in sorted(parts)[:-1]:
                heartbeat = layout.heartbeat_key(name, epoch)
                age_s = self._store.objects.age_s(heartbeat)
                has_left = self._store.objects.find(heartbeat) == ENDED
                if not has_left and age_s is not None and age_s < _ZOMBIE_S:
                    break
                old = [_garbage(i, "lease", "a newer epoch has replaced it") for i in parts[epoch]]
                kept = [
                    item for item in old if not self._is_older(item.key, self._retention.keep_s)
                ]
                if kept:
                    break
                yield from old

    def _videos(self) -> Iterator[Garbage]:
        infos = self._store.objects.list(layout.JOB_VIDEOS_PREFIX)
        for job, group in groupby(infos, lambda info: layout.job_of_video(info.key)):
            result = self._store.ledger.read(layout.job_result_key(job))
            is_deleted = self._store.objects.size(layout.job_key(job)) is None
            if result is None and not is_deleted:
                continue  # not finished
            named = {result.get("video_key"), result.get("tokens_key")} if result else set()
            reason = "its request was deleted" if is_deleted else "another attempt counts"
            yield from self._old(
                _garbage(info, "video", reason)
                for info in group
                if is_deleted or info.key not in named
            )

    def _own(self) -> Iterator[Garbage]:
        for info in self._store.objects.list(layout.PROBES_PREFIX):
            if info.key != layout.PROBE_PASSED_KEY:
                yield _garbage(info, "probe", "left by a killed probe")
        for info in self._store.objects.list(layout.PLANS_PREFIX):
            if layout.plan_of(info.key) != self._plan:
                yield _garbage(info, "plan", "an old plan")


def _garbage(info: ObjectInfo, kind: str, reason: str) -> Garbage:
    return Garbage(info.key, info.size_bytes, kind, reason)


def _entries_of_logs(infos: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    return (info for info in infos if layout.is_numbered(info.key))


def _last_entries(keys: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Return key and number of the last entry of each log, by the name of what is claimed."""
    result: dict[str, tuple[str, int]] = {}
    for key in filter(layout.is_numbered, keys):
        right = layout.right_of(key)
        number = layout.number_of(key)
        if number >= result.get(right, ("", -1))[1]:
            result[right] = (key, number)
    return result
