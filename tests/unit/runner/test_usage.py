"""What a run used: CPU-seconds of its own work, GPU-seconds where workers have GPUs."""

import time

import pytest

from tests.support.toy_runs import execute, toy_document, write_videos
from videoar.pipeline.work.progress import clear_progress, rank_usage
from videoar.pipeline.work.task import Usage
from videoar.storage.layout import rank_usage_key
from videoar.storage.store import Store

STAGES = {"mapping-a.mp4": "big", "picking": "few", "counting-3": "model"}


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        sum(range(1000))


@pytest.mark.slow
def test_stages_of_all_shapes_have_what_they_used(store: Store, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.support.toys.crash_point", lambda name: name in STAGES and burn(0.3))
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4")
    document = toy_document(videos, few={"resources": {"gpus": 2}})
    run = execute(store, document)
    for name in STAGES.values():
        stage = run.stage(name)
        assert 0.3 <= stage.usage.cpu_s < stage.seconds + 1, name
    assert run.stage("big").usage.gpu_s == 0
    few = run.stage("few")
    assert 2 * 0.3 <= few.usage.gpu_s < 2 * few.seconds
    again = execute(store, document)
    assert {stage.usage for stage in again.stages} == {Usage()}


def test_other_ranks_count_until_the_next_attempt(store: Store):
    for index in (1, 2):
        usage = Usage(cpu_s=index, gpu_s=10)
        store.objects.put(rank_usage_key("r", "model", index), usage.model_dump_json().encode())
    assert sum(rank_usage(store, "r", "model"), Usage(cpu_s=5)) == Usage(cpu_s=8, gpu_s=20)
    assert not list(rank_usage(store, "r", "model2"))
    clear_progress(store, "r", "model")
    assert not list(rank_usage(store, "r", "model"))
