"""Curves of trainings, in MLflow while they go on."""

import logging
import threading

from videoar.core.errors import one_line
from videoar.pipeline.spec import PipelineSpec
from videoar.pipeline.work.progress import Curve
from videoar.records.mlflow.runs import RunMirror, curve_points
from videoar.records.run_record import load_run
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_CLOSE_TIMEOUT_S = 30.0  # chosen: creating the local database takes seconds
_RETRY_S = 60.0


class LiveMirror:
    """Sends the curves of trainings to MLflow while they go on, from a thread of its own.

    Whoever offers a curve never waits. What cannot be sent now is sent with a later curve, or by
    `record_run` at the end.
    """

    def __init__(self, store: Store, spec: PipelineSpec, run_id: str) -> None:
        self._store, self._spec, self._run_id = store, spec, run_id
        # a curve is all of its points so far, so the newest one of each stage is enough
        self._curves: dict[str, Curve] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def offer(self, stage: str, curve: Curve) -> None:
        """Send a curve soon, unless a longer one comes first."""
        with self._changed:
            self._curves[stage] = curve
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Send what was offered last, if that is soon."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        mirror: RunMirror | None = None
        has_warned = False
        while (curves := self._take()) is not None:
            try:
                mirror = mirror or RunMirror(
                    self._store, load_run(self._store, self._run_id), self._spec
                )
                for stage, curve in curves.items():
                    mirror.log(curve_points(stage, curve))
            except Exception as error:  # noqa: BLE001 - MLflow is a mirror: if it is down, warn
                mirror = None  # reads what has arrived
                if not has_warned:
                    what = "metrics are not in MLflow yet, sent later, or by videoar doctor --fix"
                    logger.warning("%s: %s", what, one_line(error))
                has_warned = True
                with self._changed:
                    if self._changed.wait_for(lambda: self._is_closed, _RETRY_S):
                        return
            else:
                has_warned = False

    def _take(self) -> dict[str, Curve] | None:
        """Wait for curves; return None once closed and all are sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._curves)
            curves, self._curves = self._curves, {}
            return curves or None
