"""The command `videoar`: global options, and the boundary at which errors become exit codes.

The verbs are in `runs`, `data`, `models`, `vbench`, `schedule` and `ops`; all work is in
`videoar.api`. stdout is for the result: tables, or one JSON document under `--json`, also for
errors. Log and error lines go to stderr. Nothing heavy is imported before a verb needs it, so that
`--help` costs typer only.
"""

import contextlib
import errno
import gc
import signal
import sys
import traceback
from io import StringIO, TextIOWrapper
from typing import Annotated, Any

import typer

from videoar import __version__, api
from videoar.cli import data, models, ops, runs, schedule, vbench
from videoar.cli.output import Block, discard_stdout, emit
from videoar.cli.session import EXAMPLE, RootGroup, print_help_without_verb, session
from videoar.core.errors import VideoARError, one_line
from videoar.core.printable import printable
from videoar.core.redact import redact

app = typer.Typer(
    name="videoar",
    cls=RootGroup,
    invoke_without_command=True,  # typer's own no_args_is_help exits with 2
    rich_markup_mode=None,  # importing rich takes longer than all the rest of --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB [ARGS]...",
    epilog="videoar VERB -h shows the options of a verb and an example.",
)
_INTERNAL, _USAGE, _INTERRUPTED = 1, 2, 130


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"videoar {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    store: Annotated[
        str, typer.Option(metavar="URL", help="Store: file:///... or s3://bucket/prefix.")
    ] = "",
    target: Annotated[
        str, typer.Option(metavar="TARGET", help="local, inline, or HOST:PORT of a Ray cluster.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, also for errors.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Log more, and print tracebacks.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        # eager: runs before missing arguments of a verb are noticed
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print version."),
    ] = False,
) -> None:
    """Raw video in, an evaluated and promoted video-generation model out."""
    options = {"store": store, "target": target, "as_json": as_json, "verbose": verbose}
    session.begin(options)
    print_help_without_verb(ctx)


# without a name, typer adds the verbs of a module to the root
for module in (runs, data, models, vbench, schedule, ops):
    app.add_typer(module.app)


def main() -> None:
    """Run the command line and exit with the code of its outcome."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job is a cancelled run
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as with `nohup`
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    # Python sets a stream to None where the shell has closed it (`>&-`)
    sys.stdout = sys.stdout or StringIO()
    sys.stderr = sys.stderr or StringIO()
    if isinstance(sys.stdout, TextIOWrapper):
        # a file name that the terminal's encoding lacks is printed as an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    # imports and records make few cycles; by default, looking for them takes a quarter of the
    # time to import MLflow, and a seventh of that to plan 5,000 shards
    gc.set_threshold(50_000, 20, 50)
    sys.exit(_exit_code())


def _exit_code() -> int:
    try:
        session.begin({})  # if the options are wrong, no callback of typer resets it
        # typer returns the code of an Exit, and maps KeyboardInterrupt to 130
        code = app(prog_name="videoar", standalone_mode=False) or 0
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - the outermost boundary
        return _fail(error)
    return _fail(KeyboardInterrupt("interrupted")) if code == _INTERRUPTED else code


def _fail(error: BaseException) -> int:
    """Print an error, below the summary of the run that it ended, and return its exit code."""
    if session.verbose:
        text = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            print(printable(redact(text), keep="\n"), file=sys.stderr, end="")
    document = _describe(error)
    # where the error is in the options themselves, they have not been read to their end
    session.as_json = session.as_json or "--json" in sys.argv
    summary, blocks = _run_so_far()
    try:
        emit({**summary, "error": document}, lambda: blocks)
    except (OSError, typer.Exit):
        discard_stdout()  # a full disk or a closed pipe: the line on stderr has to do
    with contextlib.suppress(OSError):  # stderr on a full disk: the exit code has to do
        for line in _lines(document):
            print(printable(line), file=sys.stderr)
        sys.stderr.flush()
    return int(document["exit_code"])


def _run_so_far() -> tuple[dict[str, Any], list[Block]]:
    """Return the run that this command started, as JSON and as tables; empty if there is none."""
    execution = session.execution
    if execution is None or not execution.has_started:
        return {}, []
    try:
        run = api.status(execution.store, execution.run_id)
        report = api.report_path(execution.store, run.run_id)
    except VideoARError:  # the store is what failed
        return {}, []
    # the error is printed below the summary, so the summary leaves it out
    return runs.run_document(run, report), runs.run_blocks(run, report, with_errors=False)


def _describe(error: BaseException) -> dict[str, Any]:
    """Return an error as JSON: `{type, where, what, hint, exit_code}`, with `code` if typed.

    A pipeline file's `mistakes`, and `usage` and `example` of a verb, are added to it.
    """
    kind = type(error).__name__
    if isinstance(error, VideoARError):
        parts = {"where": error.where, "what": error.what, "hint": error.hint}
        mistakes = [vars(mistake) for mistake in getattr(error, "mistakes", ())]
        extra = {"mistakes": mistakes} if mistakes else {}
        codes = {"code": error.code, "exit_code": error.exit_code}
        return {"type": kind, **parts, **codes, **extra}
    if isinstance(error, typer.TyperException):  # a wrong option, a missing argument
        return _describe_usage(error)
    if isinstance(error, KeyboardInterrupt):
        run = session.execution
        resume = f"videoar resume {run.run_id}" if run is not None and run.has_started else ""
        parts = {"where": "videoar", "what": "interrupted", "hint": resume}
        return {"type": kind, **parts, "exit_code": _INTERRUPTED}
    where, what, code = kind, one_line(error), _INTERNAL
    if isinstance(error, OSError):
        # without a name, it is the stream that the result is printed to, or `os.getcwd`
        unnamed = "the current folder" if error.errno == errno.ENOENT else "stdout"
        where, what = str(error.filename or unnamed), error.strerror or what
        # nothing here makes names that are too long: it is an argument
        if error.errno == errno.ENAMETOOLONG or where == "the current folder":
            code = _USAGE
    return {"type": kind, "where": where, "what": what, "hint": "", "exit_code": code}


def _describe_usage(error: typer.TyperException) -> dict[str, Any]:
    """Return a usage error as JSON, with the usage line and the example of its verb."""
    ctx = getattr(error, "ctx", None)  # where parsing stopped; typer's class has no public name
    message = one_line(error.format_message()).rstrip(".")
    where = ctx.command_path if ctx else "videoar"
    extra = {}
    if ctx is not None:
        usage = one_line(ctx.get_usage()).removeprefix("Usage: ")
        before, _, example = (ctx.command.epilog or "").partition(EXAMPLE)
        extra = {"usage": usage, **({"example": example} if example and not before else {})}
    return {
        "type": "UsageError",
        "where": where,
        "what": message[:1].lower() + message[1:],
        "hint": f"see {where} -h",
        "exit_code": _USAGE,
        **extra,
    }


def _lines(document: dict[str, Any]) -> list[str]:
    """Return the lines of an error for stderr: one per mistake, or the error and its usage."""
    where, what, hint = document["where"], document["what"], document["hint"]
    if "mistakes" in document:
        paths = [": ".join(filter(None, m.values())) for m in document["mistakes"]]
        return [f"error: {where}: {path}" for path in paths]
    extra = [f"{key}: {document[key]}" for key in ("usage", "example") if key in document]
    return [f"error: {where}: {what}" + (f" ({hint})" if hint else ""), *extra]
