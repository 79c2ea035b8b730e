"""In-process engine: everything in this process, one shard after another.

Stages with an `overlap` greater than 1 run that many shards concurrently, in threads.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

from videoar.core.errors import OutOfMemoryError, StageError
from videoar.core.prefetch import prefetch
from videoar.engine.base import ShardDone, Waits, waits_unseen, with_retries
from videoar.engine.isolated import in_child, run_isolated
from videoar.pipeline.stage import Shard
from videoar.pipeline.work.progress import ProgressWriter
from videoar.pipeline.work.rank import run_rank
from videoar.pipeline.work.reduce import run_reduce
from videoar.pipeline.work.shard import ShardWorker
from videoar.pipeline.work.task import StageTask, WorkRecord, find_record
from videoar.storage.layout import loop_record_key

logger = logging.getLogger(__name__)


class InlineEngine:
    """For unit tests, debugging and machines without Ray."""

    name = "inline"

    def __init__(self) -> None:
        self.waits: Waits = waits_unseen

    def map(self, task: StageTask, shards: Sequence[Shard], done: ShardDone) -> None:
        """Run the shards in order; one that lacks memory again, with nothing beside it."""
        retries = task.make_stage().config.retries
        worker = with_retries(lambda: ShardWorker(task), retries, self.waits)
        if worker.stage.overlap > 1:
            shards = _overlap(worker, shards, done)
        for shard in shards:
            done(shard, with_retries(partial(worker, shard), retries, self.waits))

    def map_isolated(self, task: StageTask, shard: Shard, done: ShardDone) -> None:
        """Run a shard in a child process."""
        where = f"stage {task.dataset}, shard {shard.index}"
        done(shard, run_isolated(task, shard, lambda call, _: in_child(where, call), self.waits))

    def loop(self, task: StageTask) -> WorkRecord:
        """Run the loop as a single rank."""
        retries = task.make_stage().config.retries
        with_retries(lambda: run_rank(task, 0, 1, ProgressWriter(task)), retries, self.waits)
        return finished_loop(task)

    def reduce(self, task: StageTask) -> WorkRecord:
        """Run the reduction."""
        retries = task.make_stage().config.retries
        return with_retries(lambda: run_reduce(task), retries, self.waits)

    def close(self) -> None:
        """Do nothing: this engine holds no resources."""


def _overlap(worker: ShardWorker, shards: Sequence[Shard], done: ShardDone) -> list[Shard]:
    """Run shards concurrently; return those for which there was too little memory."""
    too_large = []
    with ThreadPoolExecutor(worker.stage.overlap, "shard") as pool:

        def once(shard: Shard) -> WorkRecord | None:
            try:
                return worker(shard)
            except OutOfMemoryError as error:
                logger.warning("runs with nothing beside it after: %s", error)
                return None

        def submit(shard: Shard) -> Future[WorkRecord | None]:
            work, retries = partial(once, shard), worker.stage.config.retries
            return pool.submit(copy_context().run, with_retries, work, retries)

        try:
            for shard, future in prefetch(submit, shards, worker.stage.overlap - 1):
                if (record := future.result()) is None:
                    too_large.append(shard)
                else:
                    done(shard, record)
        except BaseException:
            worker.stop()  # leaving the pool joins its threads: make them end
            raise
    return too_large


def finished_loop(task: StageTask) -> WorkRecord:
    """Return the record that rank 0 created: the only proof that a loop has ended successfully.

    Raises:
        StageError: there is none.
    """
    record = find_record(task.open_store(), loop_record_key(task.dataset, task.fingerprint))
    if record is None:
        raise StageError(f"stage {task.dataset}", "ended without a result from rank 0")
    return record
