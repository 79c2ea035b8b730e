"""The engine protocol: three verbs, one per stage shape.

An engine decides where work runs and how often it is tried again. It never decides what counts:
that is the create-once record which each piece of work ends in (`videoar.pipeline.work`).
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from videoar.core.errors import VideoARError
from videoar.pipeline.stage import Shard
from videoar.pipeline.work import Task, WorkRecord

logger = logging.getLogger(__name__)
T = TypeVar("T")
ShardDone = Callable[[Shard, WorkRecord], None]
_TRIES = 4
_FIRST_WAIT_S = 0.5


def with_retries(work: Callable[[], T]) -> T:
    """Call `work`; try again, with jittered and doubling waits, if its error says it may help.

    Stages and storage raise, engines decide; a store repeats only what breaks on the way by chance.
    """
    for attempt in range(1, _TRIES):
        try:
            return work()
        except VideoARError as error:
            if not error.retryable:
                raise
            wait_s = _FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            logger.warning("attempt %d failed, next in %.1f s: %s", attempt, wait_s, error)
            time.sleep(wait_s)
    return work()


class Engine(Protocol):
    """Runs the work of stages."""

    name: str

    def map(self, task: Task, shards: Sequence[Shard], done: ShardDone) -> None:
        """Run the shards in any order, calling `done` in the driver as each one finishes."""
        ...

    def loop(self, task: Task) -> WorkRecord:
        """Run a gang of ranks to the end."""
        ...

    def reduce(self, task: Task) -> WorkRecord:
        """Run a reduction."""
        ...

    def close(self) -> None:
        """Give back what the engine holds; safe to call twice."""
        ...
