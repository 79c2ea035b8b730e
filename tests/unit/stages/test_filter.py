"""The filter on constructed rows: reasons, duplicates across files, counts and the check."""

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from tests.support.clip_rows import clip_row, clips_of
from tests.support.stage_chain import commit, describe, ingest, sift
from tests.support.video_files import ffmpeg
from videoar.bench.films import Film
from videoar.core.errors import ConfigError, ContractError, GateError
from videoar.media.clip_scores import MIRROR
from videoar.media.transcode import encode
from videoar.pipeline.fingerprint import compute_parts
from videoar.pipeline.mistakes import SpecError
from videoar.pipeline.spec import parse_pipeline
from videoar.stages.filter import FilterConfig, FilterStage
from videoar.storage.store import open_store

FLOORS = {"min_motion_per_s": 0.03, "min_blur": 20.0}
"""In place of the default policy's percentiles, which need a profile."""


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path.as_uri())


def test_each_file_gives_one_file_and_counts_add_up(store):
    best = clip_row("best")
    worse = clip_row("worse", phash=best["phash"], src_width_px=200)
    clips = clips_of(store, [best, clip_row("still", motion_per_s=0.0)], [worse, clip_row("other")])
    good, metrics = sift(store, clips, gate=False, override=FLOORS)
    kept = set(good.table(["source_name"])["source_name"].to_pylist())
    assert kept == {"best", "other"}
    assert len(good.files) == 2
    rejected = {r["uri"]: (r["reasons"], r["detail"]) for r in good.rejects().table().to_pylist()}
    assert rejected == {
        "file:///still": (["LOW_MOTION"], None),
        "file:///worse": (["DUPLICATE_NEAR"], f"repeats {best['clip_id']}"),
    }
    assert (metrics["clips_in"], metrics["clips_kept"]) == (4, 2)
    assert (metrics["reject/LOW_MOTION"], metrics["reject/DUPLICATE_NEAR"]) == (1, 1)
    assert metrics["bound/min_motion_per_s"] == 0.03


def test_denied_licences_are_rejected_with_their_reason_and_displace_no_copy(store):
    denied, stated = clip_row("a", licence=None), clip_row("b", licence="CC0-1.0")
    copy = {**denied, "source_uri": "file:///c", "source_name": "c", "licence": "CC0-1.0"}
    override = {"allowed_licences": ["CC0-1.0"]}
    clips = clips_of(store, [denied, stated], [copy])
    good, metrics = sift(store, clips, gate=False, policy="permissive", override=override)
    assert good.table(["source_name"])["source_name"].to_pylist() == ["b", "c"]
    assert good.rejects().table()["reasons"].to_pylist() == [["LICENCE_DENIED"]]
    assert metrics["reject/LICENCE_DENIED"] == 1
    assert all(isinstance(value, float | int) for value in metrics.values())


def test_new_clip_displaces_none_that_was_kept_before(store):
    old, other = clip_row("old"), clip_row("other")
    better = clip_row("new", phash=old["phash"], src_width_px=640)
    first, _ = sift(store, clips_of(store, [old, other]), gate=False, policy="permissive")
    now = clips_of(store, [old, other], [better])
    displaced, _ = sift(store, now, gate=False, policy="permissive")
    assert displaced.table(["source_name"])["source_name"].to_pylist() == ["other", "new"]
    good, _ = sift(store, now, gate=False, kept=first, policy="permissive")
    assert good.files == first.files
    assert good.rejects().table()["reasons"].to_pylist() == [["DUPLICATE_NEAR"]]


def test_copy_in_another_file_is_an_exact_duplicate(store):
    first = clip_row("a")
    copy = {**first, "source_uri": "file:///b", "source_name": "b"}
    good, _ = sift(store, clips_of(store, [first], [copy]), gate=False, policy="permissive")
    assert good.table(["source_name"])["source_name"].to_pylist() == ["a"]
    assert good.rejects().table()["reasons"].to_pylist() == [["DUPLICATE_EXACT"]]
    clips = clips_of(store, [first], [copy])
    both, _ = sift(store, clips, gate=False, policy="permissive", dedup=False)
    assert both.rows == 2


@pytest.mark.slow
def test_failed_check_names_its_expectations(store):
    stage = FilterStage(FilterConfig(min_keep_fraction=0.5))
    clips = clips_of(store, [clip_row(str(i)) for i in range(4)])
    table = clips.table()
    assert stage.check({"clips": clips}, table).success
    twice = pa.concat_tables([table.slice(0, 2), table.slice(0, 1)])
    report = stage.check({"clips": clips}, twice)
    assert not report.success
    assert any("unique on clip_id: observed" in line for line in report.failures)
    assert len(report.failures) < len(report.expectations)
    (failure,) = stage.check({"clips": clips}, table.slice(0, 1)).failures
    assert "row_count" in failure


@pytest.mark.slow  # 1.8 CPU-s: ingest starts its child
@pytest.mark.soak
def test_repeats_in_a_source_and_upscaled_copies_are_rejected_from_ingest_on(store, tmp_path):
    shots = [
        np.stack(list(Film(seed, 1, 120, 160, 12.0, disturbances=("none",)).frames()))[:30]
        for seed in (2, 3)
    ]
    folder = tmp_path / "videos"
    folder.mkdir()
    encode(np.concatenate([shots[0]] * 3), folder / "loop.mp4", 12.0)
    encode(shots[1], folder / "sharp.mp4", 12.0)
    ffmpeg(
        "-i", folder / "sharp.mp4", "-vf", "scale=40:30,scale=320:240", "-crf", 32,
        folder / "upscale.mp4",
    )  # fmt: skip
    clips, _ = ingest(store, folder.as_uri(), size_px=64)
    found = clips.table(["source_name"])["source_name"].to_pylist()
    assert sorted(found) == ["loop.mp4"] * 2 + ["sharp.mp4", "upscale.mp4"]
    good, metrics = sift(store, clips, gate=False, policy="permissive")
    kept = good.table(["source_name"])["source_name"].to_pylist()
    assert sorted(kept) == ["loop.mp4", "sharp.mp4"]
    assert metrics["reject/DUPLICATE_NEAR"] == 2


def test_hamming_bound_is_an_option(store):
    first = clip_row("a")
    other = clip_row("b", phash=[h ^ 0b111 for h in first["phash"]])
    clips = clips_of(store, [first], [other])
    kept = [
        sift(store, clips, gate=False, policy="permissive", dedup_hamming=bits)[0].rows
        for bits in (7, 8)
    ]
    assert kept == [2, 1]


def test_mirrored_copies_are_rejected_only_with_the_option(store):
    first = clip_row("a")
    turned = clip_row("b", phash=[h ^ MIRROR ^ 0b111 for h in first["phash"]], src_width_px=200)
    clips = clips_of(store, [first], [turned])
    good, _ = sift(store, clips, gate=False, policy="permissive")
    assert good.rows == 2
    good, metrics = sift(store, clips, gate=False, policy="permissive", dedup_mirrored=True)
    (rejected,) = good.rejects().table().to_pylist()
    assert (rejected["uri"], rejected["reasons"]) == ("file:///b", ["DUPLICATE_MIRRORED"])
    assert rejected["detail"] == f"repeats {first['clip_id']}"
    assert metrics["reject/DUPLICATE_MIRRORED"] == 1


def test_percentile_without_a_profile_is_a_config_error(store):
    with pytest.raises(ConfigError, match=r"min_motion_per_s: p02 needs a profile.*from: .profile"):
        sift(store, clips_of(store, [clip_row("a")]))
    document = {
        "pipeline": "p",
        "inputs": {"clips": "ref://clips"},
        "stages": {"good": {"stage": "filter", "from": {"clips": "clips"}}},
    }
    missing = "stages.good.from.profile: missing port .min_motion_per_s is p"
    with pytest.raises(SpecError, match=missing):
        parse_pipeline(document, "t")
    document["stages"]["good"]["policy"] = "permissive"
    parse_pipeline(document, "t")


def test_frozen_profile_keeps_decisions_while_the_corpus_grows(store):
    """Decisions on the old clips change only with a new profile."""
    old = [clip_row(f"old{i}", motion_per_s=1.0 + i) for i in range(60)]
    calm = [clip_row(f"calm{i}", motion_per_s=0.2) for i in range(60)]
    before = clips_of(store, old)
    frozen = describe(store, before)
    grown = clips_of(store, old, calm)

    def kept(clips, profile):
        good, _ = sift(store, clips, gate=False, profile=profile)
        return {name for name in good.table()["source_name"].to_pylist() if name.startswith("old")}

    first = kept(before, frozen)
    assert 0 < len(first) < len(old)
    assert kept(grown, frozen) == first
    assert kept(grown, describe(store, grown)) == {r["source_name"] for r in old}


def test_semantic_duplicates_name_the_clip_that_they_repeat(store):
    at = {"embedding_model": "m", "embedding": [1.0, 0.0]}
    rows = [
        clip_row("best", **at),
        clip_row("alike", **{**at, "embedding": [0.999, 0.02]}, src_width_px=200),
        clip_row("other", **{**at, "embedding": [0.0, 1.0]}),
        clip_row("none"),
    ]
    clips = clips_of(store, rows[:2], rows[2:])
    options = {"gate": False, "policy": "permissive", "dedup_semantic": 0.98}
    good, _ = sift(store, clips, **options)
    assert set(good.table()["source_name"].to_pylist()) == {"best", "other"}
    rejected = {r["uri"]: (r["reasons"], r["detail"]) for r in good.rejects().table().to_pylist()}
    assert rejected == {
        "file:///alike": (
            ["DUPLICATE_SEMANTIC"],
            f"repeats {rows[0]['clip_id']}",
        ),
        "file:///none": (["SCORE_MISSING"], None),
    }
    off, _ = sift(store, clips, gate=False, policy="permissive")
    assert off.rows == 4
    mixed = clips_of(store, [rows[0]], [clip_row("x", **{**at, "embedding_model": "n"})])
    with pytest.raises(ContractError, match=r"several models: m, n .embed all clips with one"):
        sift(store, mixed, **options)


def test_fingerprint_has_the_content_of_the_policy(store, tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("min_motion: 0.5\n")
    two.write_text("# the same, elsewhere\nmin_motion: 0.5\nmax_luma: null\n")
    clips = clips_of(store, [clip_row("a")])

    def parts(**options):
        return compute_parts(FilterStage(FilterConfig(**options)), {"clips": clips})

    requested = parts(policy=str(one))
    assert requested == parts(policy=str(two)) == parts(policy={"min_motion": 0.5})
    assert requested == parts(policy={"min_motion": 1}, override={"min_motion": 0.5})
    one.write_text("min_motion: 0.6\n")
    changed = parts(policy=str(one))
    assert changed["config"]["policy"]["min_motion"] == 0.6
    assert changed["config"] != requested["config"]
    config = FilterConfig(policy=str(one)).model_dump(mode="json")
    one.unlink()  # a worker elsewhere has no such file
    assert FilterConfig.model_validate(config).policy.min_motion == 0.6


def test_empty_input_is_a_gate_error(store):
    empty = commit(store, "clips", "clips@1", [])
    with pytest.raises(GateError, match="the input has no clips"):
        sift(store, empty)


def test_invalid_options_are_rejected():
    assert FilterConfig(override={"min_motion": None}).resolved.min_motion is None
    with pytest.raises(ValidationError, match="policy strict: no such policy"):
        FilterConfig(policy="strict")
    with pytest.raises(ValidationError, match="min_motoin: no such bound, did you mean min_motion"):
        FilterConfig(override={"min_motoin": 1.0})
