"""Verbs on schedules: see `docs/scheduling.md`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from videoar.api.runs import Document, _execute, make_engine
from videoar.core.errors import ConfigError, DamagedError, VideoARError

if TYPE_CHECKING:
    from videoar.core.types import Json
    from videoar.pipeline.registry import Registry
    from videoar.pipeline.spec import PipelineSpec
    from videoar.records.run import Run
    from videoar.schedule.tick import Outcome
    from videoar.storage.store import Store

_MAX_FIRINGS = 10
"""chosen: one screen per pipeline."""


class LocalLauncher:
    """Executes runs in this process, to their end.

    Args:
        store: of the runs.
        target: see `make_engine`.
        registry: known stages; None means those of this package.
    """

    def __init__(self, store: Store, target: str, registry: Registry | None = None) -> None:
        from videoar.pipeline.registry import BUILTIN

        self._store, self._target = store, target
        self._registry = BUILTIN if registry is None else registry

    def find(self, run_id: str) -> Run | None:
        """Return a run, None if it was never started.

        One that was stopped together with its tick (SIGTERM of a pod, Ctrl-C) is INTERRUPTED: only
        `videoar cancel` decides that a scheduled run ends.
        """
        from videoar.records.run_record import load_run
        from videoar.storage.layout import cancel_prefix, run_key

        if self._store.ledger.read(run_key(run_id)) is None:
            return None
        run = load_run(self._store, run_id)
        if run.status == "CANCELLED" and not any(self._store.ledger.list(cancel_prefix(run_id))):
            return run.model_copy(update={"status": "INTERRUPTED"})
        return run

    def launch(self, spec: PipelineSpec, run_id: str, cause: Mapping[str, Json]) -> None:
        """Execute a run; one that was started before continues with the document that it has.

        Raises:
            VideoARError: what stopped the run.
        """
        from videoar.runner.execute import Execution, resume_spec

        if self.find(run_id) is not None:
            spec = resume_spec(run_id, self._store, self._registry)
        engine = make_engine(self._target)
        execution = Execution(
            spec, self._store, engine, run_id, registry=self._registry, trigger=cause
        )
        _execute(execution, lambda _: nullcontext(), None, None)

    def cancel(self, run_id: str) -> None:
        """End a run; what it has finished stays."""
        from videoar.records.run_log import cancel_run

        with suppress(ConfigError):  # it has ended meanwhile
            cancel_run(self._store, run_id)


def schedule_tick(
    store: Store,
    paths: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    target: str = "local",
    now: datetime | None = None,
) -> Document:
    """Run what is due of some pipelines; idempotent, see `videoar.schedule.tick`.

    Args:
        store: of the schedules and runs.
        paths: pipeline files with a `trigger`.
        overrides: `a.b=value` for each of them.
        target: see `make_engine`.
        now: time of the tick, with a time zone; None means the clock's.

    Returns:
        `{fired: [{pipeline, key, run_id, status, error}], skipped: [{pipeline, key, reason}],
        exit_code}`: runs that it has started, continued or concluded; what it has not, and why; the
        code of the first error, of a run or of a pipeline that could not be ticked. An error of one
        pipeline does not stop the others.
    """
    from videoar.pipeline.spec import load_pipeline
    from videoar.schedule.tick import Outcome, Ticker

    outcomes: list[Outcome] = []
    for path in paths:
        name = str(path)
        try:
            spec = load_pipeline(path, overrides)
            name = spec.name
            time = now or datetime.now(UTC)  # of each: the runs of the one before take hours
            outcomes += Ticker(spec, store, LocalLauncher(store, target), time).tick()
        except VideoARError as error:
            outcomes.append(Outcome(name, reason=str(error), error=error))
    return _document(outcomes)


def backfill(
    store: Store,
    path: Path,
    start: datetime,
    end: datetime,
    overrides: Sequence[str] = (),
    *,
    target: str = "local",
) -> Document:
    """Run the windows of a time span that have had no run, oldest first; as `schedule_tick`.

    Raises:
        ConfigError: the file has no cron trigger, or `end` is before `start`.
    """
    from videoar.pipeline.spec import load_pipeline
    from videoar.schedule.tick import Ticker

    if end < start:
        raise ConfigError(f"--to {end.isoformat()}", "is before --from", "swap them")
    spec = load_pipeline(path, overrides)
    ticker = Ticker(spec, store, LocalLauncher(store, target), datetime.now(UTC))
    return _document(ticker.backfill(start, end))


def _document(outcomes: Iterable[Outcome]) -> Document:
    outcomes = list(outcomes)
    return {
        "fired": [outcome.public() for outcome in outcomes if outcome.has_acted],
        "skipped": [outcome.public() for outcome in outcomes if not outcome.has_acted],
        "exit_code": next((o.error.exit_code for o in outcomes if o.error is not None), 0),
    }


def schedule_ls(
    store: Store, pipelines: Sequence[str] = (), now: datetime | None = None
) -> Document:
    """Return the schedules that a tick has seen, from the store alone.

    Returns:
        `{schedules: [{pipeline, trigger, concurrency, is_paused, since, next, missed}], fired:
        [{pipeline, key, number, run_id, cause, status, at, released}], skipped, damaged}`: firings
        newest first, at most 10 of each pipeline; `missed` counts windows that are due; `damaged`
        names records that cannot be read.
    """
    from videoar.schedule import records
    from videoar.schedule.overview import firings_of, schedule_of

    time = now or datetime.now(UTC)
    names = pipelines or records.scheduled_pipelines(store)
    schedules, damaged = [], []
    for name in names:
        try:
            schedules.append(schedule_of(store, name, time))
        except DamagedError as error:
            damaged.append(str(error))
    listed = [firing for name in names for firing in firings_of(store, name, _MAX_FIRINGS)]
    return {
        "schedules": schedules,
        "fired": [firing for firing in listed if firing["run_id"]],
        "skipped": [firing for firing in listed if not firing["run_id"]],
        "damaged": damaged + [f["reason"] for f in listed if f["status"] == "DAMAGED"],
    }


def schedule_pause(store: Store, pipeline: str, *, paused: bool = True) -> Document:
    """Pause the schedule of a pipeline, or let it go on; windows during a pause are not missed.

    Raises:
        ConfigError: no tick has seen such a schedule.
    """
    from videoar.schedule.records import pause

    control = pause(store, pipeline, paused=paused, now=datetime.now(UTC))
    return {"pipeline": pipeline, "is_paused": control.is_paused, "by": control.by}


def schedule_release(store: Store, key: str) -> Document:
    """Let a key fire once more, at the next tick.

    Raises:
        ConfigError: no such key, or its run has not ended.
    """
    from videoar.schedule.records import release

    firing = release(store, key, datetime.now(UTC))
    return {"pipeline": firing.pipeline, "key": firing.key, "released": True}


def schedule_serve(
    store: Store,
    paths: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    target: str = "local",
    every_s: float = 30.0,
) -> None:
    """Tick until interrupted, as the only process of the store that does; see `schedule.serve`.

    Raises:
        LeaseHeldError: another process does already.
    """
    from videoar.schedule.serve import serve

    serve(store, paths, overrides, LocalLauncher(store, target), target=target, every_s=every_s)
