"""The command line: verbs, options, output and exit codes. All work is in `videoar.runner`.

`--json` prints one JSON document on stdout; logs always go to stderr. Errors are one line,
`error: <file or key>: <what> (<what to do>)`, and the exit code of their class. Nothing heavy is
imported before a verb needs it: `videoar --help` costs typer and nothing more.
"""

import json
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videoar.core.errors import ConfigError, GateError, VideoARError
from videoar.core.logging import configure_logging
from videoar.core.settings import settings

if TYPE_CHECKING:
    from videoar.core.types import Json
    from videoar.runner.execute import Execution
    from videoar.storage.store import Store

_HELP = "Raw video in, an evaluated and promoted video-generation model out."
app = typer.Typer(
    name="videoar",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_INTERRUPTED = 130


@dataclass
class _Options:
    store: str = ""
    target: str = ""
    json: bool = False
    verbose: bool = False

    def open(self) -> "Store":
        """Open the store that this call works on."""
        from videoar.storage.store import open_store

        return open_store(self.store or settings().store_url, endpoint=settings().s3_endpoint)

    def emit(self, document: "Json", text: str) -> None:
        """Print the document under --json, the text otherwise."""
        print(json.dumps(document, indent=2, default=str) if self.json else text)


_options = _Options()
Pipeline = Annotated[Path, typer.Argument(help="Pipeline file (YAML).")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a.b=value, e.g. inputs.videos=PATH.")
]
OptionalRun = Annotated[str | None, typer.Argument(help="Run id or a prefix of it; default: last.")]
RunId = Annotated[str, typer.Argument(help="Run id or a prefix of it.")]
Name = Annotated[str, typer.Argument(help="Snapshot id or ref.")]


@app.callback()
def _global(
    store: Annotated[str, typer.Option(help="Store URL: file:///... or s3://bucket/prefix.")] = "",
    target: Annotated[str, typer.Option(help="inline, local, or a Ray address.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="More, and tracebacks.")] = False,
) -> None:
    _options.__init__(store, target or settings().target, as_json, verbose)  # type: ignore[misc]
    configure_logging(_log_form(), verbose=verbose)


@app.command()
def run(
    pipeline: Pipeline,
    overrides: Overrides = None,
    start: Annotated[str | None, typer.Option("--from", help="First stage to run.")] = None,
    until: Annotated[str | None, typer.Option(help="Last stage to run.")] = None,
) -> None:
    """Plan and execute a pipeline."""
    from videoar import api

    with redirect_stdout(sys.stderr):  # where Ray prints of workers that were killed
        made = api.run(
            _options.open(),
            pipeline,
            overrides or [],
            target=_options.target,
            start=start,
            until=until,
            watch=_watch,
        )
    _show_run(made)


@app.command()
def resume(run_id: RunId) -> None:
    """Continue a run that was killed, cancelled or failed, under its own id, up to its --until."""
    from videoar import api

    with redirect_stdout(sys.stderr):
        made = api.resume(_options.open(), run_id, target=_options.target, watch=_watch)
    _show_run(made)


@app.command()
def plan(pipeline: Pipeline, overrides: Overrides = None) -> None:
    """Say what would run and why; changes nothing."""
    from videoar.pipeline.spec import load_pipeline
    from videoar.runner.plan import plan as make_plan

    plans = make_plan(load_pipeline(pipeline, overrides or []), _options.open())
    lines = [f"{p.name:12} {p.action:8} {p.reason}" for p in plans]
    _options.emit({"stages": [p.model_dump(mode="json") for p in plans]}, "\n".join(lines))


@app.command()
def status(run_id: OptionalRun = None) -> None:
    """Show a run."""
    from videoar import api

    _show_run(api.status(_options.open(), run_id))


@app.command()
def ls() -> None:
    """List runs, newest first."""
    from videoar.records.run_record import load_run, run_ids

    store = _options.open()
    runs = [load_run(store, run_id) for run_id in reversed(run_ids(store))]
    keys = {"run_id", "pipeline", "status", "started_at", "seconds"}
    lines = [f"{r.run_id}  {r.status:12} {r.pipeline:16} {_when(r.started_at)}" for r in runs]
    rows = [r.model_dump(mode="json", include=keys) for r in runs]
    _options.emit({"runs": rows}, "\n".join(lines) or "no runs")


@app.command()
def logs(where: Annotated[str, typer.Argument(help="RUN or RUN/STAGE.")]) -> None:
    """Print what a run recorded, in order."""
    from videoar import api

    events = api.logs(_options.open(), where)
    _options.emit({"events": events}, "\n".join(_event_line(event) for event in events))


@app.command()
def cancel(run_id: RunId) -> None:
    """Stop a run that is driven from this machine; finished shards stay."""
    from videoar import api

    stopped = api.cancel(_options.open(), run_id)
    _options.emit({"run_id": stopped, "cancelled": True}, f"{stopped}: told to stop")


@app.command()
def explain(run_id: RunId, stage: Annotated[str, typer.Argument(help="Stage name.")]) -> None:
    """Say what changed since the previous run of a stage."""
    from videoar import api

    found = api.explain(_options.open(), run_id, stage)
    lines = [f"{c['component']}: {c['old']} -> {c['new']}" for c in found["changed"]]
    nothing = "nothing changed" if found["previous_run"] else "never ran before"
    _options.emit(found, "\n".join(lines) or nothing)


@app.command()
def show(snapshot: Name, rows: Annotated[int, typer.Option(help="Rows to print.")] = 3) -> None:
    """Describe a snapshot and print its first rows."""
    from videoar import api

    found = api.show(_options.open(), snapshot, rows)
    _options.emit(found, json.dumps(found, indent=2, default=str))


@app.command()
def diff(old: Name, new: Name) -> None:
    """Compare two snapshots."""
    from videoar import api

    found = api.diff(_options.open(), old, new)
    _options.emit(found, json.dumps(found, indent=2, default=str))


@app.command()
def lineage(
    name: Annotated[str, typer.Argument(help="Snapshot, ref, model digest, sample or source.")],
    up: Annotated[bool, typer.Option("--up", help="What it came from (the default).")] = False,
    down: Annotated[bool, typer.Option("--down", help="What was made of it.")] = False,
) -> None:
    """Trace anything back to its source videos, or forward to everything made of it."""
    from videoar.records.lineage import lineage as trace

    if up and down:
        raise ConfigError("--up --down", "exclude each other", "give one of them")
    graph = trace(_options.open(), name, down=down)
    lines = [f"{edge['from']} -> {edge['to']}" for edge in graph["edges"]]
    _options.emit(graph, "\n".join(lines) or graph["nodes"][0]["id"])


@app.command()
def validate(
    name: Annotated[str, typer.Argument(help="Pipeline file or snapshot id.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Every byte: hashes, pages, layout, payload, objects.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="With --deep: tokenizer that must have made the tokens.")
    ] = None,
) -> None:
    """Check a pipeline file, or every row of a snapshot against its contract."""
    from videoar.admin.validate import validate_pipeline, validate_snapshot

    is_file = name.endswith((".yaml", ".yml"))
    if is_file and deep:
        raise ConfigError("--deep", "is for snapshots", "leave it out for a pipeline file")
    if tokenizer is not None and not deep:
        raise ConfigError("--tokenizer", "is compared by a deep look only", "add --deep")
    mistakes = (
        validate_pipeline(Path(name))
        if is_file
        else validate_snapshot(_options.open(), name, deep=deep, tokenizer=tokenizer)
    )
    lines = [f"error: {name}: {m['path']}: {m['message']}" for m in mistakes]
    _options.emit({"ok": not mistakes, "errors": mistakes}, "\n".join(lines) or f"{name}: ok")
    if mistakes:
        raise typer.Exit(2 if is_file else 3)


@app.command()
def export(
    snapshot: Name,
    form: Annotated[str, typer.Option("--format", help="webdataset or parquet.")],
    to: Annotated[str, typer.Option(help="Empty folder, file:///... or s3://bucket/prefix.")],
    shard_mib: Annotated[
        float, typer.Option(min=0.001, help="Stored bytes per file; a tar adds its headers.")
    ] = 256,
) -> None:
    """Write a snapshot of tokens for other readers; the manifest comes last."""
    from videoar.admin.export import export as write

    found = write(_options.open(), snapshot, form, to, shard_mib=shard_mib)
    lines = [f"{file['name']}  {file['rows']} rows" for file in found["files"]]
    _options.emit(found, "\n".join(lines) or "no rows")


@app.command()
def schema(name: Annotated[str, typer.Argument(help="Contract, e.g. clips@1.")]) -> None:
    """Print a data contract."""
    from videoar.contracts.contract import load_contract

    contract = load_contract(name)
    lines = [f"{c.name:20} {c.type:16} {c.description}" for c in contract.columns]
    _options.emit(contract.model_dump(mode="json"), "\n".join(lines))


@app.command()
def report(
    run_id: OptionalRun = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the page.")] = None,
) -> None:
    """Write a run's report page, one self-contained HTML file."""
    from videoar import api

    path = api.report(_options.open(), run_id, out)
    _options.emit({"path": path}, path)


@app.command()
def gate(run_id: OptionalRun = None) -> None:
    """Show the decision of a run's promotion gate; exit code 4 when it blocked."""
    from videoar import api

    found = api.gate(_options.open(), run_id)
    lines = [
        f"{'pass' if r['passed'] else 'FAIL'}  {r['name']}: {r['reason']}" for r in found["rules"]
    ]
    _options.emit(found, "\n".join(lines))
    if not found["passed"]:
        raise typer.Exit(GateError.exit_code)


@app.command()
def promote(
    model: Name, to: Annotated[str, typer.Option(help="Ref to move.")] = "champion"
) -> None:
    """Point a ref at a model that its gate has passed."""
    from videoar import api

    found = api.promote(_options.open(), model, to)
    _options.emit(found, f"{found['ref']} -> {found['snapshot']}")


@app.command()
def rollback(ref: Annotated[str, typer.Argument(help="Ref, e.g. champion.")]) -> None:
    """Point a ref back at what it pointed at before."""
    from videoar import api

    found = api.rollback(_options.open(), ref)
    _options.emit(found, f"{found['ref']}: {found['was']} -> {found['snapshot']}")


@app.command()
def forget(
    source: Annotated[str, typer.Option(help="SHA-256 of the source file.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the tombstone.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
) -> None:
    """Take a source down: delete what holds its content, name what was made of it."""
    from videoar import api

    found = api.forget(_options.open(), source, reason, dry_run=dry_run)
    deleted = found["deleted"]
    lines = [
        f"{'would delete' if dry_run else 'deleted'}: {deleted['objects']} videos, "
        f"{deleted['files']} files, {deleted['bytes']:,} bytes; "
        f"{'would take' if dry_run else 'took'} its address out of {found['rewritten']} listings",
        *(
            f"  {entry['id']:34} {entry['contract']:12} "
            + (f"{entry['rows']} rows of it" if entry["holds_content"] else "made of it, stays")
            + "".join(f" ({name})" for name in entry["refs"])
            for entry in found["derived"]
        ),
        f"tombstone: {found['tombstone']}" + (" (not written)" if dry_run else ""),
    ]
    _options.emit(found, "\n".join(lines))


quarantine = typer.Typer(help="Look at what was refused.", rich_markup_mode=None)
app.add_typer(quarantine, name="quarantine", no_args_is_help=True)


@quarantine.command("ls")
def quarantine_ls(
    name: Annotated[
        str | None, typer.Argument(help="Run id or a prefix, or snapshot id; default: last run.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Only this code, e.g. TOO_SHORT.")] = None,
) -> None:
    """List the rows that were refused, with their reasons."""
    from videoar import api

    found = api.quarantine(_options.open(), name, reason)
    lines = [
        f"{row['stage']:8} {','.join(row['reasons']):24} {row['item_id']}"
        + (f"  {row['detail']}" if row["detail"] else "")
        for row in found["rows"]
    ]
    if found["withdrawn"]:
        lines.append(f"{found['withdrawn']} rows went with a take-down")
    _options.emit(found, "\n".join(lines) or "nothing was refused")


@app.command()
def doctor() -> None:
    """Check this machine and the store; refuses a store in which two racing writers can win."""
    from videoar.admin.doctor import diagnose

    checks = diagnose(_options.open())
    good = all(check.ok for check in checks)
    lines = [f"{'ok' if c.ok else 'FAIL':4} {c.name}: {c.detail}" for c in checks]
    document: Json = {"ok": good, "checks": [check.model_dump() for check in checks]}
    _options.emit(document, "\n".join(lines))
    if not good:
        raise typer.Exit(7)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="cuts, ingest, loader, runner or tokenize.")],
    videos: Annotated[
        Path | None, typer.Option(help="Folder to measure on; default: drawn.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns, or films (cuts).")] = 3,
) -> None:
    """Measure side by side with the named baselines, in turns."""
    from videoar.bench import measure

    with redirect_stdout(sys.stderr):
        found = measure(name, videos, rounds)
    lines = [f"{found.name}: {found.ours.median:.0f} {found.unit}"]
    lines += [f"  {ratio:6.2f} x {other}" for other, ratio in found.ratios.items()]
    for case, row in found.cases.items():
        lines.append(f"  {case}: " + "  ".join(f"{key} {value:g}" for key, value in row.items()))
    _options.emit(found.model_dump(mode="json"), "\n".join(lines))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _event_line(event: dict[str, Any]) -> str:
    if event["kind"] == "stage":
        stage = event["stage"]
        text = f"{stage['name']} {stage['status']} {stage['error'] or stage['reason']}"
    else:
        text = " ".join(f"{k}={v}" for k, v in event.items() if k not in ("kind", "time"))
    return f"{_when(event['time'])} {event['kind']:7} {text}"


def _show_run(made: Any) -> None:  # noqa: ANN401 - a Run, whose module is imported late
    lines = [f"run {made.run_id}  {made.pipeline}  {made.status}  {made.seconds:.0f} s"]
    for name, listed in made.inputs.items():
        lines.append(f"  {name:12} {listed}")
    for stage in made.stages:
        rows = f"{stage.rows.out} rows" + (
            f", {stage.rows.rejected} refused" if stage.rows.rejected else ""
        )
        state = f"{stage.name:12} {stage.status:12} {stage.seconds:7.1f} s"
        lines.append(f"  {state}  {stage.snapshot or '-':28} {rows}")
        if stage.error:
            lines.append(f"    {stage.error}")
    _options.emit(made.public(), "\n".join(lines))


def _log_form() -> str:
    return settings().log or ("text" if sys.stderr.isatty() else "json")


def _watch(execution: "Execution") -> AbstractContextManager[None]:
    """Show a live table on a terminal; elsewhere the log lines are the progress."""
    if not sys.stderr.isatty() or _log_form() == "json":
        return nullcontext()
    from videoar.cli.live import follow

    configure_logging("text", verbose=False, quiet=True)  # lines would tear the table
    return follow(execution)


def _stop_politely(number: int, frame: object) -> None:  # noqa: ARG001 - signal's signature
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and exit with the code of what happened."""
    signal.signal(signal.SIGTERM, _stop_politely)
    try:
        code = app(standalone_mode=False) or 0  # typer returns the code of an Exit
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except VideoARError as error:
        code = _fail(error, error.exit_code)
    except Exception as error:  # noqa: BLE001 - the outermost boundary: one line, code 1
        usage = getattr(error, "format_message", None)  # a wrong option, a missing argument
        code = _fail(ConfigError("usage", usage()), 2) if usage else _fail(error, 1)
    sys.exit(code)


def _fail(error: Exception, code: int) -> int:
    if _options.verbose:
        import traceback

        traceback.print_exception(error)
    text = str(error) if isinstance(error, VideoARError) else f"{type(error).__name__}: {error}"
    for line in text.splitlines() or [type(error).__name__]:
        print(f"error: {line}", file=sys.stderr)
    return code
