"""Resolve names from the command line to snapshots and runs.

Every id that a verb prints is accepted: a snapshot id, a dataset (its newest snapshot), a ref, a
run id, `last` (the newest run), RUN/STAGE, a digest or fingerprint, and the id of a row (model,
sample, clip, rejected item, source). Ids may be shortened to a unique prefix. Exact names win over
prefixes, and snapshots and runs over rows: a short prefix nearly always matches some row as well.
"""

from collections.abc import Iterator

import pyarrow as pa

from videoar.contracts.names import CLIPS, MODELS, REJECTS, SAMPLES
from videoar.core.errors import (
    ConfigError,
    DamagedError,
    SnapshotNotFoundError,
    WithdrawnError,
    did_you_mean,
)
from videoar.core.ids import is_safe_key
from videoar.core.types import Commit
from videoar.records.run import Run
from videoar.records.run_record import load_run, run_ids
from videoar.storage.delta_log import iter_commits
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.storage.takedown import find_tombstone

LAST = "last"
SOURCE_PREFIX = "source:"
"""How lineage prints a source: `source:<sha256>`."""
_ROW_KEYS = {
    MODELS: ("digest",),
    SAMPLES: ("sample_id", "video_sha256"),
    CLIPS: ("clip_id", "source_id", "video_sha256"),
    REJECTS: ("item_id", "source_id"),
}
_MIN_ROW_PREFIX = 6
"""chosen: 6 hex digits distinguish 16 million rows; a shorter prefix matches by chance."""
_MAX_LISTED = 8
"""chosen: candidates in one error line."""


def find_run(store: Store, name: str | None = None) -> str:
    """Return the id of the run that a name means; None means the newest run.

    A name that is no run id and no prefix of one may name a snapshot: then it means the run that
    created it.

    Raises:
        ConfigError: no run matches, or several do.
    """
    try:
        match = find_run_or_snapshot(store, name)
    except SnapshotNotFoundError:
        newest = ", ".join(reversed(run_ids(store)[-3:]))
        hint = f"newest: {newest}" if newest else "start one with: videoar run PIPELINE"
        raise ConfigError(name or "''", f"no such run in {store.url}", hint) from None
    return match if isinstance(match, str) else match.commit.provenance.run_id


def find_run_or_snapshot(store: Store, name: str | None = None) -> str | Snapshot:
    """Return the run id that a name means, or else the snapshot; None means the newest run.

    Raises:
        SnapshotNotFoundError: nothing in the store has this name.
        ConfigError: there is no run yet, or a prefix matches several ids.
    """
    known = run_ids(store)
    if name is None or name == LAST:
        if not known:
            raise ConfigError(store.url, "no runs yet", "start one with: videoar run PIPELINE")
        return known[-1]
    matches = [run_id for run_id in known if name and run_id.startswith(name)]
    if name in matches:
        return name
    if len(matches) > 1:
        raise _ambiguous(name, matches[::-1])  # the newest first
    return matches[0] if matches else find_snapshot(store, name)


def find_snapshot(store: Store, name: str) -> Snapshot:
    """Return the snapshot that a name means.

    A run means the output of its last finished stage; RUN/STAGE names another stage.

    Raises:
        SnapshotNotFoundError: nothing in the store has this name.
        ConfigError: a prefix matches several things.
        WithdrawnError: it is a source that was taken down.
    """
    if is_safe_key(name):  # parts of it become parts of keys
        snapshot = _by_exact_name(store, name) or _by_prefix(store, name) or _by_row(store, name)
        if snapshot is not None:
            return snapshot
        source = name.removeprefix(SOURCE_PREFIX)
        if find_tombstone(store.ledger, source) is not None:
            hint = f"videoar forget --source {source} lists what was derived from it"
            raise WithdrawnError(name, "this source was taken down", hint)
    raise SnapshotNotFoundError(name or "''", f"no such name in {store.url}", _known(store, name))


def _by_exact_name(store: Store, name: str) -> Snapshot | None:
    # refs first: they are set on purpose, a dataset of the same name exists by accident
    head = store.refs.head(name)
    if head is not None:
        try:
            return store.snapshot(head)
        except SnapshotNotFoundError as error:
            what, hint = f"points at {head}, which is lost", "restore the store from a copy"
            raise DamagedError(f"ref {name}", what, hint) from error
    if ":" in name and not name.startswith(SOURCE_PREFIX):
        try:
            return store.snapshot(name)
        except SnapshotNotFoundError:
            return None  # it may be a prefix of an id
    run, slash, stage = name.partition("/")
    if slash or name == LAST:
        return _output(store, load_run(store, find_run(store, run)), stage)
    commits = list(iter_commits(store.objects, name))
    return store.snapshot(commits[-1].snapshot) if commits else None


def _output(store: Store, run: Run, stage: str) -> Snapshot:
    """Return the output of a stage of a run; of its last finished stage if none is named."""
    if not run.outputs:
        raise SnapshotNotFoundError(f"run {run.run_id}", "has no snapshot yet")
    name = stage or list(run.outputs)[-1]
    if name not in run.outputs:
        hint = did_you_mean(name, run.outputs)
        raise SnapshotNotFoundError(f"{run.run_id}/{name}", "no snapshot of this stage", hint)
    return store.snapshot(run.outputs[name])


def _by_prefix(store: Store, name: str) -> Snapshot | None:
    runs = [run_id for run_id in run_ids(store) if run_id.startswith(name)]
    # a dict, because equal content is committed again and has one id
    snapshots = dict.fromkeys(
        commit.snapshot for commit in iter_commits(store.objects) if _matches(commit, name)
    )
    if len(runs) + len(snapshots) > 1:
        raise _ambiguous(name, [*snapshots, *runs])
    if runs:
        return _output(store, load_run(store, runs[0]), "")
    return store.snapshot(next(iter(snapshots))) if snapshots else None


def _matches(commit: Commit, prefix: str) -> bool:
    ids = (commit.snapshot, commit.digest, commit.provenance.fingerprint)
    return any(value.startswith(prefix) for value in ids)


def _by_row(store: Store, name: str) -> Snapshot | None:
    """Return the first snapshot with a row of this id; reads the id columns of the whole store."""
    value = name.removeprefix(SOURCE_PREFIX)
    matches: dict[str, Snapshot] = {}
    for snapshot in store.snapshots():
        # an exact id ends the search; a prefix is compared with every row, to know that it is
        # unique
        for row_id in _row_ids(snapshot):
            if row_id == value:
                return snapshot
            if len(value) >= _MIN_ROW_PREFIX and row_id.startswith(value):
                matches.setdefault(row_id, snapshot)
    if len(matches) > 1:
        raise _ambiguous(name, list(matches))
    return next(iter(matches.values()), None)


def _row_ids(snapshot: Snapshot) -> Iterator[str]:
    keys = _ROW_KEYS.get(snapshot.contract)
    tables: Iterator[pa.Table] = snapshot.read_available(keys) if keys else iter(())
    for table in tables:
        for column in table.columns:
            yield from filter(None, column.to_pylist())


def _ambiguous(name: str, ids: list[str]) -> ConfigError:
    listed = ", ".join(ids[:_MAX_LISTED])
    more = f" and {len(ids) - _MAX_LISTED} more" if len(ids) > _MAX_LISTED else ""
    return ConfigError(name, f"matches {len(ids)}: {listed}{more}", "use a longer prefix")


def _known(store: Store, name: str) -> str:
    """Return a hint that lists what the store has."""
    commits = list(iter_commits(store.objects))
    if not commits:
        return "the store is empty; fill it with: videoar run PIPELINE"
    dataset = name.partition(":")[0]
    ids = list(dict.fromkeys(c.snapshot for c in commits if c.dataset == dataset))
    if ":" in name and ids:
        return f"{dataset} has {', '.join(ids[-_MAX_LISTED:])}"
    return did_you_mean(name, {commit.dataset for commit in commits} | set(store.refs.names()))
