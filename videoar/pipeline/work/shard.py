"""Runs shards of a map stage, on any engine."""

from collections.abc import Callable
from shutil import disk_usage
from socket import gethostname
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from videoar.core.crash_points import crash_point
from videoar.core.errors import DiskError
from videoar.pipeline.context import StageContext
from videoar.pipeline.fingerprint import ShardFingerprints
from videoar.pipeline.stage import Mapper, MapStage, Output, Shard, Stoppable
from videoar.pipeline.work.task import (
    StageTask,
    UsageMeter,
    WorkRecord,
    engine_boundary,
    find_record,
    merge,
    publish_record,
    write_output,
)
from videoar.storage.collection import CollectionWatch
from videoar.storage.layout import shard_record_key

if TYPE_CHECKING:
    from videoar.media.clip_prefetch import ReaderSlot


class ShardWorker:
    """Runs shards of one map stage; created once per worker, so that weights load once.

    Args:
        task: the stage run.
        open_reader_slots: see `StageContext`.
    """

    def __init__(
        self, task: StageTask, open_reader_slots: "Callable[[], list[ReaderSlot]] | None" = None
    ) -> None:
        self.task = task
        self.store = task.open_store()
        self._watch = CollectionWatch(self.store)
        self.stage: MapStage[Any] = task.make_stage()
        self._names = ShardFingerprints(task.fingerprint_parts, self.stage.sharded)
        self._meter = UsageMeter(self.stage.config.resources.gpus)
        self.inputs = task.open_inputs(self.store)
        context = StageContext(self.store, open_reader_slots=open_reader_slots)
        self.mapper: Mapper = self.stage.open(self.inputs, context)

    def __call__(self, shard: Shard) -> WorkRecord:
        """Run one shard, or return the record of an earlier attempt.

        Raises:
            DiskError: there is too little space for temporary files.
            StageError: the stage failed on this shard.
        """
        key = shard_record_key(self.task.dataset, self._names.of(shard))
        # the plan is minutes old: a retry or another run may have finished this shard since
        if (existing := find_record(self.store, key)) is not None:
            return existing
        self._require_scratch(shard)
        with engine_boundary(self.task, f"shard {shard.index}"):
            result = self.mapper(self.rows(shard))
            outputs = [result] if isinstance(result, Output) else result
            produces = self.stage.produces
            record = merge([write_output(self.task, self.store, produces, o) for o in outputs])
        # killed here, files have no record. The shard runs again; equal rows have equal keys, so it
        # finds its files instead of leaving a second copy.
        crash_point("shard-written")
        record = record.model_copy(update={"rows_in": shard.num_rows, "usage": self._meter.read()})
        return publish_record(self.store, key, record, self._watch)

    def _require_scratch(self, shard: Shard) -> None:
        reserve = int(self.stage.config.resources.scratch_gib * 2**30)
        needed = self.stage.scratch_bytes(shard) + reserve
        folder = gettempdir()
        if needed and (free := disk_usage(folder).free) < needed:
            what = f"{free / 2**30:.2f} GiB are free, "
            what += f"shard {shard.index} needs {needed / 2**30:.2f}"
            raise DiskError(folder, what, f"free space on {gethostname()}, or set TMPDIR")

    def stop(self) -> None:
        """End the shards that other threads are running early, where the stage supports it."""
        if isinstance(self.mapper, Stoppable):
            self.mapper.stop()

    def rows(self, shard: Shard) -> pa.Table:
        """Read the input rows of a shard."""
        if shard.file is not None:
            return self.stage.divided(self.inputs).read_file(shard.file)
        return pa.Table.from_pylist([dict(row) for row in shard.rows])
