"""Policies: reasons per bound, percentiles, and all mistakes of a file at once."""

from pathlib import Path

import pytest

from tests.support.clip_rows import clip_row
from videoar.core.errors import ConfigError
from videoar.curation.duplicates import REASONS as DUPLICATES
from videoar.curation.policy import (
    LICENCE_DENIED,
    REASONS,
    SCORE_MISSING,
    Policy,
    evaluate,
    parse_policy,
    policy_names,
    read_policy,
)

BOUNDS = read_policy("default").model_copy(update={"min_motion_per_s": 0.7, "min_blur": 20.0})
BOUNDS = BOUNDS.resolve_percentiles()

GOOD = clip_row()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"src_height_px": 127}, "SHORT_SIDE"),
        ({"src_rate_fps": 11.9}, "FPS_LOW"),
        ({"src_rate_fps": 121.0}, "FPS_HIGH"),
        ({"rate_fps": 25.0}, "CLIP_SHORT"),
        ({"decoded_frames": 90}, "TRUNCATED"),
        ({"decode_errors": 1}, "DECODE_ERRORS"),
        ({"missing_frames": 1}, "FRAMES_MISSING"),
        ({"color_transfer": "arib-std-b67"}, "HDR"),
        ({"combed_frac": 0.5}, "INTERLACED"),
        ({"black_frac": 0.5}, "BLACK"),
        ({"picture_kind": "stereo"}, "PICTURE_KIND"),
        ({"still_frac": 0.9}, "FROZEN"),
        ({"motion_per_s": 0.0}, "LOW_MOTION"),
        ({"still_frac": None, "freeze_frac": 0.9}, "FROZEN"),  # of clips of release 0.1.0
        ({"motion_per_s": None, "motion_mean": 0.0}, "LOW_MOTION"),
        ({"luma_mean": 5.0}, "DARK"),
        ({"luma_mean": 250.0}, "BRIGHT"),
        ({"letterbox_frac": 0.5}, "LETTERBOX"),
        ({"blur_p10": 0.1}, "BLURRED"),
        ({"motion_per_s": None, "motion_mean": None}, SCORE_MISSING),
    ],
)
def test_each_bound_gives_its_reason(change, reason):
    assert evaluate(GOOD, BOUNDS, {}) == []
    assert evaluate({**GOOD, **change}, BOUNDS, {}) == [reason]
    assert reason in REASONS


@pytest.mark.parametrize(
    "change",
    [
        {"color_transfer": "smpte2084", "tone_map": "hable"},
        {"color_transfer": None},
        {"combed_frac": 1.0, "deinterlacer": "bwdif"},
        {"combed_frac": None},
    ],
)
def test_pictures_that_were_transformed_or_are_of_release_0_1_0_are_kept(change):
    assert evaluate({**GOOD, **change}, BOUNDS, {}) == []


@pytest.mark.parametrize(
    ("policy", "of_source", "is_kept"),
    [
        ({"allowed_licences": ["CC0-1.0"]}, {"licence": "CC0-1.0"}, True),
        ({"allowed_licences": ["CC0-1.0"]}, {"licence": "cc0"}, False),
        ({"allowed_licences": ["CC0-1.0"]}, {"licence": None}, False),
        ({"allowed_licences": ["CC0-1.0", None]}, {"licence": None}, True),
        ({"allowed_licences": []}, {"licence": "CC0-1.0"}, False),
        ({"allowed_licences": None}, {"licence": None}, True),
        ({"allowed_origins": ["camera"]}, {"licence": "CC0-1.0", "origin": None}, False),
        ({"allowed_origins": ["camera"]}, {"licence": None, "origin": "camera"}, True),
        ({"allowed_licences": ["a"], "allowed_origins": ["b"]},
         {"licence": "a", "origin": "x"}, False),
    ],
)  # fmt: skip
def test_licences_and_origins_that_are_not_allowed_are_denied(policy, of_source, is_kept):
    allowed = parse_policy(policy, "x").allowed
    row = {**GOOD, "licence": None, "origin": None, **of_source}
    assert evaluate(row, BOUNDS, allowed) == ([] if is_kept else [LICENCE_DENIED])


def test_licence_is_the_first_reason():
    row = {**GOOD, "licence": None, "luma_mean": 5.0}
    assert evaluate(row, BOUNDS, {"licence": ("a",)}) == [LICENCE_DENIED, "DARK"]


def test_every_reason_is_in_the_table_of_the_docs():
    docs = (Path(__file__).parents[3] / "docs" / "curation.md").read_text(encoding="utf-8")
    bounds = {*Policy.model_fields}
    assert {name for name in (*REASONS, *DUPLICATES, *bounds) if f"`{name}`" not in docs} == set()


def test_disabled_bounds_need_no_score():
    bounds = Policy(min_luma=16).resolve_percentiles()
    assert evaluate({**GOOD, "motion_mean": None, "expected_frames": None}, bounds, {}) == []


@pytest.mark.parametrize("rate_fps", [11.9988, 12000 / 1001, 120.0134])
def test_rates_at_a_bound_are_within_it_by_the_clock_of_the_container(rate_fps):
    assert evaluate({**GOOD, "src_rate_fps": rate_fps}, BOUNDS, {}) == []


def test_container_without_announced_frames_is_not_truncated():
    assert evaluate({**GOOD, "expected_frames": None}, BOUNDS, {}) == []


def test_percentiles_are_resolved_from_the_profile():
    policy = parse_policy({"min_motion": "p02", "max_luma": 200}, "x")
    assert policy.percentiles == {"min_motion": "p02"}
    bounds = policy.resolve_percentiles({"motion_mean": [i / 10 for i in range(101)]})
    assert (bounds["min_motion"], bounds["max_luma"], bounds["min_blur"]) == (0.2, 200, None)
    for profile in (None, {}, {"motion_mean": []}):
        with pytest.raises(ConfigError, match=r"min_motion: p02 needs a profile.*type profile"):
            policy.resolve_percentiles(profile)


def test_shipped_policies_are_valid_and_permissive_needs_no_profile():
    assert policy_names() == ["default", "permissive"]
    assert read_policy("default").percentiles == {"min_motion_per_s": "p02", "min_blur": "p02"}
    assert read_policy("permissive").percentiles == {}


def test_invalid_policy_file_lists_all_mistakes(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("min_motoin: 1\nmax_luma: bright\nmin_duration_s: p02\nmin_blur: true\n")
    with pytest.raises(ConfigError) as error:
        read_policy(str(path))
    assert error.value.where == str(path)
    for text in (
        "min_motoin: no such bound, did you mean min_motion?",
        "max_luma: 'bright' is neither a number, nor a percentile such as p02, nor null",
        "min_duration_s: p02: a profile does not include duration_s, give a number",
        "min_blur: True is neither a number",
    ):
        assert text in error.value.what


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("defualt", "no such policy .did you mean default"),
        ("gone.yaml", "cannot be read: No such file"),
        ("twice.yaml", "twice.yaml:2: key min_luma given twice"),
        ("list.yaml", "not a mapping .bounds such as"),
    ],
)
def test_unreadable_policy_is_a_config_error(tmp_path, monkeypatch, name, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twice.yaml").write_text("min_luma: 1\nmin_luma: 2\n")
    (tmp_path / "list.yaml").write_text("- min_luma\n")
    with pytest.raises(ConfigError, match=text):
        read_policy(name)
