"""A stage run by value, and the record that every piece of its work ends in.

A task names everything by value (store URL, stage type, options, snapshot ids), so it is sent to
another process as a few kilobytes; payloads stay in the store. Each piece of work (a shard, a
reduction, a loop) ends in one create-once record of the ledger. When two workers run the same piece
of work, the loser of the race adopts the winner's record: a shard may run twice, on two machines,
and counts once.
"""

import errno
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from socket import gethostname
from typing import Any

from pydantic import Field

from videoar.contracts.names import REJECTS
from videoar.core.crash_points import crash_point
from videoar.core.errors import (
    DiskError,
    OutOfMemoryError,
    StageError,
    StorageError,
    VideoARError,
)
from videoar.core.processes import peak_gib, used_cpu_s
from videoar.core.settings import share_cores
from videoar.core.types import FileRef, Stored
from videoar.pipeline.fingerprint import FingerprintParts, fingerprint
from videoar.pipeline.registry import BUILTIN, Registry, make_stage
from videoar.pipeline.stage import Inputs, Output
from videoar.storage.collection import CollectionWatch
from videoar.storage.layout import rejects_dataset
from videoar.storage.references import objects_of, recorded_files
from videoar.storage.store import Store, open_store

_OF_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE}
_LESS = "take smaller batches, or give each worker more memory: resources.memory_gib"


class Usage(Stored):
    """What work used, in the processes of workers and ranks; those of clip readers do not count."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0
    """Seconds, times the GPUs of the worker: what it held, not how busy it was."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(cpu_s=self.cpu_s + other.cpu_s, gpu_s=self.gpu_s + other.gpu_s)


class UsageMeter:
    """Measures this process from one piece of work to the next.

    What each of several concurrent shards used is not known; their sum is.
    """

    def __init__(self, gpus: float) -> None:
        self._gpus, self._lock = gpus, threading.Lock()
        self._since = used_cpu_s(), time.monotonic()

    def read(self) -> Usage:
        """Return what was used since the last call."""
        with self._lock:
            (cpu_s, began), self._since = self._since, (used_cpu_s(), time.monotonic())
            used_s, elapsed_s = self._since[0] - cpu_s, self._since[1] - began
        return Usage(cpu_s=round(used_s, 3), gpu_s=round(elapsed_s * self._gpus, 3))


class WorkRecord(Stored):
    """Output of a shard, a loop or a reduction: files that no commit names yet."""

    files: tuple[FileRef, ...] = ()
    rejects: tuple[FileRef, ...] = ()
    rows_in: int = 0
    rows_out: int = 0
    rows_rejected: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    usage: Usage = Usage()

    @property
    def all_files(self) -> tuple[FileRef, ...]:
        """Files of rows and of rejects."""
        return self.files + self.rejects


@dataclass(frozen=True)
class StageTask:
    """One stage run, by value: safe to pickle, a few kilobytes."""

    run_id: str
    dataset: str
    stage_type: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Port to snapshot id."""
    fingerprint_parts: FingerprintParts
    store_url: str
    store_endpoint: str = ""
    # a dict cannot be the default of a dataclass field
    registry: Registry = field(default_factory=lambda: BUILTIN)

    @property
    def fingerprint(self) -> str:
        """Digest of everything that the output depends on."""
        return fingerprint(self.fingerprint_parts)

    def open_store(self) -> Store:
        """Open the store in this process."""
        return open_store(self.store_url, endpoint=self.store_endpoint)

    def make_stage(self) -> Any:  # noqa: ANN401 - one of the three shapes, depending on the stage type
        """Build the stage in this process, before its worker imports torch."""
        share_cores()
        return make_stage(self.stage_type, self.config, self.registry)

    def open_inputs(self, store: Store) -> Inputs:
        """Open the input snapshots in this process."""
        return {port: store.snapshot(snapshot) for port, snapshot in self.inputs.items()}


def find_record(store: Store, key: str) -> WorkRecord | None:
    """Return the record under a key, None if that work was not done before."""
    existing = store.ledger.read(key)
    return WorkRecord.model_validate(existing) if existing is not None else None


def publish_record(
    store: Store, key: str, record: WorkRecord, watch: CollectionWatch
) -> WorkRecord:
    """Create the record; return the existing one if another worker created it first.

    Args:
        store: where.
        key: of the record.
        record: the work.
        watch: made before the first of its files was written.

    Raises:
        TransientStorageError: a file was deleted as garbage; there is no record.
    """
    stored = store.ledger.create_or_adopt(key, record.model_dump(mode="json"))
    crash_point("record-published")

    def keys() -> Iterator[str]:
        for named in recorded_files(key, stored):
            yield named.file.key
            yield from (found.key for found in objects_of(store.objects, named))

    try:
        watch.require_all(key, keys)
    except StorageError:
        store.objects.delete(key)  # another attempt would adopt it
        raise
    return WorkRecord.model_validate(stored)


def write_output(task: StageTask, store: Store, produces: str, output: Output) -> WorkRecord:
    """Write an output's rows and rejects as files; not visible to readers before the commit."""
    files, rejects = [], []
    num_rejected = output.rejects.num_rows if output.rejects is not None else 0
    # no empty files: the next stage would run a shard for each
    if output.rows.num_rows:
        files.append(store.dataset(task.dataset, produces).write(output.rows))
    if output.rejects is not None and num_rejected:
        rejects.append(store.dataset(rejects_dataset(task.dataset), REJECTS).write(output.rejects))
    return WorkRecord(
        files=tuple(files),
        rejects=tuple(rejects),
        rows_out=output.rows.num_rows,
        rows_rejected=num_rejected,
        metrics=dict(output.metrics),
    )


def merge(records: list[WorkRecord]) -> WorkRecord:
    """Add up records: counts and metrics are summed, files are concatenated in order."""
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
        usage=sum((record.usage for record in records), Usage()),
    )


@contextmanager
def engine_boundary(task: StageTask, where: str) -> Iterator[None]:
    """Name the stage, the place and the run in any other exception than this package's own.

    Raises:
        OutOfMemoryError: there was too little memory, on the host or a GPU.
        DiskError: a disk of this host is full or fails.
        StageError: the code of the stage raised another exception.
    """
    try:
        yield
    except VideoARError:
        raise
    except Exception as error:
        place, text = f"stage {task.dataset}, {where}", f"{type(error).__name__}: {error}"
        # torch's own of a GPU has the name, and is no MemoryError
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            text += f" (this process had {peak_gib():.1f} GiB at most)"
            raise OutOfMemoryError(place, text, _LESS) from error
        if isinstance(error, OSError) and error.errno in _OF_DISK:
            hint = f"look at the disks of {gethostname()}"
            raise DiskError(place, text, hint) from error
        raise StageError(place, text, f"see videoar logs {task.run_id}") from error
