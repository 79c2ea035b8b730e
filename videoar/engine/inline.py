"""In-process engine: everything in this process, one shard after another.

Stages with an `overlap` greater than 1 run that many shards concurrently, in threads.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

from videoar.core.errors import StageError
from videoar.core.prefetch import prefetch
from videoar.engine.base import ShardDone, Waits, waits_unseen, with_retries
from videoar.pipeline.stage import Shard
from videoar.pipeline.work.progress import ProgressWriter
from videoar.pipeline.work.rank import run_rank
from videoar.pipeline.work.reduce import run_reduce
from videoar.pipeline.work.shard import ShardWorker
from videoar.pipeline.work.task import StageTask, WorkRecord, find_record
from videoar.storage.layout import loop_record_key


class InlineEngine:
    """For unit tests, debugging and machines without Ray."""

    name = "inline"

    def __init__(self) -> None:
        self.waits: Waits = waits_unseen

    def map(self, task: StageTask, shards: Sequence[Shard], done: ShardDone) -> None:
        """Run the shards in order."""
        retries = task.make_stage().config.retries
        worker = with_retries(lambda: ShardWorker(task), retries, self.waits)
        if worker.stage.overlap > 1:
            _overlap(worker, shards, done)
            return
        for shard in shards:
            done(shard, with_retries(partial(worker, shard), retries, self.waits))

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


def _overlap(worker: ShardWorker, shards: Sequence[Shard], done: ShardDone) -> None:
    with ThreadPoolExecutor(worker.stage.overlap, "shard") as pool:

        def submit(shard: Shard) -> Future[WorkRecord]:
            work = partial(worker, shard)
            return pool.submit(copy_context().run, with_retries, work, worker.stage.config.retries)

        try:
            for shard, record in prefetch(submit, shards, worker.stage.overlap - 1):
                done(shard, record.result())
        except BaseException:
            worker.stop()  # leaving the pool joins its threads: make them end
            raise


def finished_loop(task: StageTask) -> WorkRecord:
    """Return the record that rank 0 created: the only proof that a loop has ended successfully.

    Raises:
        StageError: there is none.
    """
    record = find_record(task.open_store(), loop_record_key(task.dataset, task.fingerprint))
    if record is None:
        raise StageError(f"stage {task.dataset}", "ended without a result from rank 0")
    return record
