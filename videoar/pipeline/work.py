"""The work of one shard, one rank and one reduction: what any engine runs, on whatever machine.

A task names everything by value (store URL, stage type, config, snapshot ids), so that it travels
to another process as a few kilobytes; payloads stay in the store. Each function ends in one
create-once record of the ledger. Whoever comes second finds the first one's record and adopts it:
a shard may run twice, on two machines, and count once.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from videoar.contracts.expectations import CheckReport
from videoar.core.crash_points import crash_point
from videoar.core.errors import (
    DamagedError,
    GateError,
    StageError,
    StorageError,
    TransientStorageError,
    VideoARError,
)
from videoar.core.scratch import Scratch, sweep
from videoar.core.types import FileRef, Frozen
from videoar.pipeline.fingerprint import Components, fingerprint, shard_fingerprint
from videoar.pipeline.registry import BUILTIN, Registry, make_stage
from videoar.pipeline.stage import (
    Inputs,
    LoopStage,
    Mapper,
    MapStage,
    Output,
    ReduceStage,
    Shard,
    Stoppable,
)
from videoar.storage.store import Store, open_store

logger = logging.getLogger(__name__)
REJECTS = "rejects@1"
_PROGRESS_EVERY_S = 2.0  # chosen: for a display
_PROGRESS_SHARE = 0.05  # chosen: of a rank's time, at most
_CHECKPOINTS_KEPT = 2
"""chosen: the newest, and the one that a rank may still be reading when that is committed."""


class WorkRecord(Frozen):
    """What came out of a shard, a loop or a reduction: files that wait for their commit."""

    files: tuple[FileRef, ...] = ()
    rejects: tuple[FileRef, ...] = ()
    rows_in: int = 0
    rows_out: int = 0
    rows_rejected: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)

    @property
    def all_files(self) -> tuple[FileRef, ...]:
        """Files of rows and of rejects."""
        return self.files + self.rejects


@dataclass(frozen=True)
class Task:
    """One stage run, by value."""

    run_id: str
    dataset: str
    stage_type: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Port to snapshot id."""
    parts: Components
    store_url: str
    store_endpoint: str = ""
    registry: Registry = field(default_factory=lambda: BUILTIN)

    @property
    def fingerprint(self) -> str:
        """Digest of what was asked."""
        return fingerprint(self.parts)

    def store(self) -> Store:
        """Open the store in this process."""
        return open_store(self.store_url, endpoint=self.store_endpoint)

    def stage(self) -> Any:  # noqa: ANN401 - one of the three shapes, the caller knows which
        """Build the stage in this process."""
        return make_stage(self.stage_type, self.config, self.registry)

    def open_inputs(self, store: Store) -> Inputs:
        """Find the input snapshots in this process."""
        return {port: store.snapshot(snapshot) for port, snapshot in self.inputs.items()}

    @property
    def ledger_prefix(self) -> str:
        """Where the records of this dataset's stage are."""
        return f"stages/{self.dataset}"


def record_key(task: Task, kind: str, name: str) -> str:
    """Return the ledger key of one create-once record."""
    return f"{task.ledger_prefix}/{kind}/{name}.json"


def find_record(store: Store, key: str) -> WorkRecord | None:
    """Return the record under a key, if that work was done before."""
    found = store.ledger.read(key)
    return WorkRecord.model_validate(found) if found is not None else None


def _publish(store: Store, key: str, record: WorkRecord) -> WorkRecord:
    """Create the record, or adopt the one that another worker created first."""
    if store.ledger.create(key, record.model_dump(mode="json")):
        return record
    return WorkRecord.model_validate(store.ledger.read(key))


def _write(task: Task, store: Store, produces: str, output: Output) -> WorkRecord:
    """Write an output's rows and rejects as files; invisible until somebody commits them."""
    files, rejects = [], []
    refused = output.rejects.num_rows if output.rejects is not None else 0
    if output.rows.num_rows:
        files.append(store.dataset(task.dataset, produces).write(output.rows))
    if output.rejects is not None and refused:
        rejects.append(store.dataset(f"{task.dataset}.rejects", REJECTS).write(output.rejects))
    return WorkRecord(
        files=tuple(files),
        rejects=tuple(rejects),
        rows_out=output.rows.num_rows,
        rows_rejected=refused,
        metrics=dict(output.metrics),
    )


def merge(records: list[WorkRecord]) -> WorkRecord:
    """Add up records; metrics of shards are sums."""
    metrics: dict[str, float] = {}
    for record in records:
        for name, value in record.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
    return WorkRecord(
        files=tuple(file for record in records for file in record.files),
        rejects=tuple(file for record in records for file in record.rejects),
        rows_in=sum(record.rows_in for record in records),
        rows_out=sum(record.rows_out for record in records),
        rows_rejected=sum(record.rows_rejected for record in records),
        metrics=metrics,
    )


class ShardWorker:
    """Runs shards of one map stage; made once per worker, so that weights load once."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.store = task.store()
        self.stage: MapStage[Any] = task.stage()
        self.inputs = task.open_inputs(self.store)
        self.mapper: Mapper = self.stage.open(self.inputs, self.store)

    def __call__(self, shard: Shard) -> WorkRecord:
        """Run one shard, or adopt its record.

        Raises:
            StageError: the stage failed on this shard.
        """
        name = shard_fingerprint(self.task.parts, self.stage.primary, shard)
        key = record_key(self.task, "shards", name)
        if (found := find_record(self.store, key)) is not None:
            return found
        try:
            made = self.mapper(self._rows(shard))
            outputs = [made] if isinstance(made, Output) else made
            record = merge([
                _write(self.task, self.store, self.stage.produces, output) for output in outputs
            ])
        except VideoARError:
            raise
        except Exception as error:  # the engine boundary: whatever escaped gets its shard's name
            raise stage_error(self.task, f"shard {shard.index}", error) from error
        crash_point("shard-written")
        return _publish(self.store, key, record.model_copy(update={"rows_in": shard.num_rows}))

    def stop(self) -> None:
        """Let shards that other threads are running end early, where the stage can."""
        if isinstance(self.mapper, Stoppable):
            self.mapper.stop()

    def _rows(self, shard: Shard) -> pa.Table:
        if shard.file is not None:
            return self.inputs[self.stage.primary].read_file(shard.file)
        return pa.Table.from_pylist([dict(row) for row in shard.rows])


def stage_error(task: Task, where: str, cause: BaseException) -> StageError:
    """Wrap what escaped a stage with the names that a reader needs."""
    text = f"{type(cause).__name__}: {cause}"
    return StageError(f"stage {task.dataset}, {where}", text, f"see videoar logs {task.run_id}")


def run_reduce(task: Task) -> WorkRecord:
    """Run a reduction: let the stage's own gate look at its tables, write them, record them.

    Raises:
        GateError: the stage's check refused the rows; its page is kept, the rows are not.
        StageError: the stage failed.
    """
    store = task.store()
    key = record_key(task, "reduced", task.fingerprint)
    if (found := find_record(store, key)) is not None:
        return found
    stage: ReduceStage[Any] = task.stage()
    inputs = task.open_inputs(store)
    try:
        outputs = list(stage.reduce(inputs, store))
        report = stage.check(inputs, pa.concat_tables([output.rows for output in outputs]))
    except VideoARError:
        raise
    except Exception as error:  # the engine boundary
        raise stage_error(task, "reduction", error) from error
    if report is not None:
        _settle_check(task, store, report)
    record = merge([_write(task, store, stage.produces, output) for output in outputs])
    rows_in = sum(found.rows for port, found in inputs.items() if not stage.consumes[port].optional)
    crash_point("reduce-written")
    return _publish(store, key, record.model_copy(update={"rows_in": rows_in}))


def _settle_check(task: Task, store: Store, report: CheckReport) -> None:
    """Keep what a check found, for good and for bad, then refuse if it was bad."""
    key = check_key(task.dataset, task.fingerprint)
    page = f"{key}.html"
    store.objects.put(page, report.html.encode(), if_absent=True)
    found = {
        "success": report.success,
        "page": page,
        "expectations": [expectation.model_dump() for expectation in report.expectations],
    }
    store.ledger.create(f"{key}.json", found)
    if not report.success:
        hint = f"all expectations: {store.url}/{page}"
        raise GateError(f"stage {task.dataset}", "; ".join(report.failures), hint)


def check_key(dataset: str, fingerprint: str) -> str:
    """Return where the check of a reduction is kept, as `.json` and as a page, `.html`."""
    return f"checks/{dataset}/{fingerprint}"


def find_check(store: Store, dataset: str, fingerprint: str) -> dict[str, Any] | None:
    """Return what a check found: `{success, page, expectations}`."""
    return store.ledger.read(f"{check_key(dataset, fingerprint)}.json")


ProgressSink = Callable[[int, int, Mapping[str, float]], None]


class StoreRank:
    """A rank whose checkpoints live in the store, committed by one create-once record each.

    All of a training's lie under a prefix of their own, `checkpoints/<stage>/<digest>/`: records as
    `<step>.json`, files as `<step>-<sha256>`. So a file is named by records of its step alone, and
    goes with them. The newest two checkpoints stay, for good: with another gate a stage that has
    ended goes on from there. Whoever wants the space deletes the prefix.
    """

    def __init__(
        self, task: Task, index: int, world_size: int, scratch: Path, sink: ProgressSink
    ) -> None:
        self.index = index
        self.world_size = world_size
        self.scratch = scratch
        self._store = task.store()
        config, gates = task.parts["config"], task.stage().config.gates()
        asked = {name: value for name, value in config.items() if name not in gates}
        name = fingerprint({**task.parts, "config": asked})
        self._checkpoints = f"checkpoints/{task.dataset}/{name}/"
        self._sink = sink
        self._next_report = 0.0

    def report(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Pass progress on, now and then and at the last step; a slow sink gets it less often."""
        began = time.monotonic()
        if self.index == 0 and (began >= self._next_report or step >= total):
            self._sink(step, total, metrics)
            ended = time.monotonic()
            self._next_report = ended + max(_PROGRESS_EVERY_S, (ended - began) / _PROGRESS_SHARE)

    def save_checkpoint(self, step: int, folder: Path) -> None:
        """Publish the folder's files, then the record that makes them a checkpoint."""
        if self.index:
            return
        place = f"{self._checkpoints}{step:09d}"
        files = self._store.publish_folder(folder, f"{place}-")
        crash_point("checkpoint-written")
        self._store.ledger.create(f"{place}.json", {"step": step, "files": files})
        crash_point("checkpoint-committed")
        self._remove_older()

    def load_checkpoint(self, into: Path) -> int | None:
        """Fetch the newest checkpoint that has a record.

        Raises:
            TransientStorageError: another gang trains the same, and has removed it meanwhile; or
                files of it are lost or damaged. It is removed then: the next attempt of the whole
                gang goes on from the one before.
        """
        self._remove_older()
        records = [key for key in self._keys() if not self._is_file(key)]
        if not records:
            return None
        newest = records[-1]
        record = self._store.ledger.read(newest)
        if record is None:
            raise TransientStorageError(newest, "removed meanwhile: another run trains the same")
        try:
            self._store.fetch_folder(record["files"], into)
        except StorageError as error:
            if not (isinstance(error, DamagedError) or self._has_lost(record["files"])):
                raise
            self._remove(newest)
            hint = "removed, the next attempt goes on from the one before"
            raise TransientStorageError(newest, f"cannot be loaded: {error}", hint) from error
        step: int = record["step"]
        logger.info("resuming from the checkpoint of step %d", step)
        return step

    def _has_lost(self, files: list[dict[str, Any]]) -> bool:
        return any(self._store.objects.size(file["key"]) != file["size_bytes"] for file in files)

    def _remove(self, record: str) -> None:
        """Remove a checkpoint and its files, which the same steps would take for kept."""
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
        """Remove all but the newest checkpoints, with what killed attempts have left before them.

        Records go first, so that each that is there can be loaded. Nothing newer is touched, be it
        of a gang that was taken for dead. A store that refuses costs space, not the training.
        """
        if self.index:
            return
        try:
            keys = self._keys()
            kept = [key for key in keys if not self._is_file(key)][-_CHECKPOINTS_KEPT:]
            old = [key for key in keys if kept and key < kept[0].removesuffix(".json")]
            for key in sorted(old, key=self._is_file):
                self._store.objects.delete(key)
                crash_point("checkpoint-removing")
        except StorageError as error:
            logger.warning("older checkpoints stay for now: %s", error)


def store_progress(task: Task) -> ProgressSink:
    """Return a sink that rewrites one advisory object, which the driver reads for its display.

    Nothing hangs on it: a store that refuses it is no reason to train any step again.
    """
    store = task.store()
    key = progress_key(task.run_id, task.dataset)
    is_told = False

    def sink(step: int, total: int, metrics: Mapping[str, float]) -> None:
        nonlocal is_told
        state = {"step": step, "total": total, "metrics": dict(metrics)}
        try:
            store.objects.put(key, json.dumps(state).encode())  # rewritten, never truth
        except StorageError as error:
            if not is_told:
                logger.warning("progress is not shown for now: %s", error)
            is_told = True

    return sink


def progress_key(run_id: str, stage: str) -> str:
    """Return the key of a stage's advisory progress object."""
    return f"runs/{run_id}/progress/{stage}.json"


def run_rank(task: Task, index: int, world_size: int, sink: ProgressSink) -> None:
    """Run one member of a loop stage's gang; rank 0 records the output.

    Raises:
        VideoARError: the stage failed; nothing else is raised.
    """
    try:
        _run_rank(task, index, world_size, sink)
    except VideoARError:
        raise
    except Exception as error:  # the engine boundary
        raise stage_error(task, f"rank {index}", error) from error


def _run_rank(task: Task, index: int, world_size: int, sink: ProgressSink) -> None:
    store = task.store()
    stage: LoopStage[Any] = task.stage()
    inputs = task.open_inputs(store)
    sweep()
    with Scratch() as scratch:
        output = stage.run(inputs, store, StoreRank(task, index, world_size, scratch, sink))
    if output is None:
        return
    record = _write(task, store, stage.produces, output)
    rows_in = sum(snapshot.rows for snapshot in inputs.values())
    _publish(store, loop_key(task), record.model_copy(update={"rows_in": rows_in}))


def loop_key(task: Task) -> str:
    """Return the key of a loop's final record."""
    return record_key(task, "loops", task.fingerprint)
