"""Queries over the runs of a pipeline, newest first: what an earlier run made, read or recorded."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from videoar.core.errors import DamagedError
from videoar.pipeline.fingerprint import FingerprintParts
from videoar.records.run import InputRun, Run
from videoar.records.run_record import events_of, load_run, read_records, run_ids
from videoar.storage.layout import run_key
from videoar.storage.store import Store

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
OnDamage = Callable[[DamagedError], None]
_FIRST, _AT_ONCE = 4, 64
"""chosen: records of runs that are read before it is known whether they are needed, at first and at
most. The newest run is often of the same pipeline."""


def stage_parts(store: Store, run_id: str, stage: str) -> FingerprintParts | None:
    """Return the fingerprint parts that a run recorded for a stage, None if it has none."""
    result: FingerprintParts | None = None
    for event in events_of(store, run_id):
        if event["kind"] == "stage" and event["stage"]["name"] == stage and "parts" in event:
            # the last ones: a resumed run records them again, perhaps by newer code
            result = event["parts"]
    return result


def _warn(error: DamagedError) -> None:
    logger.warning("%s; an earlier run is compared", error)


def _refuse(error: DamagedError) -> None:
    raise error


def previous_parts(
    store: Store,
    pipeline: str,
    stage: str,
    before: str | None = None,
    on_damage: OnDamage = _warn,
) -> tuple[str, FingerprintParts] | None:
    """Return the newest run of a pipeline that recorded this stage, and its parts.

    Args:
        store: where runs are recorded.
        pipeline: name of the pipeline.
        stage: name of the stage.
        before: only runs before this run id.
        on_damage: called for each run with a damaged record; the one before it is taken.
    """
    parts = _newest(store, pipeline, before, lambda i: stage_parts(store, i, stage), on_damage)
    return next(parts, None)


def previous_input(store: Store, pipeline: str, name: str, before: str) -> InputRun | None:
    """Return the listing of an input by the newest run of a pipeline before `before`."""
    listed = _newest(store, pipeline, before, lambda i: load_run(store, i).inputs.get(name), _warn)
    return next((value for _, value in listed), None)


def _newest(
    store: Store,
    pipeline: str,
    before: str | None,
    read: Callable[[str], _T | None],
    on_damage: OnDamage,
) -> Iterator[tuple[str, _T]]:
    """Yield what is read of the runs of a pipeline that have it, newest first."""
    for run_id in _newest_first(store, pipeline, before, on_damage):
        try:
            value = read(run_id)
        except DamagedError as error:
            on_damage(error)
        else:
            if value is not None:
                yield run_id, value


def ended_runs(store: Store, pipeline: str, before: str | None) -> Iterator[Run]:
    """Yield the runs of a pipeline that came to their end, newest first.

    That is a decision: a model, or a gate that blocked. Runs that were stopped or failed, or that
    were asked for a part of the pipeline only, or skipped all of it, are left out.
    """
    for run_id in _newest_first(store, pipeline, before):
        run = load_run(store, run_id)
        is_whole = run.until is None and any(stage.status != "SKIPPED" for stage in run.stages)
        if is_whole and run.status in {"SUCCEEDED", "GATE_BLOCKED"}:
            yield run


def _newest_first(
    store: Store, pipeline: str, before: str | None, on_damage: OnDamage = _refuse
) -> Iterator[str]:
    ids = [run_id for run_id in reversed(run_ids(store)) if before is None or run_id < before]
    count = _FIRST
    while ids:
        some, ids = ids[:count], ids[count:]
        count = min(4 * count, _AT_ONCE)
        records = read_records(store, [run_key(run_id) for run_id in some])
        for run_id, record in zip(some, records, strict=True):
            if isinstance(record, DamagedError):
                on_damage(record)
            elif record is not None and record.get("pipeline") == pipeline:
                yield run_id
