"""The Ray engine on a local Ray gives the results of the in-process engine."""

import contextlib
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray

from tests.support import feature_runs, token_runs
from tests.support.clip_rows import clip_row, clips_of
from tests.support.toy_runs import execute, toy_document, write_videos
from tests.support.toys import REGISTRY
from videoar.core.errors import ConfigError, StageError
from videoar.core.types import Resources
from videoar.engine import ray_engine
from videoar.engine.inline import InlineEngine
from videoar.engine.ray_engine import RayEngine
from videoar.engine.ray_session import connect, environment
from videoar.pipeline.spec import parse_pipeline
from videoar.pipeline.work.progress import read_progress
from videoar.records.run import RowCounts
from videoar.runner.execute import Execution
from videoar.runner.monitor import Monitor
from videoar.storage.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def engine():
    engine = RayEngine("local")
    yield engine
    engine.close()


def run_on_ray(store, doc, engine):
    return Execution(parse_pipeline(doc, "t", REGISTRY), store, engine, registry=REGISTRY).run()


def test_stages_on_ray_are_logged_while_they_run_and_have_what_they_used(
    tmp_path: Path, engine: RayEngine, caplog
):
    store = open_store((tmp_path / "store").as_uri())
    spec = parse_pipeline(toy_document(write_videos(tmp_path / "v", "a.mp4")), "t", REGISTRY)
    execution = Execution(spec, store, engine, registry=REGISTRY)
    with caplog.at_level(logging.INFO, "videoar"), Monitor(execution, every_s=0.02):
        run = execution.run()
    progress, curve = read_progress(store, run.run_id, "model")
    assert (progress.step, curve) == (6, [{"step": 6, "loss": 1 / 6}])
    assert str(read_progress(store, run.run_id, "big")[0]).startswith("shard 1 of 1")
    assert "running for" in caplog.text
    for name in ("big", "model"):  # `few` takes less than what can be measured
        assert run.stage(name).usage.cpu_s > 0, name


def test_run_on_ray_gives_the_snapshots_of_an_inline_run(tmp_path: Path, engine: RayEngine):
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4", "bad.mp4")
    inline = execute(open_store((tmp_path / "one").as_uri()), toy_document(videos))
    doc = toy_document(videos, big={"resources": {"workers": 2, "cpus": 0.5}})
    on_ray = run_on_ray(open_store((tmp_path / "two").as_uri()), doc, engine)
    assert on_ray.outputs == inline.outputs
    assert on_ray.stage("big").rows == inline.stage("big").rows


def test_error_in_a_worker_is_a_stage_error_with_its_shard(tmp_path: Path, engine: RayEngine):
    videos = write_videos(tmp_path / "videos", "a.mp4", "explode.mp4")
    with pytest.raises(StageError, match="shard 1: ValueError: boom"):
        run_on_ray(open_store((tmp_path / "one").as_uri()), toy_document(videos), engine)


@pytest.mark.parametrize(
    ("stage", "resources", "what"),
    [
        ("big", {"gpus": 1}, "stages.big.resources.gpus: needs 1 at once.* has 0"),
        ("big", {"cpus": 4096}, "stages.big.resources.cpus: needs 4096"),
        ("big", {"readers": 2, "workers": 100}, "stages.big.resources.cpus: needs 300"),
        ("model", {"cpus": 3, "workers": 1000}, "stages.model.resources.cpus: needs 3000"),
    ],
)
def test_resources_beyond_the_machine_are_an_error_before_any_work(
    tmp_path: Path, engine: RayEngine, stage: str, resources: dict, what: str
):
    doc = toy_document(
        write_videos(tmp_path / "videos", "a.mp4"), **{stage: {"resources": resources}}
    )
    with pytest.raises(ConfigError, match=what):
        run_on_ray(open_store((tmp_path / "one").as_uri()), doc, engine)


def test_worker_without_a_reserved_gpu_sees_none(engine: RayEngine, monkeypatch):
    connect("local")
    assert environment(Resources()) == {}
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4, "GPU": 2})
    assert environment(Resources(gpus=1)) == {}
    seen = ray.remote(num_cpus=0.5, runtime_env=environment(Resources()))(os.getenv)
    assert ray.get(seen.remote("CUDA_VISIBLE_DEVICES")) == ""


@pytest.mark.fault(1, "SIGKILL of a rank of a training")
def test_ranks_restart_after_a_killed_rank_and_not_after_a_config_error(
    tmp_path: Path, engine: RayEngine
):
    store, videos = (
        open_store((tmp_path / "store").as_uri()),
        write_videos(tmp_path / "videos", "a.mp4"),
    )
    stage = {"stage": "gang", "from": {"sources": "videos"}}
    stage["resources"] = {"workers": 2, "cpus": 0.5}
    document = {"pipeline": "p", "inputs": {"videos": str(videos)}, "stages": {"gang": stage}}
    on_interrupt = signal.getsignal(signal.SIGINT)
    with pytest.raises(ConfigError, match="gang: adds up to 3"):
        run_on_ray(store, document, engine)
    assert signal.getsignal(signal.SIGINT) is on_interrupt  # not that of Ray Train
    attempts = [store.ledger.length(f"attempts/{rank}") for rank in range(2)]
    # the other rank may be ended with it before it has begun
    assert attempts in ([1, 2], [2, 2])


def test_reduction_computes_its_dask_graphs_on_ray_with_equal_results(
    tmp_path: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_engine, "_SMALL", 0)  # few rows are reduced without Ray
    same = clip_row("best")["phash"]
    files = [
        [clip_row("best"), clip_row("worse", phash=same, src_width_px=200)],
        [clip_row("c", phash=same)],
    ]
    outputs = []
    for runner in (InlineEngine(), engine):
        store = open_store((tmp_path / runner.name).as_uri())
        clips = clips_of(store, *files)
        document = {
            "pipeline": "p",
            "inputs": {"clips": f"snapshot://{clips.id}"},
            "stages": {
                "profile": {"stage": "profile", "from": {"clips": "clips"}},
                "good": {
                    "stage": "filter",
                    "from": {"clips": "clips", "profile": "profile"},
                    "override": {"min_motion_per_s": "p00", "min_blur": "p00"},
                },
            },
        }
        outputs.append(Execution(parse_pipeline(document, "t"), store, runner).run())
    inline, on_ray = outputs
    assert on_ray.outputs == inline.outputs
    assert (
        on_ray.stage("good").rows
        == inline.stage("good").rows
        == RowCounts(in_=3, out=1, rejected=2)
    )


def with_resources(document: dict, **resources) -> dict:
    """Return the document with its stage's resources; they change no fingerprint."""
    ((name, stage),) = document["stages"].items()
    return document | {"stages": {name: stage | {"resources": {"cpus": 0.5, **resources}}}}


@pytest.fixture(scope="module")
def tokens_inline(tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("inline").as_uri())
    return token_runs.execute(store, token_runs.prepare(store, 4, 40)).outputs


def test_two_concurrent_shards_in_a_worker_give_the_same_tokens(
    tmp_path: Path, engine: RayEngine, tokens_inline: dict
):
    store = open_store(tmp_path.as_uri())
    run = token_runs.execute(store, with_resources(token_runs.prepare(store, 4, 40)), engine)
    assert run.outputs == tokens_inline
    assert run.stage("tokens").metrics["accelerator_items"] == 160


@pytest.mark.fault(1, "SIGKILL of clip readers and workers")
def test_killed_readers_and_workers_do_not_change_the_tokens(
    tmp_path: Path, engine: RayEngine, tokens_inline: dict
):
    store = open_store(tmp_path.as_uri())
    document = with_resources(token_runs.prepare(store, 4, 40), readers=2)
    killed = []
    titles = ("ray::Reader.read", "ray::MapWorker")
    killer = threading.Thread(target=kill_each_once, args=(killed, titles, tmp_path))
    killer.start()
    run = token_runs.execute(store, document, engine)
    killer.join(60)
    assert killed == ["ray::Reader.read", "ray::MapWorker"]
    assert run.outputs == tokens_inline


@pytest.fixture(scope="module")
def features_inline(tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("inline").as_uri())
    return token_runs.execute(store, feature_runs.prepare(store, 8, 4)).outputs


@pytest.mark.fault(26, "1, 2 and 4 workers")
@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_features(
    tmp_path: Path, engine: RayEngine, features_inline: dict, workers: int
):
    store = open_store(tmp_path.as_uri())
    document = with_resources(feature_runs.prepare(store, 8, 4), workers=workers)
    assert token_runs.execute(store, document, engine).outputs == features_inline


@pytest.mark.fault(1, "SIGKILL of a Ray worker in a map stage")
def test_killed_worker_does_not_change_the_features(
    tmp_path: Path, engine: RayEngine, features_inline: dict
):
    store = open_store(tmp_path.as_uri())
    document = with_resources(feature_runs.prepare(store, 8, 4), workers=2)
    killed = []
    titles = ("ray::MapWorker",)
    killer = threading.Thread(target=kill_each_once, args=(killed, titles, tmp_path))
    killer.start()
    run = token_runs.execute(store, document, engine)
    killer.join(60)
    assert killed == ["ray::MapWorker"]
    assert run.outputs == features_inline


def test_scores_are_those_of_the_inline_engine(tmp_path: Path, engine: RayEngine):
    inline, ray = (open_store((tmp_path / name).as_uri()) for name in ("inline", "ray"))
    expected = token_runs.execute(inline, feature_runs.scored(inline)).outputs
    document = feature_runs.scored(ray, workers=2)
    assert token_runs.execute(ray, document, engine).outputs == expected
    rows = ray.snapshot(expected["scores"]).table().to_pylist()
    assert {"frechet_lite0", "proxy/exposure"} <= {r["metric"] for r in rows if r["status"] == "ok"}


def kill_each_once(killed: list, titles: tuple, store: Path) -> None:
    """Kill a process of each title in turn; a worker after the first finished shard."""
    deadline = time.monotonic() + 100
    while len(killed) < len(titles) and time.monotonic() < deadline:
        title = titles[len(killed)]
        if title != "ray::MapWorker" or list((store / "stages").glob("*/shards/**/*.json")):
            killed += kill_one(title)
        time.sleep(0.005)


def kill_one(title: str) -> list[str]:
    """Kill a process by its title; Ray's workers are grandchildren of this process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            is_one = (folder / "cmdline").read_text().startswith(title)
            if is_one and parent(parent(int(folder.name))) == os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)
                return [title]
    return []


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
