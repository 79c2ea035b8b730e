"""A stage with many finished shards, to measure a plan and a run in which little is new.

`python -m tests.support.many_shards FOLDER SHARDS [LATENCY_S [URL]]` makes a folder of videos and a
store, unless they are there, adds a source, and prints requests, seconds and CPU seconds of a plan
and of the run after it, at FOLDER/store or at the URL of a copy of it (`videoar store copy`). A
page of a listing counts as one request. Those of delta-rs and of the worker are not counted.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.remote_objects import Counting
from videoar.bench import shards
from videoar.core.processes import used_cpu_s
from videoar.core.settings import settings
from videoar.engine.inline import InlineEngine
from videoar.pipeline.spec import PipelineSpec, parse_pipeline
from videoar.records.run import Run
from videoar.runner.execute import Execution
from videoar.runner.plan import StagePlan, plan
from videoar.storage.store import Store, open_store

REGISTRY = {"copy": f"{__name__.replace('__main__', 'tests.support.many_shards')}:Copy"}


class Copy(shards.Copy):
    """Here, so that no change of the package makes its shards new."""


class Wait(Counting):
    """Counts and delays the requests to a store, which stays as local as it is."""

    def __init__(self, objects, request_s: float = 0.0) -> None:
        super().__init__(objects, request_s)
        self.is_local = objects.is_local and not request_s


def add(videos: Path, count: int) -> None:
    """Add sources, a shard each."""
    videos.mkdir(parents=True, exist_ok=True)
    first = len(list(videos.iterdir()))
    for number in range(first, first + count):
        (videos / f"{number:06d}.mp4").touch()


def spec_of(videos: Path) -> PipelineSpec:
    stage = {"stage": "copy", "from": {"sources": "videos"}}
    document = {"pipeline": "p", "inputs": {"videos": str(videos)}, "stages": {"copied": stage}}
    return parse_pipeline(document, "p", REGISTRY)


def run(videos: Path, store: Store) -> Run:
    return Execution(spec_of(videos), store, InlineEngine(), registry=REGISTRY).run()


def plan_of(videos: Path, store: Store) -> StagePlan:
    (copied,) = plan(spec_of(videos), store, REGISTRY)
    return copied


def measure(name: str, verb: Callable[[Path, Store], object], videos: Path, store: Store) -> None:
    counting = store.objects
    began, cpu_s, before = time.monotonic(), used_cpu_s(), counting.requests
    verb(videos, store)
    seconds, cpu_s = time.monotonic() - began, used_cpu_s() - cpu_s
    used = f"{counting.requests - before:,} requests, {seconds:.2f} s, {cpu_s:.2f} CPU-s"
    print(f"{name:5} {used}", flush=True)


if __name__ == "__main__":
    folder, number = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    latency_s = float(sys.argv[3]) if sys.argv[3:] else 0.0
    url = sys.argv[4] if sys.argv[4:] else (folder / "store").as_uri()
    if not (folder / "videos").exists():
        add(folder / "videos", number)
        run(folder / "videos", open_store((folder / "store").as_uri()))
    add(folder / "videos", 1)
    objects = open_store(url, endpoint=settings().s3_endpoint).objects
    warm, store = Store(objects, settings().s3_endpoint), Wait(objects, latency_s)
    plan_of(folder / "videos", warm)  # imports, and the code of the stage
    measure("plan", plan_of, folder / "videos", Store(store, settings().s3_endpoint))
    measure("run", run, folder / "videos", Store(store, settings().s3_endpoint))
