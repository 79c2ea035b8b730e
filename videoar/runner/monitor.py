"""Shows that a run works: a log line every 20 s, and the curves of its trainings in MLflow.

Both come from threads of the driver: no work waits for them.
"""

import logging
import threading
from types import TracebackType
from typing import Self

from videoar.core.errors import VideoARError
from videoar.core.logging import log_context
from videoar.pipeline.work.progress import duration, read_progress
from videoar.records.mlflow.live import LiveMirror
from videoar.records.run import StageRun
from videoar.runner.execute import Execution

logger = logging.getLogger(__name__)
EVERY_S = 20.0
"""chosen: less than 30 s, also on a machine that is late."""


class Monitor:
    """Observes an execution inside a `with` block.

    Args:
        execution: may start inside the block.
        every_s: time between two log lines of a stage that runs.
    """

    def __init__(self, execution: Execution, every_s: float = EVERY_S) -> None:
        self._execution, self._every_s = execution, every_s
        self._mirror = LiveMirror(execution.store, execution.spec, execution.run_id)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        # on Ctrl-C the process ends at once, and the threads with it
        if kind is None or issubclass(kind, VideoARError):
            self._thread.join()
            self._mirror.close()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                for stage in self._execution.current():
                    if stage.is_in_progress:
                        self._observe(stage)
            except VideoARError as error:
                logger.info("running; the progress cannot be read: %s", error)

    def _observe(self, stage: StageRun) -> None:
        run_id = self._execution.run_id
        with log_context(run_id=run_id, stage=stage.name):
            text = f"{stage.progress}; " if stage.progress else ""
            reason = f": {stage.waiting}" if stage.waiting else ""
            took = duration(stage.seconds)
            logger.info("%s%s for %s%s", text, stage.status.lower(), took, reason)
        if stage.waiting:
            return
        found = read_progress(self._execution.store, run_id, stage.name)
        if found is not None and found[1]:
            self._mirror.offer(stage.name, found[1])
