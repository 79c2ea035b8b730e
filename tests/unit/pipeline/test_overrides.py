"""`--set a.b=value`: the type of the key decides how the value is read."""

import shlex
import subprocess
from pathlib import Path

import pytest

from videoar.core.errors import ConfigError
from videoar.pipeline.overrides import apply_override
from videoar.pipeline.registry import BUILTIN

ROOT = Path(__file__).parents[3]


def document() -> dict:
    return {
        "pipeline": "p",
        "inputs": {"videos": "folder"},
        "stages": {
            "clips": {"stage": "ingest", "from": {"sources": "videos"}},
            "tokenizer": {"stage": "train_tokenizer", "from": {"clips": "clips"}},
            "model": {"stage": "pretrain", "training": {"phases": [{"steps": 1}]}},
            "samples": {"stage": "generate"},
            "release": {"stage": "promote", "rules": []},
        },
    }


def after(override: str):
    changed = document()
    apply_override(changed, override, "p.yaml", BUILTIN)
    node = changed
    for key in override.partition("=")[0].split("."):
        node = node[int(key)] if isinstance(node, list) else node[key]
    return node


@pytest.mark.parametrize(
    "text",
    ["/x/my vids #2", "007", "2026-01-31", "yes", "null", "{a: 1, a: 2}", " a ", "'a'", "a=b", "",
     "s3://bucket/a#b", "[", "- a", "~", "&a", "a\nb", "1e4"],
)  # fmt: skip
@pytest.mark.parametrize(
    "key",
    [
        "inputs.videos",
        "stages.clips.from.sources",
        "stages.clips.stage",
        "stages.tokenizer.lpips_weights",
        "stages.tokenizer.preset",
        "stages.samples.prompts",
        "stages.release.ref",
        "stages.clips.keep",
        "stages.tokenizer.training.precision",
    ],
)
def test_override_of_a_text_key_is_verbatim(key: str, text: str):
    assert after(f"{key}={text}") == text


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("stages.clips.size_px=32", 32),
        ("stages.clips.size_px=[[32, 64]]", [[32, 64]]),
        ("stages.clips.rate_fps=null", None),
        ("stages.clips.find_shots=false", False),
        ("stages.clips.resources.workers=3", 3),
        ("stages.clips.resources={}", {}),
        ("stages.tokenizer.training={steps: 9, batch_clips: 2}", {"steps": 9, "batch_clips": 2}),
        ("stages.tokenizer.training.weights.l1=0.5", 0.5),
        ("stages.model.training.phases.0.steps=9", 9),
        ("stages.samples.guidance=ucf", "ucf"),
        ("stages.samples.guidance=1.5", 1.5),
        ("stages.release.rules=[{metric: fvd, max: 9}]", [{"metric": "fvd", "max": 9}]),
        ("stages.release={stage: promote}", {"stage": "promote"}),
        ("stages.clips.from={sources: videos}", {"sources": "videos"}),
        ("stages.clips.unknown=a", "a"),
    ],
)  # fmt: skip
def test_override_of_another_key_is_parsed_as_yaml(override: str, value: object):
    assert after(override) == value


@pytest.mark.parametrize(("text", "value"), [("videos", "videos"), ("null", None)])
def test_override_of_only_if_new_sets_or_unsets_it(text: str, value: str | None):
    assert after(f"only_if_new={text}") == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.clips.size_px=32 # small", "32 # small has # small after the value"),
        ("stages.samples.guidance=my file #2", "has #2 after the value"),
        ("stages.clips.size_px=", "has no value (must be a whole number"),
        ("stages.clips.num_frames=017", "017 is not a plain decimal number"),
        ("stages.clips.find_shots=yes", "yes is a boolean in YAML 1.1"),
        ("stages.clips.resources={cpus: 1, cpus: 2}", "key cpus given twice"),
        ("stages.clips.resources=cpus: 1", "is not a single value"),
        ("inputs.vidoes=/x", "p.yaml has no vidoes (did you mean videos?)"),
        ("inputs.videos.a=1", "inputs.videos is not a mapping"),
        ("stages.clip.size_px=1", "p.yaml has no clip (did you mean clips?)"),
        ("stages.clip={}", "p.yaml has no clip (did you mean clips?)"),
        ("stages.clips.stage.a=1", "stages.clips.stage is not a mapping"),
        (
            "stages.model.training.phases.1.steps=9",
            "1 is not an index of the list in p.yaml (0 to 0)",
        ),
        ("stages.model.training.phases.first.steps=9", "first is not an index"),
        ("stages.release.rules.0={}", "0 is not an index of the list in p.yaml (it is empty)"),
        ("stage.clips.size_px=1", "p.yaml has no stage (did you mean stages?)"),
        ("pipeline=x", "not of the form a.b=value"),
        ("inputs.videos", "not of the form a.b=value"),
        ("only_if_new", "not of the form a.b=value"),
        ("inputs..videos=1", "not of the form a.b=value"),
    ],
)
def test_override_of_a_wrong_type_is_rejected(override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        after(override)
    assert str(caught.value).startswith("--set ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["/x/my vids #2", 'it\'s "x"', "a$b$(c)${d}$$", "`ls`\\;&|<>*?", "--set", "007", "a,b (c)"],
)
@pytest.mark.parametrize("by_environment", [True, False])
def test_make_demo_passes_input_verbatim(path: str, by_environment: bool):
    given = ["env", f"INPUT={path}", "make"] if by_environment else ["make", f"INPUT={path}"]
    printed = subprocess.run(
        [*given, "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    line = next(line for line in printed.splitlines() if "quickstart.yaml" in line)
    assert f"inputs.videos={path}" in shlex.split(line.rstrip("; \\"))
