"""The shipped pipeline with models: copies that only an embedding tells, captions, the report.

Its models are tiny and random, so they see little but colour: the drawn videos are tinted apart.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tests.support import tiny_models
from tests.support.small_pipeline import ROOT
from tests.support.small_videos import sha
from videoar import api
from videoar.core.errors import ConfigError
from videoar.media.synthetic import draw, scenes
from videoar.media.transcode import encode
from videoar.pipeline.spec import load_pipeline
from videoar.runner.plan import plan
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow
PIPELINE = ROOT / "pipelines" / "curate_models.yaml"
COPIES = {frozenset(("red", "mirrored")), frozenset(("green", "small"))}
TINTS = {"red": (1, 0.1, 0.1), "green": (0.1, 1, 0.1), "blue": (0.3, 0.3, 1), "cyan": (0.1, 1, 1)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "embedded": tiny_models.clip(folder / "encoder"),
        "captioned": tiny_models.llava(folder / "captioner"),
    }


def videos(folder, names):
    """Draw a scene per tint, mirror red, shrink green, hold blue; write them as `names` says."""
    folder.mkdir()
    drawn = {
        colour: (draw(scene, 20, 96, 8.0) * np.array(tint)).astype(np.uint8)
        for scene, (colour, tint) in zip(scenes()[::9], TINTS.items(), strict=False)
    }
    half = drawn["green"].reshape(20, 48, 2, 48, 2, 3).mean((2, 4)).astype(np.uint8)
    encode(half, folder / f"{names['small']}.webm", 8.0, codec="libvpx-vp9", crf=20)
    encode(drawn["red"][:, :, ::-1], folder / f"{names['mirrored']}.mp4", 8.0, crf=26)
    encode(drawn["blue"][:1].repeat(20, 0), folder / f"{names['still']}.mp4", 8.0)
    for colour, frames in drawn.items():
        encode(frames, folder / f"{names[colour]}.mp4", 8.0)
    return {sha(path): name for name, title in names.items() for path in folder.glob(f"{title}.*")}


def curate(store, folder, models, **options):
    sets = {
        "inputs.videos": folder,
        "stages.clips.size_px": 32,
        "stages.clips.sources_per_shard": 2,
        "stages.good.policy": "permissive",
        "stages.good.override": "{min_short_side_px: 48}",
        "stages.good.dedup": "false",  # embeddings alone
        "stages.captioned.max_new_tokens": 4,
    }
    sets |= {f"stages.{stage}.model": path for stage, path in models.items()}
    sets |= {f"stages.good.{name}": value for name, value in options.items()}
    overrides = [f"{key}={value}" for key, value in sets.items()]
    return api.run(store, PIPELINE, overrides, target="inline")


def measured_cosines(store, run, names):
    """Return the least cosine of two copies, and the largest of two others that move."""
    rows = store.snapshot(run.outputs["embedded"]).table().to_pylist()
    vectors = {names[row["source_id"]]: np.array(row["embedding"]) for row in rows}
    assert len(vectors) == len(rows) == len(names)
    found = {
        frozenset(pair): float(vectors[pair[0]] @ vectors[pair[1]])
        for pair in combinations(sorted(vectors.keys() - {"still"}), 2)
    }
    return min(found[pair] for pair in COPIES), max(found[p] for p in found.keys() - COPIES)


def clip_names(store, run, names):
    table = store.snapshot(run.outputs["clips"]).table(["clip_id", "source_id"])
    return {row["clip_id"]: names[row["source_id"]] for row in table.to_pylist()}


@pytest.fixture(scope="module")
def curated(models, tmp_path_factory):
    """Curate the same videos under names that list them in opposite orders, in other shards."""
    made = []
    for prefixes in ("abcdefg", "gfedcba"):
        folder = tmp_path_factory.mktemp("curated")
        store = open_store((folder / "store").as_uri())
        keys = (*TINTS, "mirrored", "small", "still")
        titles = {name: prefix + name for name, prefix in zip(keys, prefixes, strict=True)}
        names = videos(folder / "videos", titles)
        first = curate(store, folder / "videos", models, dedup_semantic=1.0)
        copies, distinct = measured_cosines(store, first, names)
        # a random encoder has no bound of its own: the middle of what it was measured to do
        bound = (copies + distinct) / 2
        run = curate(store, folder / "videos", models, dedup_semantic=bound)
        made.append((store, run, names, copies, distinct))
    return made


def fates(store, run, names):
    """Return who was kept, and why the others were not and whom they repeat."""
    of_clip = clip_names(store, run, names)
    good = store.snapshot(run.outputs["good"])
    refused = {
        of_clip[row["item_id"]]: (
            row["reasons"],
            row["detail"] and of_clip[row["detail"].split()[1]],
        )
        for row in good.rejects().table().to_pylist()
    }
    return {of_clip[clip_id] for clip_id in good.table()["clip_id"].to_pylist()}, refused


def test_copies_above_the_bound_are_rejected_and_no_others(curated):
    for store, run, names, copies, distinct in curated:
        assert copies > distinct
        cached = {stage.name for stage in run.stages if stage.status == "CACHED"}
        assert cached == {"clips", "profile", "embedded"}
        kept, refused = fates(store, run, names)
        assert refused.pop("still")[0][0] == "LOW_MOTION"
        assert {frozenset((name, other)) for name, (_, other) in refused.items()} == COPIES
        assert {tuple(reasons) for reasons, _ in refused.values()} == {("DUPLICATE_SEMANTIC",)}
        assert refused["small"][1] == "green"
        assert kept == set(names.values()) - refused.keys() - {"still"}


def test_kept_clips_do_not_depend_on_the_order(curated):
    first, second = (fates(*made[:3]) for made in curated)
    assert first == second
    listed = [made[0].snapshot(made[1].outputs["clips"]).table()["source_id"] for made in curated]
    assert listed[0] != listed[1]


def test_kept_clips_are_captioned_and_the_page_shows_the_pairs(curated):
    store, run, names, *_ = curated[0]
    kept, refused = fates(store, run, names)
    captioned = store.snapshot(run.outputs["captioned"]).table().to_pylist()
    assert {names[row["source_id"]] for row in captioned} == kept
    assert {row["caption_source"] for row in captioned} == {"model"}
    assert all(row["caption"] and row["embedding"] for row in captioned)
    page = Path(api.report(store, run.run_id)).read_text()
    clip_of = {name: clip_id for clip_id, name in clip_names(store, run, names).items()}
    for name, (_, other) in refused.items():
        assert not other or f"{clip_of[name]} duplicates {clip_of[other]}" in page
    assert page.count("<p>DUPLICATE SEMANTIC") == len(COPIES)


@pytest.mark.parametrize("stage", ["embedded", "captioned"])
def test_missing_model_is_reported_before_any_work(models, stage, tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    given = {**models, stage: tmp_path / "nowhere"}
    line = rf"stages\.{stage}\.model: .*nowhere: no such model folder \(give a local folder"
    with pytest.raises(ConfigError, match=line):
        curate(store, tmp_path, given)
    overrides = [f"stages.{name}.model={path}" for name, path in given.items()]
    with pytest.raises(ConfigError, match=line):
        plan(load_pipeline(PIPELINE, overrides), store)
    assert list(store.snapshots()) == []


def test_shipped_pipeline_names_its_missing_model(tmp_path):
    with pytest.raises(
        ConfigError, match=r"stages\.embedded\.model: /.*/models/image-encoder: no such"
    ):
        api.run(open_store((tmp_path / "store").as_uri()), PIPELINE, target="inline")
