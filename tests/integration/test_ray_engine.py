"""The Ray engine on a real local Ray keeps the inline engine's promises, with equal results."""

from pathlib import Path

import pytest

from tests.toys import REGISTRY
from tests.unit.runner.test_execute import document, execute
from videoar.core.errors import StageError
from videoar.engine.ray_engine import RayEngine
from videoar.pipeline.spec import parse_pipeline
from videoar.runner.execute import Execution
from videoar.storage.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def engine():
    engine = RayEngine("local")
    yield engine
    engine.close()


def make_videos(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.mp4").write_bytes(b"x" * 10)
    return folder


def run_on_ray(store, doc, engine):
    return Execution(parse_pipeline(doc, "t", REGISTRY), store, engine, registry=REGISTRY).run()


def test_same_snapshots_as_inline(tmp_path: Path, engine: RayEngine):
    videos = make_videos(tmp_path / "videos", "a", "b", "c", "bad")
    inline = execute(open_store((tmp_path / "one").as_uri()), document(videos))
    doc = document(videos, big={"resources": {"workers": 2, "cpus": 0.5}})
    on_ray = run_on_ray(open_store((tmp_path / "two").as_uri()), doc, engine)
    assert on_ray.outputs == inline.outputs
    assert on_ray.stage("big").rows == inline.stage("big").rows


def test_an_error_comes_back_as_ours_with_its_shard(tmp_path: Path, engine: RayEngine):
    videos = make_videos(tmp_path / "videos", "a", "explode")
    with pytest.raises(StageError, match="shard 1: ValueError: boom"):
        run_on_ray(open_store((tmp_path / "one").as_uri()), document(videos), engine)
