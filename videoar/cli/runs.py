"""Verbs on runs: start, inspect and stop them."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from videoar import api
from videoar.cli.output import (
    Block,
    Table,
    emit,
    flushed_stdout,
    local_time,
    progress_text,
    to_json,
)
from videoar.cli.session import log_form, session, verb
from videoar.core.errors import StorageError
from videoar.core.logging import configure_logging
from videoar.core.printable import printable
from videoar.core.settings import settings

PipelineArgument = Annotated[Path, typer.Argument(metavar="PIPELINE", help="Pipeline file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. inputs.videos=PATH."),
]
From = Annotated[
    str | None, typer.Option("--from", metavar="STAGE", help="First stage; earlier ones exist.")
]
Until = Annotated[str | None, typer.Option(metavar="STAGE", help="Last stage.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run id, prefix of it, or last.")]
OptionalRun = Annotated[
    str | None, typer.Argument(metavar="RUN", help="Run id or prefix of it; default: last.")
]
app = typer.Typer()
_PANEL = "Runs"
_LISTED_RUNS = 20
"""chosen: one screen; each run takes one request per event on S3."""
_LINES_EVERY_S = 10.0
_LISTED_COMPONENTS = 3
"""chosen: a refactoring changes a hundred components; `explain` and --json list them all."""


@verb(app, _PANEL, "run pipelines/quickstart.yaml")
def run(
    pipeline: PipelineArgument,
    overrides: Overrides = None,
    start: From = None,
    until: Until = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Same as plan: run nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for an equal run, adopt it.")] = False,
) -> None:
    """Plan and execute a pipeline."""
    if dry_run:
        plan(pipeline, overrides, start, until)
        return
    store = session.open()
    _execute(
        lambda: api.run(
            store,
            pipeline,
            overrides or [],
            target=session.target or settings().target,
            start=start,
            until=until,
            wait=wait,
            watch=watch,
        )
    )


@verb(app, _PANEL, "resume last")
def resume(
    run_id: RunArgument,
    start: From = None,
    accept_drift: Annotated[
        bool, typer.Option("--accept-drift", help="Also if code or files have changed since.")
    ] = False,
) -> None:
    """Continue a run that did not finish.

    It keeps its id; finished stages and shards are reused, and a run that succeeded stays as it is.
    One that was started with --until ends there again. If code, or a file that an option names,
    has changed since, it is refused.
    """
    store = session.open()
    target = session.target or settings().target
    _execute(
        lambda: api.resume(
            store, run_id, target=target, start=start, accept_drift=accept_drift, watch=watch
        )
    )


@verb(app, _PANEL, "plan pipelines/quickstart.yaml")
def plan(
    pipeline: PipelineArgument, overrides: Overrides = None, start: From = None, until: Until = None
) -> None:
    """Show what would run and why; change nothing."""
    plans = api.plan(session.open(), pipeline, overrides or [], start=start, until=until)
    rows = [
        (
            stage.name,
            stage.action,
            f"{stage.shards.cached}/{stage.shards.planned}" if stage.shards.planned else None,
            _shortened(stage.reason),
        )
        for stage in plans
    ]
    emit(
        {"stages": [stage.model_dump(mode="json") for stage in plans]},
        lambda: [Table(("stage", "action", ">shards cached", "reason"), rows)],
    )


@verb(app, _PANEL, "status last --watch")
def status(
    run_id: OptionalRun = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow it to its end; exit with the code of that.")
    ] = False,
) -> None:
    """Show the stages of a run, their snapshots, rows and progress.

    Exit code 7 if a record of it is damaged; what the others tell is shown.
    """
    store = session.open()
    if watch:
        raise typer.Exit(_watch(api.follow(store, run_id)).exit_code)
    state = api.status(store, run_id)
    report = api.report_path(store, state.run_id)
    emit(run_document(state, report), lambda: run_blocks(state, report))
    if state.status == "DAMAGED":
        raise typer.Exit(state.exit_code)


def _watch(states: "Iterator[api.Run]") -> "api.Run":
    """Print what changes until a run ends: a table, a line per stage, or JSON, a line each."""
    if sys.stdout.isatty() and not session.as_json:
        from videoar.cli.live import redraw

        states = redraw(states)
    else:
        states = map(_JsonLines() if session.as_json else _Lines(), states)
    (last,) = deque(states, maxlen=1)
    if not session.as_json:
        report = api.report_path(session.open(), last.run_id)
        emit(None, lambda: run_blocks(last, report))
    return last


class _JsonLines:
    """Prints a run as a line of JSON if it has changed; seconds alone are no change."""

    def __init__(self) -> None:
        self._printed: object = None

    def __call__(self, state: "api.Run") -> "api.Run":
        document = state.public()
        shown = [state.status, *({**s, "seconds": None} for s in document["stages"])]
        if shown != self._printed:
            with flushed_stdout():
                print(to_json(document, indent=None))
        self._printed = shown
        return state


class _Lines:
    """Prints a line when the status of a stage changes, and every 10 s while it makes progress."""

    def __init__(self) -> None:
        self._printed: dict[str, tuple[str, str, float]] = {}

    def __call__(self, state: "api.Run") -> "api.Run":
        for stage in state.stages:
            now, text = time.monotonic(), progress_text(stage)
            status, shown, at = self._printed.get(stage.name, ("PENDING", "", 0.0))
            if stage.status != status or (text != shown and now - at >= _LINES_EVERY_S):
                line = f"{local_time(time.time())}  {stage.name}  {stage.status}  {text}"
                with flushed_stdout():
                    print(printable(line.rstrip()))
                self._printed[stage.name] = (stage.status, text, now)
        return state


@verb(app, _PANEL, "ls --limit 5")
def ls(
    limit: Annotated[int, typer.Option(min=0, help="Newest runs to list; 0 lists all.")] = (
        _LISTED_RUNS
    ),
) -> None:
    """List runs, the newest first.

    Exit code 7 if a record of one is damaged; it is named, and all others are listed.
    """
    # One extra run shows whether there are more; reading all of them takes minutes on S3.
    runs = api.ls(session.open(), limit + 1 if limit else None)
    listed = runs[:limit] if limit else runs
    damaged = [run for run in listed if run.status == "DAMAGED"]
    keys = {"run_id", "pipeline", "status", "started_at", "seconds", "queued_behind", "error"}
    rows = [
        (
            run.run_id,
            run.status,
            run.pipeline,
            local_time(run.started_at),
            f"{run.seconds:.0f}",
            run.queued_behind,
        )
        for run in listed
    ]

    def blocks() -> list[Block]:
        more = [f"more than {limit} runs; videoar ls --limit 0 lists all"]
        table = Table(("run", "status", "pipeline", "started", ">seconds", "behind"), rows)
        what = [f"{run.run_id}: {run.error}" for run in damaged]
        return [table, *(more if len(runs) > len(listed) else []), *what] if rows else ["no runs"]

    emit({"runs": [run.model_dump(mode="json", include=keys) for run in listed]}, blocks)
    if damaged:
        raise typer.Exit(damaged[0].exit_code)


@verb(app, _PANEL, "logs last/clips")
def logs(
    where: Annotated[str, typer.Argument(metavar="RUN[/STAGE]", help="A run, or a stage of it.")],
) -> None:
    """Print the events of a run in order."""
    events = api.logs(session.open(), where)
    rows = [(local_time(event["time"]), event["kind"], _event_text(event)) for event in events]
    emit({"events": events}, lambda: [Table(("time", "event", ""), rows)])


@verb(app, _PANEL, "cancel last")
def cancel(run_id: RunArgument) -> None:
    """Stop a run on any host; finished shards stay."""
    cancelled = api.cancel(session.open(), run_id)
    emit({"run_id": cancelled, "cancelled": True}, lambda: [f"{cancelled}: asked to stop"])


@verb(app, _PANEL, "explain last tokens")
def explain(
    run_id: RunArgument,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Stage of the run.")],
) -> None:
    """Show what changed in a stage since the run before.

    Exit code 7 if that run, or one in between, has a damaged record.
    """
    result = api.explain(session.open(), run_id, stage)
    rows = [(change["component"], change["old"], change["new"]) for change in result["changed"]]
    before = result["previous_run"]
    same = f"nothing changed since {before}" if before else "this stage never ran before"
    table: list[Block] = [Table(("component", "old", "new"), rows)] if rows else [same]
    emit(result, lambda: [*table, *result["damaged"]])
    if result["damaged"]:
        raise typer.Exit(StorageError.exit_code)


def _execute(execute: "Callable[[], api.Run]") -> None:
    # Ray prints on stdout when a worker is killed; stdout is for the result
    with redirect_stdout(sys.stderr):
        result = execute()
    report = api.report_path(session.open(), result.run_id)
    emit(run_document(result, report), lambda: run_blocks(result, report))


def watch(execution: "api.Execution") -> AbstractContextManager[None]:
    """Show a live table on a terminal; elsewhere the log lines are the progress."""
    session.execution = execution
    # JSON lines on a terminal: VIDEOAR_LOG=json is set, e.g. under a process supervisor
    if not sys.stderr.isatty() or log_form() == "json":
        return nullcontext()
    from videoar.cli.live import follow

    configure_logging("text", verbose=False, quiet=True)  # log lines would break up the table
    return follow(execution)


def run_document(state: "api.Run", report: str | None) -> api.Document:
    """Return a run as JSON."""
    return {**state.public(), "report": report}


def run_blocks(state: "api.Run", report: str | None, *, with_errors: bool = True) -> list[Block]:
    """Return a run as a summary, one row per stage, and where its report is."""
    cpu_s = sum(stage.usage.cpu_s for stage in state.stages)
    summary = [f"run {state.run_id}", state.pipeline, state.status]
    summary += [f"{state.seconds:.0f} s", f"{cpu_s:.0f} CPU-s"]
    inputs = [
        (name, listed.sources, listed.new, listed.changed, listed.gone)
        for name, listed in state.inputs.items()
    ]
    stages = [
        (
            stage.name,
            stage.status,
            f"{stage.seconds:.1f}" if stage.seconds else None,
            stage.snapshot,
            stage.rows.out if stage.snapshot else None,
            stage.rows.rejected or None,
        )
        for stage in state.stages
    ]
    behind = [f"waits for run {state.queued_behind}"] if state.queued_behind else []
    blocks: list[Block] = ["  ".join([*summary, local_time(state.started_at)]), *behind, ""]
    if inputs:
        blocks += [Table(("input", ">videos", ">new", ">changed", ">gone"), inputs), ""]
    blocks += [Table(("stage", "status", ">seconds", "snapshot", ">rows", ">rejected"), stages), ""]
    running = [(stage.name, progress_text(stage)) for stage in state.stages]
    blocks += [f"{name}: {text}" for name, text in running if text]
    skipped: dict[str, list[str]] = {}
    for stage in state.stages:
        if stage.status == "SKIPPED" and stage.reason:
            skipped.setdefault(stage.reason, []).append(stage.name)
    blocks += [f"skipped: {reason} ({', '.join(names)})" for reason, names in skipped.items()]
    blocks += [stage.error for stage in state.stages if stage.error and with_errors]
    blocks += [state.error] if state.status == "DAMAGED" and state.error else []
    return [*blocks, f"report: {report}" if report else "no report page yet"]


def _shortened(reason: str) -> str:
    """Return a reason with at most three of the changed components: code has a hundred."""
    head, *components = reason.split(", ")
    more = len(components) + 1 - _LISTED_COMPONENTS
    if more <= 0 or not head.startswith("changed: "):
        return reason
    return f"{', '.join([head, *components[: _LISTED_COMPONENTS - 1]])} and {more} more"


def _event_text(event: api.Document) -> str:
    if event["kind"] == "stage":
        stage = event["stage"]
        text = stage["error"] or stage.get("waiting") or stage["reason"]  # not in older records
        return f"{stage['name']} {stage['status']} {text}"
    return " ".join(f"{k}={v}" for k, v in event.items() if k not in ("kind", "time"))
