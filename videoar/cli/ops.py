"""Verbs on a store and a machine: takedowns, garbage, diagnosis, benchmarks."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from videoar import api
from videoar.cli.output import Block, Table, emit
from videoar.cli.session import VerbGroup, print_help_without_verb, session, verb
from videoar.core.errors import DamagedError, StorageError

app = typer.Typer()
_PANEL = "Operations"


@verb(app, _PANEL, "forget --source SHA256 --dry-run")
def forget(
    source: Annotated[str, typer.Option(metavar="SHA256", help="SHA-256 of the source file.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept in the tombstone.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be deleted; delete nothing.")
    ] = False,
    replan: Annotated[
        bool, typer.Option("--replan", help="Also show what would have to run again.")
    ] = False,
) -> None:
    """Take a source down: delete it and what holds it.

    Models and samples derived from it are listed and stay. Exit code 7 if a commit is damaged: what
    can be found without it is deleted, and the call has to be repeated when it is restored.
    """
    result = api.forget(session.open(), source, reason, dry_run=dry_run, replan=replan)
    emit(result, lambda: _forget_blocks(result))
    if result["damaged"]:
        raise typer.Exit(DamagedError.exit_code)


def _forget_blocks(result: dict[str, Any]) -> list[Block]:
    deleted, dry_run = result["deleted"], result["dry_run"]
    rows = [
        (
            entry["id"],
            entry["contract"],
            f"{entry['rows']} rows of it" if entry["holds_content"] else "derived from it, stays",
            ", ".join(entry["refs"]),
        )
        for entry in result["derived"]
    ]
    counts = (
        f"{deleted['objects']} videos, {deleted['files']} files, {deleted['bytes']:,} bytes; "
        f"{result['rewritten']} listings rewritten without its address"
    )
    return [
        f"would delete: {counts}" if dry_run else f"deleted: {counts}",
        Table(("snapshot", "contract", "source", "refs"), rows),
        *(block for run in result.get("replan", ()) for block in _replan_blocks(run)),
        *(f"evaluation set {name}: no comparison from now on" for name in result["evalsets"]),
        f"tombstone: {result['tombstone']}" + (" (not written)" if dry_run else ""),
        *(f"not done: {what}, and run this again" for what in result["damaged"]),
    ]


def _replan_blocks(run: dict[str, Any]) -> list[Block]:
    rows = [
        (
            stage["name"],
            stage["action"],
            f"{stage['shards']['cached']}/{stage['shards']['planned']}",
            stage["reason"],
        )
        for stage in run["stages"]
    ]
    header = ("stage", "action", ">shards cached", "reason")
    return [f"to run again, of pipeline {run['pipeline']} ({run['run_id']}):", Table(header, rows)]


gc_group = typer.Typer(cls=VerbGroup, invoke_without_command=True)


@gc_group.callback()
def gc(ctx: typer.Context) -> None:
    """Delete what killed and abandoned work has left."""
    print_help_without_verb(ctx)


@verb(gc_group, _PANEL, "gc plan")
def plan(
    days: Annotated[
        float, typer.Option(min=0.0, metavar="DAYS", help="How old garbage must be.")
    ] = 7.0,
    unfinished_days: Annotated[
        float,
        typer.Option(min=0.0, metavar="DAYS", help="The same, of what a resume would continue."),
    ] = 30.0,
) -> None:
    """Record what is garbage; delete nothing.

    Runs may go on meanwhile. Exit code 7 if something cannot be read.
    """
    _emit_garbage(api.gc_plan(session.open(), days, unfinished_days), "to delete")


@verb(gc_group, _PANEL, "gc apply PLAN")
def apply(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="Id of a plan.")],
) -> None:
    """Delete what is in a plan and still garbage.

    A call that was killed has deleted a part; a second one deletes the rest. Exit code 5 while
    another process applies a plan.
    """
    _emit_garbage(api.gc_apply(session.open(), plan), "deleted")


def _emit_garbage(result: dict[str, Any], what: str) -> None:
    rows = [
        ("ok" if check["ok"] else "FAIL", check["name"], check["detail"])
        for check in result["checks"]
    ]
    total = f"plan {result['plan']}: {result['keys']} keys, {result['bytes']:,} bytes {what}"
    emit(result, lambda: [Table(("result", "kind", "detail"), rows), total])
    if not result["ok"]:
        raise typer.Exit(StorageError.exit_code)


app.add_typer(gc_group, name="gc", rich_help_panel=_PANEL)


store_group = typer.Typer(cls=VerbGroup, invoke_without_command=True)


@store_group.callback()
def store(ctx: typer.Context) -> None:
    """Copy the store, compare the copy, migrate it."""
    print_help_without_verb(ctx)


CopyUrl = Annotated[str, typer.Argument(metavar="URL", help="Of the copy: file:// or s3://.")]


@verb(store_group, _PANEL, "store copy s3://backup/videoar")
def copy(url: CopyUrl) -> None:
    """Copy everything to another folder or bucket.

    The store may be in use. A second call continues a copy, and brings an older one up to date.
    Exit code 7 if an object is damaged: it is not copied.
    """
    _emit_copy(api.store_copy(session.open(), url), "copied and compared")


@verb(store_group, _PANEL, "store verify s3://backup/videoar")
def verify(url: CopyUrl) -> None:
    """Compare a copy with the store, byte by byte.

    Exit code 7 if the copy lacks something, such as what was written since.
    """
    _emit_copy(api.store_verify(session.open(), url), "equal")


@verb(store_group, _PANEL, "store migrate")
def migrate() -> None:
    """Bring a store that an earlier version has made to the format of this one.

    Stop all its writers first. A call that was killed is repeated. Exit code 7 if a record is
    damaged; it stays as it is, and all others are migrated.
    """
    result = api.store_migrate(session.store)
    total = f"format {result['from']} to {result['to']}: {result['sealed']} records sealed"
    emit(result, lambda: [*result["damaged"], total])
    if not result["ok"]:
        raise typer.Exit(StorageError.exit_code)


def _emit_copy(report: dict[str, Any], what: str) -> None:
    rows = [(error["key"], error["error"]) for error in report["errors"]]
    total = f"{report['objects']} objects, {report['bytes']:,} bytes {what}"
    emit(report, lambda: [*([Table(("key", "error"), rows)] if rows else []), total])
    if not report["ok"]:
        raise typer.Exit(StorageError.exit_code)


app.add_typer(store_group, name="store", rich_help_panel=_PANEL)


@verb(app, _PANEL, "doctor")
def doctor(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all that is named; list what is damaged.")
    ] = False,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Remove damage and leftovers; mirror what MLflow lacks."),
    ] = False,
) -> None:
    """Check the machine and the store; list the metrics.

    Exit code 7 if a check fails; warnings (--), and what only a metric needs, may be missing. A
    store in which two racing writers can both create one object fails: it would lose commits.
    `--verify` reads the whole store.
    """
    checks = api.doctor(session.open(), verify=verify, fix=fix)
    good = all(check.ok or not check.is_required for check in checks)
    rows = [
        ("ok" if check.ok else "FAIL" if check.is_required else "--", check.name, check.detail)
        for check in checks
    ]
    emit(
        {"ok": good, "checks": [check.model_dump() for check in checks]},
        lambda: [Table(("result", "check", "detail"), rows)],
    )
    if not good:
        raise typer.Exit(StorageError.exit_code)


@verb(app, _PANEL, "bench ingest")
def bench(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="cuts, damage, fvd, generate, gpu, ingest, loader, runner, serve, tokenize or"
            " train.",
        ),
    ],
    videos: Annotated[
        Path | None, typer.Option(help="Folder to measure on; default: synthetic videos.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; for cuts: films.")] = 3,
    minutes: Annotated[float, typer.Option(min=0.1, help="gpu: wall time.")] = 8.0,
    out: Annotated[Path, typer.Option(help="gpu: result, JSON.")] = Path("bench_gpu.json"),
    latents: Annotated[Path | None, typer.Option(help="gpu: latents to train on.")] = None,
) -> None:
    """Measure beside the named baselines, interleaved.

    `gpu` measures all that only a GPU can show. Exit code 1 if a part of it failed.
    """
    gpu = {"minutes": minutes, "out": out, "latents": latents}
    with redirect_stdout(sys.stderr):
        result = api.bench(name, videos, rounds, gpu=gpu if name == "gpu" else None)
    ratios = [(other, f"{ratio:.2f}") for other, ratio in result.ratios.items()]
    cases = [
        (case, "  ".join(f"{key} {value:g}" for key, value in values.items()))
        for case, values in result.cases.items()
    ]
    emit(
        result.model_dump(mode="json"),
        lambda: [
            f"{result.name}: {result.ours.median:.0f} {result.unit}",
            *([Table(("baseline", ">ratio"), ratios)] if ratios else []),
            *([Table(("case", ""), cases)] if cases else []),
            *result.failures,
        ],
    )
    if result.failures:
        raise typer.Exit(1)
