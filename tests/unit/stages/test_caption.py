"""Captions from a tiny random vision-language model on a handful of drawn clips."""

import pytest

from tests.support import tiny_models
from tests.support.clip_rows import clips_of
from tests.support.token_runs import shape_rows
from videoar.core.errors import ConfigError
from videoar.media.decode import decode_clip
from videoar.model.pretrained.networks import Captioner, pick_stills
from videoar.pipeline.context import StageContext
from videoar.pipeline.fingerprint import compute_parts, differences
from videoar.pipeline.registry import make_stage

PROMPT = "what is this"
CAPTIONS = (None, "a red ball", "", None, None)


@pytest.fixture
def clips(store):
    return tiny_models.drawn_clips(store, CAPTIONS)


def stage(model, **options):
    options = {"prompt": PROMPT, "max_new_tokens": 5, "batch_clips": 2} | options
    return make_stage("caption", {"model": model, **options})


def run(store, clips, model, **options):
    return stage(model, **options).open({"clips": clips}, StageContext(store))(clips.table())


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_models.llava, tiny_models.blip])
def test_missing_captions_are_written_and_others_kept(make, store, clips, tmp_path):
    model = make(tmp_path / "model")
    output = run(store, clips, model)
    before, after = clips.table().to_pylist(), output.rows.to_pylist()
    assert output.rows.schema == clips.table().schema
    for old, new in zip(before, after, strict=True):
        if old["caption"]:
            assert new == old
            continue
        stills = pick_stills(decode_clip(store.objects.get(old["video_key"])), 4)
        expected = Captioner(model, PROMPT, 5)([stills])[0]
        assert new == old | {"caption": expected, "caption_source": "model"}
    assert output.metrics == {"captions_kept": 1, "captions_made": 4, "captions_empty": 0}


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_models.llava, tiny_models.qwen2_vl, tiny_models.blip])
def test_clips_of_several_sizes_share_a_batch(make, store, tmp_path):
    clips = clips_of(store, shape_rows(store, [(9, 32, 32), (9, 24, 42), (9, 42, 24)]))
    output = run(store, clips, make(tmp_path / "model"), batch_clips=3)
    assert (output.metrics["captions_kept"], output.rows.num_rows) == (0, 3)


@pytest.mark.slow
def test_shard_gives_the_same_bytes_twice(store, clips, tmp_path):
    model = tiny_models.llava(tmp_path / "model")
    first, second = (
        store.dataset(name, "clips@1").write(run(store, clips, model).rows) for name in "ab"
    )
    assert first.sha256 == second.sha256


def test_all_captions_are_replaced_with_the_option(store, clips, tmp_path):
    output = run(store, clips, tiny_models.llava(tmp_path / "model"), only_missing=False)
    assert set(output.rows["caption_source"].to_pylist()) == {"model"}
    assert output.rows["caption"][1].as_py() != CAPTIONS[1]


def test_model_without_output_leaves_the_row_unchanged(store, clips, tmp_path):
    model = tiny_models.llava(tmp_path / "model", silent=True)
    output = run(store, clips, model, only_missing=False)
    assert output.rows.equals(clips.table())
    assert output.metrics == {"captions_kept": 0, "captions_made": 0, "captions_empty": 5}


def test_fingerprint_has_the_content_of_the_model_not_its_path(clips, tmp_path):
    first, copy, other = (
        compute_parts(stage(tiny_models.llava(tmp_path / name, seed=seed)), {"clips": clips})
        for name, seed in (("first", 0), ("copy", 0), ("other", 1))
    )
    assert first == copy
    assert [result["component"] for result in differences(first, other)] == ["tools.model"]


def test_missing_or_wrong_model_is_a_config_error(store, clips, tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such model folder"):
        compute_parts(stage(str(tmp_path / "nowhere")), {"clips": clips})
    with pytest.raises(ConfigError, match=r"not usable: .*the folder of a vision-language model"):
        run(store, clips, tiny_models.dinov2(tmp_path / "encoder"))
