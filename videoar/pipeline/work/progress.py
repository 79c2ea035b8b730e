"""How far a running stage is: one advisory object per stage and run, rewritten while it runs.

Displays, log lines, the report page and the MLflow mirror read it; no result depends on it.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, computed_field

from videoar.core.errors import StorageError
from videoar.core.types import Stored
from videoar.pipeline.work.task import StageTask, Usage
from videoar.storage.layout import progress_key, rank_usage_prefix
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
Curve = Sequence[Mapping[str, float]]
"""Points of a training: `step` and metrics by name."""
ProgressSink = Callable[[int, int, Mapping[str, float], Curve], None]
"""Receives step, total steps, metrics, and the training's curve so far."""
_EVERY_S = 2.0  # chosen: the display is for people
_SHARE = 0.05  # chosen: at most this share of the time of who writes
_RATE_OVER = 32  # chosen: writes that a rate covers, about a minute


class Progress(Stored):
    """How far a stage is."""

    unit: Literal["step", "shard"] = "step"
    step: int
    """Steps of a training, or shards of a map stage, that are finished."""
    total: int
    per_s: float | None = None
    """Steps or shards per second, over about the last minute."""
    metrics: dict[str, float] = Field(default_factory=dict)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def eta_s(self) -> float | None:
        """Seconds to the last step at this rate."""
        return round((self.total - self.step) / self.per_s, 1) if self.per_s else None

    def __str__(self) -> str:
        """Return it for people, such as `step 1089 of 2000, 8.1/s, 1 min 52 s left`."""
        texts = [f"{self.unit} {self.step} of {self.total}"]
        if self.per_s:
            # slow ones, such as shards of hours of video, as seconds each
            texts.append(
                f"{self.per_s:.3g}/s" if self.per_s >= 1 else f"{1 / self.per_s:.3g} s each"
            )
        if self.eta_s is not None and self.step < self.total:
            texts.append(f"{duration(self.eta_s)} left")
        return ", ".join(texts)


class ProgressWriter:
    """Writes the progress of a stage, rate-limited except for the last step.

    The slower the store, the fewer writes: it must not slow the work down. No result depends on
    them, so a failed one is logged, once, and ignored.
    """

    def __init__(self, task: StageTask, unit: Literal["step", "shard"] = "step") -> None:
        self._store, self._unit = task.open_store(), unit
        self._key = progress_key(task.run_id, task.dataset)
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RATE_OVER)
        self._next_write = 0.0
        self._has_warned = False

    def __call__(
        self, step: int, total: int, metrics: Mapping[str, float], curve: Curve = ()
    ) -> None:
        """Write, if it is time to."""
        began = time.monotonic()
        if began < self._next_write and step < total:
            return
        if self._recent and step < self._recent[-1][1]:
            self._recent.clear()  # went back to a checkpoint
        self._recent.append((began, step))
        first_s, first = self._recent[0]
        state = {
            "unit": self._unit,
            "step": step,
            "total": total,
            "per_s": (step - first) / (began - first_s) if step > first else None,
            "metrics": dict(metrics),
            "curve": list(curve),
        }
        try:
            self._store.objects.put(self._key, json.dumps(state).encode())
        except StorageError as error:
            if not self._has_warned:
                logger.warning("progress could not be written: %s", error)
            self._has_warned = True
        ended = time.monotonic()
        self._next_write = ended + max(_EVERY_S, (ended - began) / _SHARE)


def clear_progress(store: Store, run_id: str, stage: str) -> None:
    """Remove what an earlier attempt of a run has left."""
    store.objects.delete(progress_key(run_id, stage))
    for key in store.ledger.list(rank_usage_prefix(run_id, stage)):
        store.objects.delete(key)


def read_progress(store: Store, run_id: str, stage: str) -> tuple[Progress, Curve] | None:
    """Return the progress of a stage and its curve so far, None without one that can be read."""
    data = store.objects.find(progress_key(run_id, stage))
    if data is None:
        return None
    try:
        state: dict[str, Any] = json.loads(data)
        return Progress.model_validate(state), state.get("curve", [])
    except (TypeError, ValueError):  # damaged, and for display only: the next write replaces it
        return None


def rank_usage(store: Store, run_id: str, stage: str) -> Iterator[Usage]:
    """Yield what the ranks of a training used, without the first one, whose record has it."""
    for key in store.ledger.list(rank_usage_prefix(run_id, stage)):
        yield Usage.model_validate_json(store.objects.get(key))


def duration(seconds: float) -> str:
    """Return a time for people: `52 s`, `1 min 52 s`, `3 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
