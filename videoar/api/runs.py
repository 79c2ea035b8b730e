"""Verbs on runs."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from videoar.core.errors import ConfigError, VideoARError, did_you_mean

if TYPE_CHECKING:
    from videoar.admin.evaluation import EvaluationOptions
    from videoar.engine.base import Engine
    from videoar.records.run import Run
    from videoar.runner.execute import Execution
    from videoar.runner.plan import StagePlan
    from videoar.storage.store import Store

logger = logging.getLogger(__name__)
Document: TypeAlias = dict[str, Any]
"""A JSON object; `json.dumps` takes it as it is."""
Watch: TypeAlias = "Callable[[Execution], AbstractContextManager[None]]"
"""Wraps a run, e.g. to display its progress."""
_FROM_A_NODE = "on a node of the cluster use --target HOST:PORT, the address of its GCS"
_POLL_S = 1.0  # chosen: for people
_POLL_SHARE = 0.1  # chosen: at most this share of the time is reading
_CONCURRENT_READS = 16  # chosen: a run is some 20 requests, of 20 ms each on a remote store
_UNFINISHED = "has no finished snapshot"


def make_engine(target: str) -> Engine:
    """Return the engine of a target: `inline`, `local`, or `HOST:PORT` of a Ray cluster's GCS.

    Raises:
        ConfigError: the target is of another kind.
    """
    if target == "inline":
        from videoar.engine.inline import InlineEngine

        return InlineEngine()
    if target in ("job", "kuberay"):
        raise ConfigError(
            f"--target {target}", "cannot be submitted from the command line", _FROM_A_NODE
        )
    if target.startswith("ray://"):  # Ray Client
        raise ConfigError(
            f"--target {target}", "Ray Data does not support Ray Client", _FROM_A_NODE
        )
    if target not in ("local", "auto") and not re.fullmatch(r"[^@]+:\d{1,5}", target):
        where = f"--target {target.rpartition('@')[2]}"  # no password
        raise ConfigError(where, "is no target", f"use local, inline, or {_FROM_A_NODE}")
    from videoar.engine.ray_engine import RayEngine

    return RayEngine(target)


def run(
    store: Store,
    path: Path,
    overrides: Sequence[str] = (),
    *,
    target: str = "local",
    start: str | None = None,
    until: str | None = None,
    wait: bool = False,
    watch: Watch = lambda _: nullcontext(),
) -> Run:
    """Plan and execute a pipeline file.

    Args:
        store: where snapshots and the run's record go.
        path: pipeline file (YAML).
        overrides: `a.b=value`, e.g. `inputs.videos=/data/videos`.
        target: see `make_engine`.
        start: first stage to run; what it needs must be finished.
        until: last stage to run.
        wait: wait for an equal run that is in progress, and adopt what it made.
        watch: wraps the execution.

    Raises:
        ConfigError: the file, an override or an input cannot be used; nothing ran.
        LeaseHeldError: an equal run is in progress.
        TimedOutError: a stage reached its time limit.
        GateError: the promotion gate blocked; everything before it is finished.
        StageError: a stage failed.
    """
    from videoar.pipeline.spec import load_pipeline
    from videoar.runner.execute import Execution

    # the file first: its mistakes are reported before anything of the engine is created
    execution = Execution(load_pipeline(path, overrides), store, make_engine(target), wait=wait)
    return _execute(execution, watch, start, until)


def evaluate(
    store: Store,
    samples: str,
    reference: str,
    metrics: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    target: str = "local",
    watch: Watch = lambda _: nullcontext(),
    **options: Unpack[EvaluationOptions],
) -> Document:
    """Score samples against a reference, as a run.

        api.evaluate(store, "samples", "ref://quickstart", ["rendered", "frechet_lite0"])

    Args:
        store: where names are looked up, and where snapshots and the run's record go.
        samples: see `videoar.admin.evaluation`, as for the following two.
        reference: frozen set, clips or videos.
        metrics: names of metrics and of groups.
        overrides: of the pipeline, as for `run`.
        target: see `make_engine`.
        watch: wraps the execution.
        **options: `protocol`, `num`, `domain`, `train`.

    Returns:
        The score card, see `score_card`.

    Raises:
        ConfigError: a name, metric or option cannot be used; nothing ran.
        ContractError: the samples differ in form, or are not those of the set.
        GateError: a takedown has removed a source of the set.
        StageError: a stage failed.
    """
    from videoar.admin.evaluation import evaluation_pipeline, score_card
    from videoar.pipeline.spec import build_pipeline
    from videoar.runner.execute import Execution

    document = evaluation_pipeline(store, samples, reference, metrics, options)
    spec = build_pipeline(document, "videoar evaluate", overrides)
    run = _execute(Execution(spec, store, make_engine(target)), watch, None, None)
    return score_card(store, run)


def resume(
    store: Store,
    name: str,
    *,
    target: str = "local",
    start: str | None = None,
    accept_drift: bool = False,
    watch: Watch = lambda _: nullcontext(),
) -> Run:
    """Execute an earlier run again under its id; finished stages and shards are reused.

    A run that has succeeded stays as it is. One that was started with `until` ends there again.

    Args:
        store: where the run is.
        name: of the run.
        target: see `make_engine`.
        start: first stage to run; what it needs must be finished. None: as the run was started.
        accept_drift: resume although code, or files that options name, have changed meanwhile.
        watch: wraps the execution.

    Raises:
        ConfigError: something has changed since the run was started.
        VideoARError: as for `run`.
    """
    from videoar.records.names import find_run
    from videoar.records.run_record import load_run
    from videoar.runner.execute import Execution, resume_spec

    run_id = find_run(store, name)
    earlier = load_run(store, run_id)
    if start and start not in {stage.name for stage in earlier.stages}:
        hint = did_you_mean(start, [stage.name for stage in earlier.stages])
        raise ConfigError(f"--from {start}", f"run {run_id} has no such stage", hint)
    if earlier.status == "SUCCEEDED":
        logger.info("run %s has already succeeded, nothing changes", run_id)
        return earlier
    spec, engine = resume_spec(run_id, store), make_engine(target)
    execution = Execution(spec, store, engine, run_id=run_id, accept_drift=accept_drift)
    return _execute(execution, watch, start or earlier.from_, earlier.until)


def _execute(execution: Execution, watch: Watch, start: str | None, until: str | None) -> Run:
    from videoar.runner.monitor import Monitor

    try:
        with watch(execution), Monitor(execution):
            execution.run(start, until)
    except VideoARError:  # not on Ctrl-C: rendering a page takes seconds
        if execution.has_started:
            _publish_results(execution)
        raise
    finally:
        execution.engine.close()
    _publish_results(execution)
    # read from the store: what is returned is what `videoar status` prints later
    return status(execution.store, execution.run_id)


def _publish_results(execution: Execution) -> None:
    """Write the page and the MLflow mirror; a finished run stays finished if they fail."""
    from videoar.admin.registry import mirror_run
    from videoar.report.publish import publish_page

    page = publish_page(execution.store, execution.run_id)
    mirror_run(execution.store, execution.spec, execution.run_id, page)


def plan(
    store: Store,
    path: Path,
    overrides: Sequence[str] = (),
    *,
    start: str | None = None,
    until: str | None = None,
) -> list[StagePlan]:
    """Return what `run` would do with each requested stage, and why; has no side effect.

    Raises:
        ConfigError: the file, an override or an input cannot be used.
    """
    from videoar.pipeline.spec import load_pipeline
    from videoar.runner import plan

    spec = load_pipeline(path, overrides)
    requested = {stage.name for stage in spec.select(start, until)}
    plans = [stage for stage in plan.plan(spec, store) if stage.name in requested]
    # as `run` does: with `start`, earlier stages are read and never executed
    must_exist = spec.upstream(start) if start else set()
    for stage in plans:
        if stage.name in must_exist and stage.action != "cached":
            raise ConfigError(f"stages.{stage.name}", _UNFINISHED, "leave out --from")
    return plans


def status(store: Store, name: str | None = None) -> Run:
    """Return the state of a run, see `ls`; None means the newest one.

    Raises:
        ConfigError: no run matches, or several do.
    """
    from videoar.records.names import find_run
    from videoar.records.run_record import readable_run

    return readable_run(store, find_run(store, name))


def ls(store: Store, limit: int | None = None) -> list[Run]:
    """Return the newest `limit` runs, newest first; None means all of them.

    A run with a record that cannot be read is DAMAGED, and its `error` names the record.
    """
    from videoar.records.run_folds import all_runs
    from videoar.records.run_record import readable_run, run_ids

    if limit is None:
        return all_runs(store)
    # ids sort by time, so only the listed runs are read
    with ThreadPoolExecutor(_CONCURRENT_READS) as pool:
        return list(pool.map(partial(readable_run, store), run_ids(store)[::-1][:limit]))


def cancel(store: Store, name: str) -> str:
    """Ask the driver of a run, on any host, to stop; return its id. Finished shards stay.

    Raises:
        ConfigError: the run is not running.
    """
    from videoar.records.names import find_run
    from videoar.records.run_log import cancel_run

    run_id = find_run(store, name)
    cancel_run(store, run_id)
    return run_id


def follow(store: Store, name: str | None = None) -> Iterator[Run]:
    """Yield the state of a run again and again, at last that in which it has ended.

    The slower the store, the fewer reads.

    Raises:
        ConfigError: no run matches, or several do.
    """
    from videoar.records.run_record import readable_run

    run_id = status(store, name).run_id  # once: the newest run may soon be another one
    while True:
        began = time.monotonic()
        state = readable_run(store, run_id)
        yield state
        if state.has_ended:
            return
        time.sleep(max(_POLL_S, (time.monotonic() - began) / _POLL_SHARE))
