"""What a shard costs beyond the work of its stage, and what a run costs in which little is new.

Shards of a stage that copies one row each, on two Ray workers and in this process; and as many
tasks without this package on the same actor pool: Ray's own cost. CPU times are those of this
process and of the workers, without Ray's daemons.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from videoar.contracts.names import SOURCES
from videoar.core.ids import digest_json
from videoar.core.processes import used_cpu_s
from videoar.engine.base import Engine
from videoar.engine.inline import InlineEngine
from videoar.pipeline.context import StageContext
from videoar.pipeline.spec import parse_pipeline
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Output, Port, Shard, StageConfig
from videoar.runner.execute import Execution
from videoar.runner.plan import plan
from videoar.storage.store import open_store

REGISTRY = {"copy": f"{__name__}:Copy"}


class Copy(MapStage[StageConfig]):
    """Copies its rows, one per shard."""

    name = "copy"
    consumes: ClassVar[Mapping[str, Port]] = {"sources": Port(SOURCES)}
    produces = SOURCES
    config_type = StageConfig
    primary = "sources"

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        """Return a shard per row."""
        rows = inputs["sources"].table().to_pylist()
        return [Shard(i, digest_json(row), rows=(row,)) for i, row in enumerate(rows)]

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Return a function that returns its rows."""
        del inputs, context

        def copy(batch: pa.Table) -> Output:
            return Output(batch)

        return copy


class _NoWork:
    """An actor that does nothing; returns the CPU time of its process so far."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"number": batch["number"], "pid": [os.getpid()], "cpu_s": [used_cpu_s()]}


def shard_costs(
    folder: Path, ray: Engine | None, sizes: Sequence[int], workers: int
) -> dict[str, dict[str, float]]:
    """Return milliseconds per shard by number of shards; seconds of the plan and the run after it.

    Args:
        folder: an empty one, for stores.
        ray: an engine that has started Ray; None measures only what runs in this process.
        sizes: numbers of shards.
        workers: of Ray.
    """
    return {f"{n} shards": _costs(folder / str(n), ray, n, workers) for n in sizes}


def _costs(folder: Path, ray: Engine | None, count: int, workers: int) -> dict[str, float]:
    videos = folder / "videos"
    videos.mkdir(parents=True)
    for number in range(count):
        (videos / f"{number:06d}.mp4").touch()
    stage = {"stage": "copy", "from": {"sources": "videos"}, "resources": {"workers": workers}}
    document = {"pipeline": "bench", "inputs": {"videos": str(videos)}, "stages": {"copied": stage}}
    spec = parse_pipeline(document, "bench", REGISTRY)

    def run(engine: Engine) -> float:
        """Return the CPU time of its workers."""
        store = open_store((folder / engine.name).as_uri())
        done = Execution(spec, store, engine, registry=REGISTRY).run()
        return done.stage("copied").usage.cpu_s

    figures: dict[str, float] = {}
    if ray is not None:
        figures |= _each("Ray alone", count, lambda: _no_work(count, workers))
        figures |= _each("on Ray", count, lambda: run(ray))
        for unit in ("ms", "CPU ms"):
            beyond = figures[f"on Ray, {unit} each"] - figures[f"Ray alone, {unit} each"]
            figures[f"beyond Ray, {unit} each"] = round(beyond, 2)
    inline = InlineEngine()
    # its worker is this process: counted once
    figures |= _each("in this process", count, lambda: 0.0 * run(inline))
    store = open_store((folder / inline.name).as_uri())
    figures |= _seconds_of("plan", lambda: plan(spec, store, REGISTRY))
    (videos / "new.mp4").touch()
    figures |= _seconds_of("plan with a new one", lambda: plan(spec, store, REGISTRY))
    figures |= _seconds_of("run with a new one", lambda: run(inline))
    return figures


def _no_work(count: int, workers: int) -> float:
    """Return the CPU time of the workers between their first and their last task."""
    from videoar.engine.ray_map import run_actors

    stage = Copy(StageConfig.model_validate({"resources": {"workers": workers}}))
    # as many bytes as a shard of `Copy`
    rows = [{"number": number, "shard": bytes(600)} for number in range(count)]
    used: dict[int, list[float]] = {}
    for row in run_actors(_NoWork, (), rows, stage):
        used.setdefault(row["pid"], []).append(row["cpu_s"])
    return sum(max(times) - min(times) for times in used.values())


def _each(what: str, count: int, work: Callable[[], float]) -> dict[str, float]:
    seconds, cpu_s = _timed(work)
    return {
        f"{what}, ms each": round(1000 * seconds / count, 2),
        f"{what}, CPU ms each": round(1000 * cpu_s / count, 2),
    }


def _seconds_of(what: str, work: Callable[[], object]) -> dict[str, float]:
    seconds, cpu_s = _timed(lambda: 0.0 * bool(work()))
    return {f"{what}, s": round(seconds, 2), f"{what}, CPU s": round(cpu_s, 2)}


def _timed(work: Callable[[], float]) -> tuple[float, float]:
    """Return seconds and CPU seconds, with those that `work` returns: of other processes."""
    began, cpu_s = time.monotonic(), used_cpu_s()
    elsewhere_s = work()
    return time.monotonic() - began, used_cpu_s() - cpu_s + elsewhere_s
