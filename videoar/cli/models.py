"""Verbs on models: reports, gate decisions, and the refs that they move."""

from pathlib import Path
from typing import Annotated

import typer

from videoar import api
from videoar.cli.data import Name
from videoar.cli.output import Block, Table, emit
from videoar.cli.runs import OptionalRun
from videoar.cli.session import session, verb
from videoar.core.errors import GateError

app = typer.Typer()
_PANEL = "Models"


@verb(app, _PANEL, "report last --out page.html")
def report(
    run_id: OptionalRun = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: in the store.")] = None,
) -> None:
    """Write a run's report page, one HTML file."""
    path = api.report(session.open(), run_id, out)
    emit({"path": path}, lambda: [path])


@verb(app, _PANEL, "gate last")
def gate(run_id: OptionalRun = None) -> None:
    """Show the decision of a promotion gate.

    Exit code 4 if it blocked, or if there is no decision.
    """
    decision = api.gate(session.open(), run_id)
    rows = [
        ("pass" if r["passed"] else "FAIL", r["name"], r["value"], r["bound"], r["reason"])
        for r in decision["rules"]
    ]

    def blocks() -> list[Block]:
        verdict = "passed" if decision["passed"] else "blocked"
        head = f"{decision['candidate']} for {decision['ref']}: {verdict}"
        return [head, Table(("result", "rule", ">value", ">bound", "reason"), rows)]

    emit(decision, blocks)
    if not decision["passed"]:
        raise typer.Exit(GateError.exit_code)


@verb(app, _PANEL, "promote last/model")
def promote(
    model: Name,
    to: Annotated[str, typer.Option(metavar="REF", help="Ref to move.")] = "champion",
) -> None:
    """Point a ref at a model that its gate has passed."""
    result = api.promote(session.open(), model, to)
    emit(result, lambda: [f"{result['ref']} -> {result['snapshot']}"])


@verb(app, _PANEL, "rollback champion")
def rollback(ref: Annotated[str, typer.Argument(metavar="REF", help="E.g. champion.")]) -> None:
    """Point a ref back at what it pointed at before."""
    result = api.rollback(session.open(), ref)
    emit(result, lambda: [f"{result['ref']}: {result['was']} -> {result['snapshot']}"])
