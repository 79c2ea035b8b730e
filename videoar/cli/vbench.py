"""The verbs of VBench."""

from pathlib import Path
from typing import Annotated

import typer

from videoar import api
from videoar.cli.output import emit, facts
from videoar.cli.session import VerbGroup, print_help_without_verb, session, verb

app = typer.Typer()
_PANEL = "Models"
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


app.add_typer(group, name="vbench", rich_help_panel=_PANEL)
