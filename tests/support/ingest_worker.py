"""One of several worker processes that ingest into one store, and its commit.

A separate module, so that a fork server imports it once for all workers.
"""

from collections.abc import Sequence

from tests.support.child_process import preload, start
from videoar.contracts.names import REJECTS
from videoar.core.crash_points import crash_point
from videoar.core.types import Provenance
from videoar.pipeline.fingerprint import compute_parts
from videoar.pipeline.work.shard import ShardWorker
from videoar.pipeline.work.task import StageTask, merge
from videoar.stages.ingest.config import IngestConfig
from videoar.stages.ingest.stage import IngestStage

preload(__name__)
for _late in ("sandbox", "sources", "transcode"):  # stages import them at first use
    preload(f"videoar.media.{_late}")


def make_task(store, snapshot, **options):
    stage = IngestStage(IngestConfig(**options))
    return StageTask(
        run_id="run",
        dataset="clips",
        stage_type="ingest",
        config=stage.config.model_dump(mode="json"),
        inputs={"sources": snapshot.id},
        fingerprint_parts=compute_parts(stage, {"sources": snapshot}),
        store_url=store.url,
    )


def work(task: StageTask, position: float) -> None:
    """Run all shards from a position (0 to 1) of their list, then commit like the runner."""
    worker = ShardWorker(task)
    shards = list(worker.stage.shards(worker.inputs))
    first = int(position * len(shards))
    for shard in (*shards[first:], *shards[:first]):
        worker(shard)
    record = merge([worker(shard) for shard in shards])
    crash_point("before-commit")
    provenance = Provenance(
        run_id=task.run_id, pipeline="test", stage="clips", fingerprint=task.fingerprint,
        code_version="test",
    )  # fmt: skip
    rejected = worker.store.dataset("clips.rejects", REJECTS)
    rejects = rejected.commit(record.rejects, provenance, {}).id
    crash_point("rejects-committed")
    dataset = worker.store.dataset("clips", "clips@1")
    dataset.commit(record.files, provenance, record.metrics, rejects)
    crash_point("committed")


def run_workers(task: StageTask, places: Sequence[float], crash_at: str = "") -> list[int | None]:
    """Run workers concurrently, every second one with a crash point; return their exit codes."""
    processes = [
        start(work, task, place, VIDEOAR_CRASH_AT="" if i % 2 else crash_at)
        for i, place in enumerate(places)
    ]
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]
