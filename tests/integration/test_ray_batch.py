"""Batch generation on replicas of Ray Serve: the samples of one process, whatever dies."""

import contextlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.support.published_model import digest_of, published, transformer
from tests.support.toy_runs import write_videos
from tests.support.toys import REGISTRY
from videoar.core.errors import ConfigError
from videoar.engine.inline import InlineEngine
from videoar.engine.ray_engine import RayEngine
from videoar.pipeline.spec import parse_pipeline
from videoar.runner.execute import Execution
from videoar.storage.store import open_store
from videoar.training.model_store import ClipShape

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def engine():
    engine = RayEngine("local")
    yield engine
    engine.close()


def run(store, engine, prompts, model, **options):
    stage = {
        "stage": "generate", "from": {"model": "model"}, "prompts": str(prompts),
        "num_frames": 9, "shard_samples": 4, **options,
    }  # fmt: skip
    document = {
        "pipeline": "p",
        "inputs": {"model": f"snapshot://{model}"},
        "stages": {"samples": stage},
    }
    return Execution(parse_pipeline(document, "p.yaml"), store, engine).run()


def test_elastic_replicas_of_which_one_is_killed_give_the_samples_of_one_process(
    tmp_path: Path, engine: RayEngine
):
    torch.set_num_threads(1)
    store = open_store((tmp_path / "inline").as_uri())
    parents = published(store).commit.provenance.parents
    coder = digest_of(store.snapshot(parents["tokenizer"]))
    model = transformer(store, coder, "rated", parents, clips=ClipShape(8.0, 9)).id
    other = open_store(shutil.copytree(tmp_path / "inline", tmp_path / "ray").as_uri())
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"take {i}\n" for i in range(64)))
    killed, replicas, is_over = [], set(), threading.Event()
    watcher = threading.Thread(target=watch, args=(tmp_path / "ray", killed, replicas, is_over))
    watcher.start()
    try:
        resources = {"workers": [1, 2], "cpus": 0.5}
        on_ray = run(other, engine, prompts, model, resources=resources)
    finally:
        is_over.set()
        watcher.join()
    assert len(killed) == 1
    assert len(replicas) >= 2
    assert on_ray.outputs == run(store, InlineEngine(), prompts, model).outputs
    with pytest.raises(ConfigError, match="generate: 2 temperatures for 3 scales"):
        run(other, engine, prompts, model, temperature=[1, 1])


def watch(store: Path, killed: list, replicas: set, is_over: threading.Event) -> None:
    """Note the replicas of this process's Ray; kill one after the first finished shard."""
    while not is_over.wait(0.02):
        found = set(processes("ray::ServeReplica"))
        replicas |= found
        if not killed and found and list((store / "stages/samples/shards").rglob("*.json")):
            killed += [min(found)]
            os.kill(killed[0], signal.SIGKILL)


def processes(title: str):
    """Yield processes by title; Ray's workers are grandchildren of this process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            is_one = (folder / "cmdline").read_text().startswith(title)
            if is_one and parent(parent(int(folder.name))) == os.getpid():
                yield int(folder.name)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class _InterruptingEngine(RayEngine):
    """Is interrupted after the first finished shard, as by ctrl-C."""

    def map(self, task, shards, done):
        def interrupt(*_):
            raise KeyboardInterrupt

        super().map(task, shards, interrupt)


def test_interrupted_batch_ends_soon(tmp_path: Path, engine: RayEngine):
    videos = write_videos(tmp_path / "videos", *(f"{i}.mp4" for i in range(40)))
    document = {
        "pipeline": "p",
        "inputs": {"videos": str(videos)},
        "stages": {"served": {"stage": "served", "from": {"sources": "videos"}}},
    }
    store, spec = open_store((tmp_path / "s").as_uri()), parse_pipeline(document, "t", REGISTRY)
    with pytest.raises(KeyboardInterrupt):
        Execution(spec, store, _InterruptingEngine("local"), registry=REGISTRY).run()
    start = time.monotonic()
    run = Execution(spec, store, engine, registry=REGISTRY).run()
    assert run.stage("served").shards.cached >= 1
    assert time.monotonic() - start < 60
