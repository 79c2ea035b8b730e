"""Live progress of a run on a terminal: one row per stage, redrawn a few times a second."""

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from videoar.records.run_record import StageRun
from videoar.runner.execute import Execution
from videoar.storage.layout import progress_key

_REFRESH_PER_S = 4
_STYLES = {
    "SUCCEEDED": "green", "CACHED": "cyan", "RUNNING": "yellow", "FAILED": "red",
    "GATE_BLOCKED": "magenta", "CANCELLED": "red", "PENDING": "dim",
}  # fmt: skip


@contextlib.contextmanager
def follow(execution: Execution) -> Iterator[None]:
    """Show the execution's stages on stderr until the block ends."""
    stop = threading.Event()
    console = Console(stderr=True)
    with Live(_table(execution), console=console, refresh_per_second=_REFRESH_PER_S) as live:

        def redraw() -> None:
            while not stop.wait(1 / _REFRESH_PER_S):
                live.update(_table(execution))

        thread = threading.Thread(target=redraw, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            live.update(_table(execution))


def _table(execution: Execution) -> Table:
    title = f"{execution.spec.name}  {execution.run_id}"
    table = Table("stage", "status", "shards", "rows", "refused", "s", "", title=title, box=None)
    for stage in execution.stages.values():
        shards = f"{stage.shards.cached + stage.shards.done}/{stage.shards.planned}"
        table.add_row(
            stage.name,
            f"[{_STYLES.get(stage.status, '')}]{stage.status}[/]",
            shards if stage.shards.planned else "",
            str(stage.rows.out or ""),
            str(stage.rows.rejected or ""),
            f"{stage.seconds:.0f}" if stage.seconds else "",
            _progress(execution, stage),
        )
    return table


def _progress(execution: Execution, stage: StageRun) -> str:
    """Return a training stage's own words; they are advisory and may not be there yet."""
    if stage.status != "RUNNING" or stage.shards.planned != 1:
        return stage.error or ""
    data = execution.store.objects.find(progress_key(execution.run_id, stage.name))
    if data is None:
        return ""
    state: dict[str, Any] = json.loads(data)
    metrics = "  ".join(f"{name} {value:.3g}" for name, value in state["metrics"].items())
    return f"step {state['step']}/{state['total']}  {metrics}"
