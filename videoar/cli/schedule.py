"""The verbs of schedules."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from videoar import api
from videoar.cli.output import Block, Table, emit, facts, local_time
from videoar.cli.runs import Overrides, PipelineArgument
from videoar.cli.session import VerbGroup, print_help_without_verb, session, verb
from videoar.core.errors import ConfigError, StorageError
from videoar.core.printable import printable
from videoar.core.settings import settings

app = typer.Typer()
group = typer.Typer(cls=VerbGroup, invoke_without_command=True)
_PANEL = "Operations"
_STARTED, _WAITING = ("run", "pipeline", "key", "status", "reason"), ("pipeline", "key", "reason")
Pipelines = Annotated[
    list[Path], typer.Argument(metavar="PIPELINE", help="Pipeline files with a trigger.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the pipeline.")]


@group.callback()
def _schedule(ctx: typer.Context) -> None:
    """Run pipelines by time and by new data."""
    print_help_without_verb(ctx)


@verb(group, _PANEL, "schedule ls")
def ls(
    pipelines: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Default: all of the store.")
    ] = None,
) -> None:
    """List schedules, their next windows, and what has fired.

    Exit code 7 if a record is damaged; the others are listed.
    """
    result = api.schedule_ls(session.open(), pipelines or [])
    emit(result, lambda: [*_ls_blocks(result), *result["damaged"]])
    if result["damaged"]:
        raise typer.Exit(StorageError.exit_code)


def _ls_blocks(result: dict[str, Any]) -> list[Block]:
    schedules = [
        (
            s["pipeline"],
            next(iter(s["trigger"])) if "cron" not in s["trigger"] else s["trigger"]["cron"],
            "paused" if s["is_paused"] else s["next"] and _local(s["next"]),
            s["missed"] or None,
            s["concurrency"],
        )
        for s in result["schedules"]
    ]
    firings = sorted([*result["fired"], *result["skipped"]], key=lambda f: f["at"], reverse=True)
    rows = [
        (local_time(f["at"]), f["pipeline"], f["key"], f["run_id"], f["status"], f["reason"])
        for f in firings
    ]
    titles = ("pipeline", "trigger", "next", ">due", "concurrency")
    fired = Table(("fired", "pipeline", "key", "run", "status", "reason"), rows)
    return [Table(titles, schedules), "", fired] if rows else [Table(titles, schedules)]


@verb(group, _PANEL, "schedule tick pipelines/retrain.yaml")
def tick(pipelines: Pipelines, overrides: Overrides = None) -> None:
    """Run what is due; call it from cron or a timer.

    Idempotent: call it as often as you like, from as many machines as you like. The exit code is
    that of the first run that did not succeed.
    """
    result = api.schedule_tick(session.open(), pipelines, overrides or [], target=_target())
    _emit(result)


@verb(group, _PANEL, "schedule serve pipelines/retrain.yaml")
def serve(
    pipelines: Pipelines,
    overrides: Overrides = None,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks.")] = 30.0,
) -> None:
    """Tick in a loop, for machines without cron.

    One per store; another one exits with 5.
    """
    store, target = session.open(), _target()
    api.schedule_serve(store, pipelines, overrides or [], target=target, every_s=every)


@verb(group, _PANEL, "schedule pause retrain")
def pause(name: Name) -> None:
    """Start nothing more; runs in progress end."""
    _emit_state(api.schedule_pause(session.open(), name))


@verb(group, _PANEL, "schedule resume retrain")
def resume(name: Name) -> None:
    """End a pause; its windows are not missed."""
    _emit_state(api.schedule_pause(session.open(), name, paused=False))


@verb(group, _PANEL, "schedule release 20261128t030000z-1f3a9c02")
def release(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of a firing, or its beginning.")],
) -> None:
    """Let a key fire once more, at the next tick."""
    _emit_state(api.schedule_release(session.open(), key))


@verb(app, _PANEL, "backfill pipelines/retrain.yaml --from 2026-11-01 --to 2026-11-07")
def backfill(
    pipeline: PipelineArgument,
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="First; UTC if no zone.")],
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="Last, e.g. 2026-11-07T12:00Z.")],
    overrides: Overrides = None,
) -> None:
    """Run the cron windows of a time span that have had no run."""
    span = _time("--from", start), _time("--to", end)
    store = session.open()
    _emit(api.backfill(store, pipeline, *span, overrides or [], target=_target()))


def _target() -> str:
    return session.target or settings().target


def _local(text: str) -> str:
    return local_time(datetime.fromisoformat(text).timestamp())


def _time(option: str, text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        what = "is no ISO 8601 time"
        raise ConfigError(f"{option} {text}", what, "e.g. 2026-11-07T03:00+01:00") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _emit(result: dict[str, Any]) -> None:
    exit_code = result.pop("exit_code")
    fired = [
        tuple(entry.get(name) for name in ("run_id", *_STARTED[1:])) for entry in result["fired"]
    ]
    skipped = [tuple(entry.get(name) for name in _WAITING) for entry in result["skipped"]]
    emit(result, lambda: [Table(_STARTED, fired), Table(_WAITING, skipped)])
    for entry in (*result["fired"], *result["skipped"]):
        if "error" in entry:  # as verbs that stop at an error: cron mails what is on stderr
            print(f"error: {printable(entry['error'])}", file=sys.stderr)
    if exit_code:
        raise typer.Exit(exit_code)


def _emit_state(result: dict[str, Any]) -> None:
    emit(result, lambda: [facts(result)])


app.add_typer(group, name="schedule", rich_help_panel=_PANEL)
