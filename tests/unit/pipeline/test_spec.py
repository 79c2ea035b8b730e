"""Every mistake in a pipeline file is found, in one pass, with its key path and a hint."""

from pathlib import Path

import pytest

from tests.support.toys import REGISTRY
from videoar.core.errors import ConfigError
from videoar.pipeline.mistakes import SpecError
from videoar.pipeline.spec import load_pipeline

GOOD = """
pipeline: toy
inputs: {videos: "folder"}
stages:
  big:    {stage: upper, from: {sources: videos}, suffix: x}
  few:    {stage: pick,  from: {sources: big}}
  model:  {stage: count, from: {sources: few}}
  gate:   {stage: judge, from: {model: model}}
"""


def load(tmp_path: Path, text: str, *overrides: str):
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    return load_pipeline(path, overrides, REGISTRY)


def test_stages_are_ordered_by_their_ports(tmp_path: Path):
    shuffled = GOOD.replace("  big: ", "  zzz: ").replace("sources: big", "sources: zzz")
    spec = load(tmp_path, shuffled)
    assert [s.name for s in spec.stages] == ["zzz", "few", "model", "gate"]
    assert spec.upstream("model") == {"zzz", "few"}


@pytest.mark.parametrize(
    ("old", "new", "path", "message"),
    [
        ("suffix: x", "sufix: x", "stages.big.sufix", "did you mean suffix?"),
        ("suffix: x", "suffix: [1]", "stages.big.suffix", "must be text, not [1]"),
        ("stage: pick", "stage: pik", "stages.few.stage", "did you mean pick?"),
        ("stage: pick,  ", "", "stages.few.stage", "missing"),
        ("from: {sources: big}", "from: {}", "stages.few.from.sources", "missing port"),
        ("{sources: big}", "{sources: bug}", "stages.few.from.sources", "did you mean big?"),
        ("{sources: big}", "{source: big}", "stages.few.from.source", "unknown port"),
        ("{sources: few}", "{sources: gate}", "stages.model.from.sources", "makes releases@1"),
        ("{sources: videos}", "{sources: few}", "stages", "cycle: "),
        ("pipeline: toy", "name: toy", "pipeline", "missing"),
        ("pipeline: toy", "pipeline: toy\nstage: x", "stage", "did you mean stages?"),
        ('{videos: "folder"}', "folder", "inputs", "must be a mapping"),
    ],
)
def test_mistake_has_path_and_hint(tmp_path: Path, old: str, new: str, path: str, message: str):
    with pytest.raises(SpecError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    found = {m.path: m.message for m in caught.value.mistakes}
    assert message in found[path]
    assert str(tmp_path / "toy.yaml") in str(caught.value)


def test_pipeline_file_with_many_mistakes_lists_all(tmp_path: Path):
    text = GOOD.replace("suffix", "sufix").replace("stage: judge", "stage: juge")
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    assert {m.path for m in caught.value.mistakes} >= {"stages.big.sufix", "stages.gate.stage"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not YAML"), ("a: 1\na: 2", "given twice"), ("- a", "not a mapping")],
)
def test_file_without_a_pipeline_is_rejected(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_overrides_are_applied_before_validation(tmp_path: Path):
    spec = load(tmp_path, GOOD, "inputs.videos=/other", "stages.model.steps=9",
                "stages.big.resources.workers=3")  # fmt: skip
    assert spec.inputs["videos"] == "/other"
    assert spec.stage("model").config.steps == 9
    assert spec.stage("big").config.resources.workers == 3


@pytest.mark.parametrize(
    "override", ["stages.modle.steps=9", "inputs.videos", "x=1", "inputs.videos.a=1"]
)
def test_override_of_an_absent_key_is_rejected(tmp_path: Path, override: str):
    with pytest.raises(ConfigError, match="--set"):
        load(tmp_path, GOOD, override)
