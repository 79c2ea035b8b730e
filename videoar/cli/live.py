"""Live progress of a run on a terminal: one row per stage, redrawn a few times a second."""

import contextlib
import sys
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from videoar import api
from videoar.cli.output import STYLES
from videoar.core.errors import VideoARError
from videoar.core.printable import printable

_REFRESH_PER_S = 4


@contextlib.contextmanager
def follow(execution: "api.Execution") -> Iterator[None]:
    """Show the execution's stages on stderr until the block ends."""
    stop = threading.Event()
    console = Console(stderr=True)
    # the summary on stdout repeats the last state, so on the same terminal the table is erased
    # (`sys.stdout` itself is redirected while a run executes)
    is_transient = sys.__stdout__ is not None and sys.__stdout__.isatty()
    with Live(
        _table(execution),
        console=console,
        refresh_per_second=_REFRESH_PER_S,
        transient=is_transient,
    ) as live:

        def redraw() -> None:
            while not stop.wait(1 / _REFRESH_PER_S):
                with contextlib.suppress(VideoARError):  # a store may fail to answer for a moment
                    live.update(_table(execution))

        thread = threading.Thread(target=redraw, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            live.update(_table(execution))


def _table(execution: "api.Execution") -> Table:
    title = f"{execution.spec.name}  {execution.run_id}"
    table = Table("stage", "status", "shards", "rows", "rejected", "s", "", title=title, box=None)
    for stage in execution.stages.values():
        shards = f"{stage.shards.cached + stage.shards.done}/{stage.shards.planned}"
        table.add_row(
            stage.name,
            Text(stage.status, STYLES.get(stage.status, "")),
            shards if stage.shards.planned else "",
            str(stage.rows.out or ""),
            str(stage.rows.rejected or ""),
            f"{stage.seconds:.0f}" if stage.seconds else "",
            Text(_progress(execution, stage)),
        )
    return table


def _progress(execution: "api.Execution", stage: "api.StageRun") -> str:
    """Return the step and metrics of a training stage, or the error of a failed one."""
    if stage.status != "RUNNING" or stage.shards.planned != 1:
        return printable(stage.error or "")
    state = api.progress(execution.store, execution.run_id, stage.name)
    if state is None:
        return ""
    metrics = "  ".join(f"{name} {value:.3g}" for name, value in state["metrics"].items())
    return f"step {state['step']}/{state['total']}  {metrics}"
