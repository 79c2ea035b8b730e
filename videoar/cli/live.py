"""Live progress of a run on a terminal: one row per stage, redrawn while it runs."""

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from videoar import api
from videoar.cli.output import STYLES, progress_text
from videoar.core.errors import VideoARError
from videoar.core.printable import printable

_REFRESH_S = 0.5


def redraw(states: Iterable["api.Run"]) -> Iterator["api.Run"]:
    """Show the states of a run on stdout, each in place of the one before."""
    with Live(console=Console(), auto_refresh=False, transient=True) as live:
        for state in states:
            live.update(_table(state.pipeline, state.run_id, state.stages), refresh=True)
            yield state


@contextlib.contextmanager
def follow(execution: "api.Execution") -> Iterator[None]:
    """Show the execution's stages on stderr until the block ends."""
    stop = threading.Event()
    console = Console(stderr=True)
    # the summary on stdout repeats the last state, so on the same terminal the table is erased
    # (`sys.stdout` itself is redirected while a run executes)
    is_transient = sys.__stdout__ is not None and sys.__stdout__.isatty()

    def table() -> Table:
        return _table(execution.spec.name, execution.run_id, execution.current())

    with Live(table(), console=console, auto_refresh=False, transient=is_transient) as live:

        def update() -> None:
            while not stop.wait(_REFRESH_S):
                with contextlib.suppress(VideoARError):  # a store may fail to answer for a moment
                    live.update(table(), refresh=True)

        thread = threading.Thread(target=update, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            live.update(table(), refresh=True)


def _table(pipeline: str, run_id: str, stages: Iterable["api.StageRun"]) -> Table:
    title = f"{pipeline}  {run_id}"
    table = Table("stage", "status", "shards", "rows", "rejected", "s", "", title=title, box=None)
    for stage in stages:
        shards = f"{stage.shards.cached + stage.shards.done}/{stage.shards.planned}"
        table.add_row(
            stage.name,
            Text(stage.status, STYLES.get(stage.status, "")),
            shards if stage.shards.planned else "",
            str(stage.rows.out or ""),
            str(stage.rows.rejected or ""),
            f"{stage.seconds:.0f}" if stage.seconds else "",
            Text(printable(progress_text(stage) or stage.error or "")),
        )
    return table
