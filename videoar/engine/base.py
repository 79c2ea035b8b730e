"""The engine protocol: one method per stage shape.

An engine decides where work runs and how often it is retried. It does not decide which result
counts: that is the create-once record that each piece of work ends in (`videoar.pipeline.work`).
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from videoar.core.errors import VideoARError
from videoar.core.retry import RetryPolicy
from videoar.core.types import Retries
from videoar.pipeline.stage import Shard
from videoar.pipeline.work.task import StageTask, WorkRecord

logger = logging.getLogger(__name__)
T = TypeVar("T")
ShardDone = Callable[[Shard, WorkRecord], None]
"""Called in the driver with each finished shard."""
Waits = Callable[[Exception | None], object]
"""Called in the driver with the error after which all work of a stage waits to be tried again, and
with None when it goes on."""
_RETRY = RetryPolicy(first_wait_s=1.0, max_wait_s=8.0)
_DEFAULT = Retries()


def waits_unseen(_: Exception | None) -> None:
    """Show nobody that work waits to be tried again."""


def with_retries(
    work: Callable[[], T], retries: Retries = _DEFAULT, waits: Waits = waits_unseen
) -> T:
    """Call `work`; retry with backoff while its error is `retryable`, as often as its kind allows.

    Stages and storage raise, the engine decides; a store has waited for its server before.
    """
    used: Counter[str] = Counter()

    def attempt() -> T:
        if used:
            waits(None)
        return work()

    def should_retry(error: Exception) -> bool:
        if not (isinstance(error, VideoARError) and error.retryable):
            return False
        used[error.kind] += 1
        return used[error.kind] <= getattr(retries, error.kind, 0)

    def on_retry(number: int, wait_s: float, error: Exception) -> None:
        logger.warning("attempt %d failed, next in %.1f s: %s", number, wait_s, error)
        waits(error)

    return _RETRY.call(attempt, should_retry, on_retry)


class Engine(Protocol):
    """Runs the work of stages."""

    name: str
    waits: Waits
    """Set by who uses the engine. A shard that waits while others go on is no wait of the stage."""

    def map(self, task: StageTask, shards: Sequence[Shard], done: ShardDone) -> None:
        """Run the shards in any order; call `done` in the driver as each one finishes."""

    def map_isolated(self, task: StageTask, shard: Shard, done: ShardDone) -> None:
        """Run a shard that may have ended the driver: in another process, and nothing beside it.

        Raises:
            WorkerLostError: it ends its process as often as the budget allows; names the row.
            OutOfMemoryError: it needs more memory than there is; names the row.
        """

    def loop(self, task: StageTask) -> WorkRecord:
        """Run all ranks of a loop stage to the end; return the record of rank 0."""

    def reduce(self, task: StageTask) -> WorkRecord:
        """Run a reduction."""

    def close(self) -> None:
        """Release what the engine holds; safe to call twice."""
