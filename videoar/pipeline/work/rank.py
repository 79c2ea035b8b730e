"""Runs one rank of a loop stage, with its checkpoints and its progress in the store."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videoar.core.crash_points import crash_point
from videoar.core.errors import DamagedError, StorageError, TransientStorageError, WorkerLostError
from videoar.core.scratch import sweep
from videoar.core.settings import settings
from videoar.pipeline.context import StageContext
from videoar.pipeline.fingerprint import fingerprint
from videoar.pipeline.stage import LoopStage
from videoar.pipeline.work.progress import Curve, ProgressSink
from videoar.pipeline.work.task import (
    StageTask,
    UsageMeter,
    engine_boundary,
    publish_record,
    write_output,
)
from videoar.storage.collection import CollectionWatch
from videoar.storage.layout import checkpoints_prefix, loop_record_key, rank_usage_key

logger = logging.getLogger(__name__)
_PART_TIMEOUT_S = 600.0
"""chosen: ranks write parts of one size, and start within a step of each other."""
_PART_POLL_S = 0.2
_CHECKPOINTS_KEPT = 2
"""chosen: the newest one, and the one that a rank may still be reading when it is committed."""


class StoreRankContext:
    """The rank context of every engine: checkpoints in the store, one create-once record each.

    The checkpoints of one training have a prefix of their own, `checkpoints/<stage>/<digest>/`:
    records as `<step>.json`, files as `<step>-<sha256>`. A file is named by the record of its own
    step only, so both can be deleted together. The newest two checkpoints are kept permanently: a
    stage that has ended resumes from them after its publish gate was changed. Delete the prefix to
    free the space.

    Args:
        task: the stage run.
        index: rank, from 0.
        world_size: number of ranks.
        scratch: empty local folder of this attempt.
        sink: receives the progress of rank 0.
    """

    def __init__(
        self, task: StageTask, index: int, world_size: int, scratch: Path, sink: ProgressSink
    ) -> None:
        self.index = index
        self.world_size = world_size
        self.scratch = scratch
        self._store = task.open_store()
        self._checkpoints = training_prefix(task)
        self._sink = sink
        notice = settings().preemption_notice
        self._notice = Path(notice) if notice else None

    def report(
        self, step: int, total: int, metrics: Mapping[str, float], curve: Curve = ()
    ) -> None:
        """Report progress: of rank 0, to the sink, which limits the rate."""
        if self.index == 0:
            self._sink(step, total, metrics, curve)

    def save_checkpoint(self, step: int, folder: Path, group: str = "") -> None:
        """Publish the folder's files, then the record that makes them a checkpoint.

        With a group, every other rank publishes a record of its part, which rank 0 waits for. The
        group is in its key: the part of an attempt that was killed never counts.

        Raises:
            WorkerLostError: another rank of the group did not publish its files in time.
        """
        if self.index and not group:
            return
        # fixed width: sorted as texts, keys are in the order of steps
        stem = f"{self._checkpoints}{step:09d}"
        files = self._store.publish_folder(folder, f"{stem}-")
        # killed here, files have no record: `_remove_older` deletes them once newer checkpoints
        # exist
        crash_point("checkpoint-written")
        if self.index:
            self._store.ledger.create(f"{stem}-{group}-{self.index}.json", {"files": files})
            return
        part_keys = [f"{stem}-{group}-{rank}.json" for rank in range(1, self.world_size) if group]
        for key in part_keys:
            files += self._wait_for_part(key)["files"]
        # False if this step has a record: another run of the same training was here first
        self._store.ledger.create(f"{stem}.json", {"step": step, "files": files})
        crash_point("checkpoint-committed")
        for key in part_keys:
            self._store.objects.delete(key)
        self._remove_older()

    def _wait_for_part(self, key: str) -> dict[str, Any]:
        end = time.monotonic() + _PART_TIMEOUT_S
        while (part := self._store.ledger.read(key)) is None:
            if time.monotonic() > end:
                raise WorkerLostError(key, f"not written within {_PART_TIMEOUT_S:g} s")
            time.sleep(_PART_POLL_S)
        return part

    def is_preempted(self) -> bool:
        """Return whether the file of the setting `preemption_notice` exists on this machine."""
        return self._notice is not None and self._notice.exists()

    def load_checkpoint(self, into: Path) -> int | None:
        """Fetch the newest checkpoint that has a record; return its step, None without one.

        Raises:
            TransientStorageError: another run of the same training has removed it meanwhile; or
                files of it are missing or damaged. Then the checkpoint is removed, so that the next
                attempt of all ranks resumes from the one before.
        """
        self._remove_older()
        records = [key for key in self._keys() if not self._is_file(key)]
        if not records:
            return None
        newest = records[-1]
        record = self._store.ledger.read(newest)
        if record is None:
            raise TransientStorageError(newest, "removed by another run of the same training")
        try:
            self._store.fetch_folder(record["files"], into)
        except StorageError as error:
            # a store that cannot be reached raises StorageError, too, and must not cost a
            # checkpoint
            size = self._store.objects.size
            has_missing = any(size(file["key"]) != file["size_bytes"] for file in record["files"])
            if not (isinstance(error, DamagedError) or has_missing):
                raise
            self._remove(newest)
            hint = "removed; the next attempt resumes from the checkpoint before it"
            raise TransientStorageError(newest, f"cannot be loaded: {error}", hint) from error
        step: int = record["step"]
        logger.info("resuming from the checkpoint of step %d", step)
        return step

    def _remove(self, record: str) -> None:
        """Remove a checkpoint with its files.

        The files must go as well: training the same steps again would find them by their size and
        not write them.
        """
        if self.index:
            return
        files = record.replace(".json", "-")
        for key in (record, *(key for key in self._keys() if key.startswith(files))):
            self._store.objects.delete(key)

    def _keys(self) -> list[str]:
        return [info.key for info in self._store.objects.list(self._checkpoints)]

    def _is_file(self, key: str) -> bool:
        return "-" in key.removeprefix(self._checkpoints)

    def _remove_older(self) -> None:
        """Remove all but the newest checkpoints, and files that killed attempts left before them.

        Records are deleted first, so that every record that exists can be loaded. Nothing newer is
        deleted: it may belong to a driver that still runs. If the store rejects the deletion,
        training continues and the files stay.
        """
        if self.index:
            return
        try:
            keys = self._keys()
            kept = [key for key in keys if not self._is_file(key)][-_CHECKPOINTS_KEPT:]
            # "<step>-<sha256>" > "<step>": the files of the oldest kept record are not among them
            old = [key for key in keys if kept and key < kept[0].removesuffix(".json")]
            for key in sorted(old, key=self._is_file):
                self._store.objects.delete(key)
                crash_point("checkpoint-removing")
        except StorageError as error:
            logger.warning("older checkpoints could not be deleted: %s", error)


def training_prefix(task: StageTask) -> str:
    """Return the key prefix of a training's checkpoints.

    Its digest leaves out the fields that only gate the publication: after such a change the stage
    resumes from the same checkpoints.
    """
    gates = task.make_stage().config.publish_gates()
    config = {k: v for k, v in task.fingerprint_parts["config"].items() if k not in gates}
    digest = fingerprint({**task.fingerprint_parts, "config": config})
    return checkpoints_prefix(task.dataset, digest)


def run_rank(task: StageTask, index: int, world_size: int, sink: ProgressSink) -> None:
    """Run one rank of a loop stage; rank 0 records the output.

    Raises:
        VideoARError: the stage failed; nothing else is raised.
    """
    with engine_boundary(task, f"rank {index}"):
        store = task.open_store()
        stage: LoopStage[Any] = task.make_stage()
        meter, watch = UsageMeter(stage.config.resources.gpus), CollectionWatch(store)
        inputs = task.open_inputs(store)
        context = StageContext(store)
        # a killed rank has left its scratch folder, perhaps with a checkpoint in it
        sweep()
        with context.scratch() as scratch:
            rank = StoreRankContext(task, index, world_size, scratch, sink)
            output = stage.run(inputs, context, rank)
        if output is None:
            key = rank_usage_key(task.run_id, task.dataset, index)
            store.objects.put(key, meter.read().model_dump_json().encode())
            return
        record = write_output(task, store, stage.produces, output)
        rows_in = sum(snapshot.rows for snapshot in inputs.values())
        record = record.model_copy(update={"rows_in": rows_in, "usage": meter.read()})
        publish_record(store, loop_record_key(task.dataset, task.fingerprint), record, watch)
