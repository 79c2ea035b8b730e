"""Verbs on a store and a machine: takedowns, garbage, benchmarks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoar.api.runs import Document, ls
from videoar.core.settings import settings

if TYPE_CHECKING:
    from videoar.admin.gc import Kind
    from videoar.bench.result import BenchResult
    from videoar.records.run import Run
    from videoar.storage.store import Store

logger = logging.getLogger(__name__)


def open_store(url: str = "") -> Store:
    """Open a store; without a URL the one of VIDEOAR_STORE, or `.videoar` in this directory.

    Raises:
        ConfigError: the URL cannot be used.
        StorageError: an S3 store cannot be reached, or its put-if-absent is not atomic.
    """
    from videoar.storage import store

    return store.open_store(url or settings().store_url, endpoint=settings().s3_endpoint)


def store_migrate(url: str = "") -> dict[str, Any]:
    """Bring a store to the format of this version, see `videoar.admin.migrate`.

    Args:
        url: as for `open_store`.

    Raises:
        ConfigError: the URL cannot be used.
        StorageError: its format is newer.
    """
    from videoar.admin.migrate import migrate
    from videoar.storage import store

    url, endpoint = url or settings().store_url, settings().s3_endpoint
    return migrate(store.open_store(url, endpoint=endpoint, any_format=True))


def forget(
    store: Store, source: str, reason: str = "", *, dry_run: bool = False, replan: bool = False
) -> Document:
    """Take a source down; report pages that show its clips are rendered again without them.

    Args:
        store: where it is.
        source: SHA-256 of the source file.
        reason: why; kept in the tombstone.
        dry_run: only return what would be deleted.
        replan: also return what would have to run again.

    Returns:
        As `videoar.admin.forget`, and `pages`: the runs whose report pages showed it.

    Raises:
        ConfigError: this is no SHA-256.
        SnapshotNotFoundError: nothing in the store is of this source.
    """
    from videoar.admin import forget
    from videoar.report.publish import rerender_reports

    result = forget.forget(store, source, reason, dry_run=dry_run, replan=replan)
    holders = {entry["id"] for entry in result["derived"] if entry["holds_content"]}
    # listed after the takedown: runs that started meanwhile may have read the source
    runs = ls(store)[::-1]  # the oldest first
    # what a damaged run has made is not known: its page goes, too
    unknown = bool(result["damaged"])
    affected = [r for r in runs if unknown or holders & _snapshots_of(r) or r.status == "DAMAGED"]
    if not dry_run:
        rerender_reports(store, affected)
    for run in runs:
        if run.status == "RUNNING":
            logger.warning("run %s is in progress: run forget again when it has ended", run.run_id)
    return {**result, "pages": [run.run_id for run in affected]}


def gc_plan(store: Store, days: float = 7.0, unfinished_days: float = 30.0) -> Document:
    """Record what `gc_apply` may delete; see `videoar.admin.gc`.

    Args:
        store: where.
        days: how old garbage must be.
        unfinished_days: how old work records and checkpoints must be that a resumed run would
            continue.

    Returns:
        `{ok, plan, keys, bytes, checks: [{name, ok, detail}]}`; a check per kind of garbage, and
        one that is not `ok` for what could not be read.
    """
    from videoar.admin import garbage, gc

    retention = garbage.Retention(
        keep_s=days * garbage.DAY_S, unfinished_s=unfinished_days * garbage.DAY_S
    )
    made = gc.plan(store, retention)
    return _garbage_document(made.plan, made.kinds, made.problems)


def gc_apply(store: Store, plan: str) -> Document:
    """Delete what is in a plan and is still garbage; return what was deleted, as `gc_plan`.

    Raises:
        ConfigError: there is no such plan.
        LeaseHeldError: another process deletes garbage.
    """
    from videoar.admin import gc

    return _garbage_document(plan, *gc.apply(store, plan))


def _garbage_document(plan: str, kinds: Mapping[str, Kind], problems: Sequence[str]) -> Document:
    checks = [{"name": name, "ok": True, "detail": str(kind)} for name, kind in kinds.items()]
    checks += [{"name": "object", "ok": False, "detail": problem} for problem in problems]
    return {
        "ok": not problems,
        "plan": plan,
        "keys": sum(kind.keys for kind in kinds.values()),
        "bytes": sum(kind.size_bytes for kind in kinds.values()),
        "checks": checks,
    }


def _snapshots_of(run: Run) -> set[str]:
    inputs = {snapshot for stage in run.stages for snapshot in stage.inputs.values()}
    return inputs | set(run.outputs.values())


def bench(
    name: str,
    videos: Path | None = None,
    rounds: int = 3,
    *,
    gpu: Mapping[str, Any] | None = None,
) -> BenchResult:
    """Run a benchmark beside its baselines.

    Args:
        name: one of `videoar.bench.BENCHES`.
        videos: folder to measure on; None draws videos.
        rounds: how often each contestant runs, in turns.
        gpu: options of the benchmark `gpu`, the fields of `videoar.bench.gpu.plan.Options`.

    Raises:
        ConfigError: no such benchmark or section, or what it compares with is not installed.
    """
    from videoar.bench import run_benchmark

    return run_benchmark(name, videos, rounds, gpu)
