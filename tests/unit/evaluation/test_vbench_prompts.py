"""The plan of VBench against the official data."""

from collections import Counter

import pytest

from tests.support.shared_data import ROOT, shared_json
from videoar.core.errors import ConfigError
from videoar.evaluation import vbench_prompts
from videoar.evaluation.vbench_constants import DIMENSIONS

COUNTS = {
    "human_action": 100, "temporal_style": 100, "overall_consistency": 93, "aesthetic_quality": 93,
    "imaging_quality": 93, "appearance_style": 90, "scene": 86, "background_consistency": 86,
    "color": 85, "spatial_relationship": 84, "multiple_objects": 82, "object_class": 79,
    "temporal_flickering": 75, "subject_consistency": 72, "dynamic_degree": 72,
    "motion_smoothness": 72,
}  # fmt: skip


@pytest.mark.parametrize(("flickering", "num"), [(5, 4720), (25, 6220)])
def test_invariant_6_plan_has_one_row_per_official_name(flickering, num):
    rows = list(vbench_prompts.plan(flickering=flickering))
    names = {vbench_prompts.video_name(row["prompt_id"], row["index"]) for row in rows}
    assert (len(rows), len(names), len({row["seed"] for row in rows})) == (num, num, num)
    assert len(vbench_prompts.entries()) == 946
    assert len({row["prompt_id"] for row in rows}) == len(vbench_prompts.prompts()) == 944
    assert {name for d in DIMENSIONS for name in vbench_prompts.video_names(d)} <= names
    assert max(len(name.encode()) for name in names) <= 255
    # two names are one on a case-insensitive file system, and nowhere else
    assert len({name.casefold() for name in names}) == num - 5


def test_invariant_6_each_dimension_has_its_official_number_of_prompts():
    counts = Counter(name for entry in vbench_prompts.entries() for name in entry["dimension"])
    assert counts == COUNTS
    videos = {name: len(vbench_prompts.video_names(name)) for name in DIMENSIONS}
    assert videos == {name: 5 * count for name, count in COUNTS.items()}


@pytest.mark.shared
def test_invariant_6_entries_and_prompts_equal_the_official_files():
    assert list(vbench_prompts.entries()) == shared_json("eval/vbench/VBench_full_info.json")
    files = shared_json("eval/vbench_constants.json")["dimension_to_prompt_file"]
    for dimension, file in files.items():
        lines = (ROOT / f"eval/vbench/prompts_per_dimension/{file}.txt").read_text().splitlines()
        named = {prompt for prompt, names in vbench_prompts.prompts().items() if dimension in names}
        assert named == {line.strip() for line in lines if line.strip()}


def test_plan_rewritten_prompts_keep_the_original_as_key(tmp_path):
    path = tmp_path / "longer.txt"
    path.write_text("\n".join(f"{i} longer" for i in range(946)))
    rows = list(vbench_prompts.plan(rewritten=path))
    assert [row["prompt_id"] for row in rows[::5]] == list(vbench_prompts.prompts())
    assert rows[0]["prompt"] == "0 longer"
    # seeds belong to the original prompt
    assert [row["seed"] for row in rows] == [row["seed"] for row in vbench_prompts.plan()]


@pytest.mark.parametrize("data", [b"one\n", b"\n" * 946, b"\xff", None])
def test_plan_unusable_rewritten_prompts_are_refused(data, tmp_path):
    path = tmp_path / "longer.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"longer\.txt"):
        list(vbench_prompts.plan(rewritten=path))
