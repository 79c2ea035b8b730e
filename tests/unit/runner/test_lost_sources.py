"""Clips that stayed in their sources, and a source that changes or goes before the next stage."""

from pathlib import Path

import pytest

from tests.support import tiny_models
from tests.support.loop_rank import commit
from tests.support.small_videos import document, draw, run, sha
from videoar.api import quarantine
from videoar.core.errors import StageError
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.pipeline.context import StageContext
from videoar.stages.annotate.config import CaptionConfig
from videoar.stages.annotate.stage import CaptionStage
from videoar.storage.store import Store
from videoar.training.model_store import publish_model

pytestmark = pytest.mark.slow
NAMES = ("a.mp4", "b.mp4", "c.mp4")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    for seed, name in enumerate(NAMES):
        draw(tmp_path / "videos" / name, seed)
    return tmp_path / "videos"


def referenced(store: Store, videos: Path, stages: dict, **inputs: str) -> dict:
    """Ingest by reference; return a pipeline that goes on from exactly that listing."""
    doc = document(videos, per_shard=100)
    doc["stages"] = {"clips": {**doc["stages"]["clips"], "keep": "references"}}
    made = run(store, doc)
    doc["inputs"] = {"videos": f"snapshot://{made.stages[0].inputs['sources']}", **inputs}
    doc["stages"] |= stages
    return doc


def tokenized(store: Store, videos: Path) -> dict:
    net = VideoTokenizer(TOKENIZERS["tiny"])
    rows = publish_model(net, store, weights=net.state_dict(), step=1, metrics={}, history=[])
    model = commit(store, "model", "models@1", rows)
    tokens = {"stage": "tokenize", "from": {"clips": "clips", "tokenizer": "model"}}
    tokens |= {"batch_clips": 2}
    return referenced(store, videos, {"tokens": tokens}, model=f"snapshot://{model.id}")


def spoil(videos: Path) -> dict[str, str]:
    """Change one source, take another one away; return the SHA-256 that each had."""
    before = {name: sha(videos / name) for name in NAMES}
    draw(videos / "a.mp4", 7)
    (videos / "b.mp4").unlink()
    return before


def refused(store: Store, videos: Path) -> dict[str, dict]:
    rows = quarantine(store, None)["rows"]
    return {row["uri"].removeprefix(videos.as_uri() + "/"): row for row in rows}


def test_tokenize_rejects_clips_of_changed_and_missing_sources(store: Store, videos: Path):
    doc = tokenized(store, videos)
    before = spoil(videos)
    made = run(store, doc)
    rows = made.stage("tokens").rows
    assert (rows.in_, rows.out, rows.rejected) == (3, 1, 2)
    tokens = store.snapshot(made.outputs["tokens"])
    assert tokens.table(["source_id"])["source_id"].to_pylist() == [before["c.mp4"]]
    found = refused(store, videos)
    assert set(found) == {"a.mp4", "b.mp4"}
    assert "has changed, its SHA-256 was" in found["a.mp4"]["detail"]
    assert "No such file" in found["b.mp4"]["detail"]
    for row in found.values():
        assert (row["kind"], row["stage"]) == ("clip", "tokenize")
        assert row["reasons"] == ["IO_PERMANENT"]
    ids = store.snapshot(made.outputs["tokens"]).rejects().table(["source_id"])["source_id"]
    assert set(ids.to_pylist()) == {before["a.mp4"], before["b.mp4"]}


def test_stage_without_a_readable_source_fails_and_is_not_cached(store: Store, videos: Path):
    doc = tokenized(store, videos)
    videos.rename(videos.with_name("unmounted"))
    with pytest.raises(StageError, match=r"tokens: all of its 3 rows .* IO_PERMANENT: file://.*No"):
        run(store, doc)
    videos.with_name("unmounted").rename(videos)
    assert run(store, doc).stage("tokens").rows.out == 3


def test_embed_and_caption_reject_clips_of_changed_and_missing_sources(
    store: Store, videos: Path, tmp_path: Path
):
    stage = {"stage": "embed", "from": {"clips": "clips"}, "batch_clips": 2, "num_frames": 2}
    doc = referenced(store, videos, {
        "vectors": {**stage, "model": tiny_models.dinov2(tmp_path / "dino")},
    })  # fmt: skip
    before = spoil(videos)
    made = run(store, doc)
    rows = made.stage("vectors").rows
    assert (rows.in_, rows.out, rows.rejected) == (3, 1, 2)
    assert {row["stage"] for row in refused(store, videos).values()} == {"embed"}

    clips = store.snapshot(made.outputs["clips"])
    config = CaptionConfig(model=tiny_models.llava(tmp_path / "llava"), batch_clips=2)
    output = CaptionStage(config).open({"clips": clips}, StageContext(store))(clips.table())
    (kept,) = output.rows.to_pylist()
    assert kept["source_id"] == before["c.mp4"]
    assert {row["source_id"] for row in output.rejects.to_pylist()} == {
        before["a.mp4"], before["b.mp4"],
    }  # fmt: skip
    assert output.metrics["captions_made"] + output.metrics["captions_empty"] == 1
