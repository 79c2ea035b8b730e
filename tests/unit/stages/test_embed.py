"""Embeddings from tiny random encoders on a handful of drawn clips."""

import numpy as np
import pytest

from tests.support import tiny_models
from tests.support.clip_rows import clips_of
from tests.support.token_runs import shape_rows
from videoar.core.errors import ConfigError
from videoar.media.decode import decode_clip
from videoar.model.pretrained.model_folder import folder_digest, model_digest
from videoar.model.pretrained.networks import ImageEncoder, pick_stills
from videoar.pipeline.context import StageContext
from videoar.pipeline.fingerprint import compute_parts, differences
from videoar.pipeline.registry import make_stage


@pytest.fixture
def clips(store):
    return tiny_models.drawn_clips(store, ("a red ball", None, None))


def stage(model, **options):
    return make_stage("embed", {"model": model, "num_frames": 3, "batch_clips": 2} | options)


def run(store, clips, model, **options):
    return stage(model, **options).open({"clips": clips}, StageContext(store))(clips.table()).rows


@pytest.mark.parametrize("make", [tiny_models.siglip, tiny_models.dinov2])
def test_every_clip_has_a_unit_vector_and_other_columns_stay(make, store, clips, tmp_path):
    model = make(tmp_path / "model")
    rows = run(store, clips, model)
    assert rows.schema == clips.table().schema
    assert rows.drop_columns(["embedding", "embedding_model"]).equals(
        clips.table().drop_columns(["embedding", "embedding_model"])
    )
    assert set(rows["embedding_model"].to_pylist()) == {folder_digest(model)}
    vectors = np.array(rows["embedding"].to_pylist(), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    for key, vector in zip(clips.table()["video_key"].to_pylist(), vectors, strict=True):
        stills = pick_stills(decode_clip(store.objects.get(key)), 3)
        np.testing.assert_allclose(ImageEncoder(model)([stills])[0], vector, atol=1e-5)


def test_lite0_needs_no_folder_and_tells_scenes_apart(store):
    clips = clips_of(store, shape_rows(store, [(9, 32, 32), (9, 24, 42), (9, 32, 32)]))
    rows = run(store, clips, "lite0")
    vectors = np.array(rows["embedding"].to_pylist())
    assert vectors.shape == (3, 320)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert set(rows["embedding_model"].to_pylist()) == {model_digest("lite0")}
    assert stage("lite0").tools() == {"model": model_digest("lite0")}
    assert make_stage("embed", {}).config.model == "lite0"


def test_clips_of_several_sizes_share_a_batch(store, tmp_path):
    clips = clips_of(store, shape_rows(store, [(9, 32, 32), (9, 24, 42), (9, 42, 24)]))
    model = tiny_models.clip(tmp_path / "model")
    together, alone = (
        np.array(run(store, clips, model, batch_clips=batch)["embedding"].to_pylist())
        for batch in (3, 1)
    )
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_shard_gives_the_same_bytes_twice(store, clips, tmp_path):
    model = tiny_models.clip(tmp_path / "model")
    first, second = (
        store.dataset(name, "clips@1").write(run(store, clips, model)) for name in "ab"
    )
    assert first.sha256 == second.sha256


def test_fingerprint_has_the_content_of_the_model_not_its_path(clips, tmp_path):
    first, copy, other = (
        compute_parts(stage(tiny_models.dinov2(tmp_path / name, seed=seed)), {"clips": clips})
        for name, seed in (("first", 0), ("copy", 0), ("other", 1))
    )
    assert first == copy
    assert [result["component"] for result in differences(first, other)] == ["tools.model"]


def test_model_of_another_kind_is_a_config_error(store, clips, tmp_path):
    with pytest.raises(ConfigError, match="an image encoder such as CLIP"):
        run(store, clips, tiny_models.qwen2_vl(tmp_path / "model"))
