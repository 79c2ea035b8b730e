"""What benchmarks put into a store: rows of their own, and runs of stages."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from videoar.contracts.names import MODELS
from videoar.core.types import Json, Provenance
from videoar.engine.base import Engine, ShardDone, Waits, waits_unseen
from videoar.engine.inline import InlineEngine
from videoar.evaluation.extractor import Clip
from videoar.media.clip_reader import ClipReader
from videoar.pipeline.spec import parse_pipeline
from videoar.pipeline.stage import Shard
from videoar.pipeline.work.task import StageTask, WorkRecord
from videoar.records.run import Run
from videoar.runner.execute import Execution
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

if TYPE_CHECKING:
    from videoar.model.tokenizer.network import VideoTokenizer
    from videoar.model.transformer.network import VideoAR


def commit(store: Store, name: str, contract: str, tables: Iterable[pa.Table]) -> Snapshot:
    """Commit rows as a data set, a file per table."""
    dataset = store.dataset(name, contract)
    made_by = Provenance(
        run_id="bench", pipeline="bench", stage=name, fingerprint="drawn", code_version=""
    )
    return dataset.commit([dataset.write(table) for table in tables], made_by, {})


def commit_tokenizer(store: Store, net: "VideoTokenizer") -> Snapshot:
    """Publish a tokenizer in a store."""
    from videoar.training.model_store import publish_model

    rows = publish_model(net, store, weights=net.state_dict(), step=0, metrics={}, history=[])
    return commit(store, "tokenizer", MODELS, [rows])


def commit_model(store: Store, net: "VideoAR", tokenizer: "VideoTokenizer") -> Snapshot:
    """Publish a transformer, and its tokenizer, for clips of 17 frames at 8 per second."""
    from videoar.training.model_store import ClipShape, publish_model

    (digest,) = commit_tokenizer(store, tokenizer).table(["digest"])["digest"].to_pylist()
    row = publish_model(
        net, store, weights=net.state_dict(), step=0, metrics={}, history=[],
        tokenizer_digest=digest, clips=ClipShape(8.0, 17),
    )  # fmt: skip
    return commit(store, "model", MODELS, [row])


def ingested(store: Store, sources: str, **options: Json) -> Snapshot:
    """Return the clips of a folder of videos, or of another input of `ingest`, in one process."""
    run = run_stages(store, {"sources": sources}, {"clips": {"stage": "ingest", **options}})
    return store.snapshot(run.outputs["clips"])


def decoded(store: Store, clips: Snapshot) -> list[Clip]:
    """Return clips in memory, in the order of their rows."""
    read = ClipReader(store.objects)
    rows = clips.table().to_pylist()
    return [Clip(row["clip_id"], read(row), row["rate_fps"], "") for row in rows]


class TimedEngine:
    """An engine that records when each shard ends."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        # not monotonic(): times of several processes are compared, and its zero is undefined
        self._engine, self._clock = engine, clock
        self.name, self.done_s = engine.name, list[float]()
        self.waits: Waits = waits_unseen

    def map(self, task: StageTask, shards: Sequence[Shard], done: ShardDone) -> None:
        """Run the shards; record the time of each."""

        def record_time(shard: Shard, record: WorkRecord) -> None:
            self.done_s.append(self._clock())
            done(shard, record)

        self._engine.map(task, shards, record_time)

    def map_isolated(self, task: StageTask, shard: Shard, done: ShardDone) -> None:
        """Run a shard by itself."""
        self._engine.map_isolated(task, shard, done)

    def loop(self, task: StageTask) -> WorkRecord:
        """Run the loop."""
        return self._engine.loop(task)

    def reduce(self, task: StageTask) -> WorkRecord:
        """Run the reduction."""
        return self._engine.reduce(task)

    def close(self) -> None:
        """Do nothing: the engine is used by several runs."""


def run_stages(
    store: Store,
    inputs: Mapping[str, str | Snapshot],
    stages: Mapping[str, dict[str, Any]],
    engine: Engine | None = None,
) -> Run:
    """Run stages on inputs, in this process by default; equal stages of earlier runs are reused.

    Args:
        store: where.
        inputs: URLs or snapshots by name, the port that a stage without `from` reads them at.
        stages: as in a pipeline file.
        engine: what runs the stages.
    """
    document = {
        "pipeline": "bench",
        "inputs": {k: v if isinstance(v, str) else f"snapshot://{v.id}" for k, v in inputs.items()},
        "stages": {k: {"from": {port: port for port in inputs}, **v} for k, v in stages.items()},
    }
    return Execution(parse_pipeline(document, "bench"), store, engine or InlineEngine()).run()
