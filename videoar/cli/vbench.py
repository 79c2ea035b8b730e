"""The verbs of VBench."""

from pathlib import Path
from typing import Annotated

import typer

from videoar import api
from videoar.cli.data import Name
from videoar.cli.output import Table, emit, facts
from videoar.cli.session import VerbGroup, print_help_without_verb, session, verb
from videoar.core.errors import ContractError

app = typer.Typer()
_PANEL = "Models"
_LISTED = 20  # chosen: fits one screen
group = typer.Typer(cls=VerbGroup, invoke_without_command=True)


@group.callback()
def _vbench(ctx: typer.Context) -> None:
    """Plan, check and export for VBench."""
    print_help_without_verb(ctx)


@verb(group, _PANEL, "vbench plan --flickering 25")
def plan(
    samples: Annotated[int, typer.Option(min=5, help="Samples of each prompt.")] = 5,
    flickering: Annotated[
        int, typer.Option(min=5, help="Of those of temporal_flickering; its filter wants 25.")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of all samples; each has its own.")] = 0,
    rewritten: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rewritten prompts, a line for each of the 946 entries."),
    ] = None,
) -> None:
    """Write the prompts of VBench, with seeds, as a snapshot that `generate` takes."""
    result = api.vbench_plan(
        session.open(), samples=samples, flickering=flickering, seed=seed, rewritten=rewritten
    )
    emit(result, lambda: [facts(result), f"input of a pipeline: snapshot://{result['snapshot']}"])


@verb(group, _PANEL, "vbench check last/samples")
def check(name: Name) -> None:
    """Check samples, interpreter and weights before a run of the stage `vbench`.

    Exit code 3 if something is missing; --json has all names of missing videos.
    """
    result = api.vbench_check(session.open(), name)
    rows = [("ok" if c["ok"] else "FAIL", c["name"], c["detail"]) for c in result["checks"]]
    shown = [f"missing: {video}" for video in result["missing"][:_LISTED]]
    warnings = [f"licence: {warning}" for warning in result["warnings"]]
    emit(result, lambda: [Table(("result", "check", "detail"), rows), *shown, *warnings])
    if not result["ok"]:
        raise typer.Exit(ContractError.exit_code)


@verb(group, _PANEL, "vbench export last/samples --to FOLDER")
def export(
    name: Name,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="New or empty.")],
) -> None:
    """Write samples under the names of VBench; of scores, the archive for its leaderboard."""
    result = api.vbench_export(session.open(), name, to)
    emit(result, lambda: [facts(result)])


@verb(group, _PANEL, "vbench setup FOLDER")
def setup(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the environment.")],
    python: Annotated[
        str, typer.Option(metavar="PATH", help="Python 3.11 to make it with; default: this one.")
    ] = "",
) -> None:
    """Install VBench, pinned, into an environment of its own. Weights are not fetched.

    detectron2 is not on PyPI: its command is printed.
    """
    result = api.vbench_setup(folder, python)
    lines = [f"export {key}={value}" for key, value in result["settings"].items()]
    missing = [f"still missing: {line}" for line in result["missing"]]
    emit(result, lambda: [*lines, *missing, *(f"licence: {w}" for w in result["warnings"])])


app.add_typer(group, name="vbench", rich_help_panel=_PANEL)
