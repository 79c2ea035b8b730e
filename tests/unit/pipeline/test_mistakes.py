"""Every mistake of a pipeline file is one plain sentence with its key path; all come at once."""

import pickle
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from videoar.admin.validate import validate_pipeline
from videoar.core.errors import ConfigError
from videoar.pipeline.mistakes import Mistake, SpecError
from videoar.pipeline.spec import load_pipeline, parse_pipeline

QUICKSTART = Path(__file__).parents[3] / "pipelines" / "quickstart.yaml"


def quickstart() -> dict:
    return yaml.safe_load(QUICKSTART.read_text())


def mistakes(document: dict) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_pipeline(document, "x.yaml")
    found = caught.value.mistakes
    assert len({mistake.path for mistake in found}) == len(found)
    return {mistake.path: mistake.message for mistake in found}


@pytest.mark.parametrize(
    ("stage", "changes", "path", "message"),
    [
        ("model", {"training": {"phases": [{"step": 3}]}}, "training.phases.0.step",
         "unknown key (did you mean steps?)"),
        ("model", {"training": {"phases": [{"steps": 3, "tokens": 3}]}}, "training.phases.0",
         "give either steps or tokens"),
        ("model", {"training": {"phases": []}}, "training.phases",
         "must be a list of at least 1, each entry a mapping, not []"),
        ("model", {"training": {"phases": 3}}, "training.phases",
         "must be a list of at least 1, each entry a mapping, not 3"),
        ("model", {"training": {"phases": [{"steps": 1}], "optimizer": {"betas": [0.9]}}},
         "training.optimizer.betas.1", "missing"),
        ("model", {"training": None}, "training", "must be a mapping, not null"),
        ("model", {"model": {"dept": 3}}, "model.dept", "unknown key (did you mean depth?)"),
        ("model", {"model": {"depth": 0}}, "model.depth",
         "must be a whole number >= 1 and <= 1,024, not 0"),
        ("model", {"preset": "tinny"}, "preset", "unknown preset tinny (did you mean tiny?)"),
        ("model", {"preset": 3}, "preset", "must be one of tiny, small, L, XL, 4B, start, not 3"),
        ("model", {"learning_rate": 1}, "learning_rate", "unknown key (known: "),
        ("tokenizer", {"steps": 5}, "steps", "unknown key (it is an option of training)"),
        ("tokenizer", {"training": {"weights": {"lcam": 1}}}, "training.weights.lcam",
         "unknown key (did you mean lecam?)"),
        ("tokenizer", {"tokenizer": {"scales": "x"}}, "tokenizer.scales", "must be a list, each"),
        ("clips", {"form": {}}, "form", "unknown key (did you mean from?)"),
        ("clips", {"keep": "clip"}, "keep",
         'must be one of clips, references, not "clip" (did you mean clips?)'),
        ("clips", {"rate_fps": -1}, "rate_fps", "must be a number > 0 and <= 120 or null, not -1"),
        ("clips", {"rate_fps": "x" * 2000}, "rate_fps",
         "must be a number > 0 and <= 120 or null, not a text of 2000 characters"),
        ("clips", {"max_pixels": list(range(999))}, "max_pixels",
         "must be a whole number >= 1, not a list of 999 entries"),
        ("clips", {"find_shots": "maybe"}, "find_shots", 'must be true or false, not "maybe"'),
        ("clips", {"resources": {"worker": 2}}, "resources.worker", "did you mean workers?"),
        ("good", {"policy": {"min_moton": 1}}, "policy.min_moton", "did you mean min_motion?"),
        ("tokenizer", {"tokenizer": {"scales": [[1, 1], []]}}, "tokenizer.scales.1.1", "missing"),
        ("samples", {"guidance": [1]}, "guidance", "must be one of ucf, t2v or a number, not [1]"),
        ("release", {"rules": [{"metric": "fvdd", "max": 1}]}, "rules.0.metric",
         "unknown metric fvdd (did you mean fvd?)"),
        ("release", {"ref": ""}, "ref", 'must be text that is not empty, not ""'),
        ("release", {"from": {"model": "model"}}, "from.scores", "missing port (needs a snapshot"),
        ("release", {"from": {"model": "model", "score": "scores"}}, "from.score",
         "unknown port (did you mean scores?)"),
        ("release", {"from": {"model": 3, "scores": "scores"}}, "from.model",
         "no input or stage 3"),
        ("release", {"from": {"model": "modle", "scores": "scores"}}, "from.model",
         "no input or stage modle (did you mean model?)"),
        ("release", {"from": ["model"]}, "from", 'must be a mapping, not ["model"]'),
        ("release", {"stage": "promot"}, "stage",
         'unknown stage type "promot" (did you mean promote?)'),
        ("release", {"stage": 3}, "stage", "must be the type of a stage, not 3"),
    ],
)  # fmt: skip
def test_mistake_in_a_stage_is_reported_in_one_line(
    stage: str, changes: dict, path: str, message: str
):
    document = quickstart()
    document["stages"][stage] |= changes
    found = mistakes(document)
    assert message in found[f"stages.{stage}.{path}"]
    assert max(map(len, found.values())) <= 400
    assert not any("Input should" in text or "\n" in text for text in found.values())


@pytest.mark.parametrize(
    ("key", "value", "path", "message"),
    [
        ("pipeline", "My pipeline", "pipeline", '"My pipeline" cannot be a name (up to 63 of a-z'),
        ("pipeline", 3, "pipeline", "3 cannot be a name"),
        ("pipeline", "", "pipeline", '"" cannot be a name'),
        ("pipeline", "-x", "pipeline", '"-x" cannot be a name'),
        ("pipeline", "x" * 64, "pipeline", "cannot be a name"),
        ("pipeline", "x\n", "pipeline", '"x\\n" cannot be a name'),
        ("description", 3, "description", "must be text, not 3"),
        ("inputs", None, "inputs", "missing (map names to folders or URLs"),
        ("inputs", {"videos": 3}, "inputs.videos", "must be a folder or URL as text, not 3"),
        ("inputs", {"Videos": "/x"}, "inputs.Videos", '"Videos" cannot be a name'),
        ("inputs", {"videos": "~/x"}, "inputs.videos", "~ is not expanded here (write the whole"),
        ("inputs", {"videos": "/x", "good": "/y"}, "stages.good", "is the name of an input, too"),
        ("stages", {}, "stages", "missing (map at least one name to a stage)"),
        ("stages", [1], "stages", "must be a mapping, not [1]"),
        ("stages", {"clips": None}, "stages.clips", "must be a mapping, not null (start with"),
        ("stages", {"a.rejects": {"stage": "profile"}}, "stages.a.rejects", "cannot be a name"),
        ("stages", {"../x": {"stage": "profile"}}, "stages.../x", "cannot be a name"),
        ("stage", {}, "stage", "unknown key (did you mean stages?)"),
    ],
)  # fmt: skip
def test_mistake_at_the_top_level_is_reported_in_one_line(
    key: str, value: object, path: str, message: str
):
    assert message in mistakes(quickstart() | {key: value})[path]


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path: Path):
    document = quickstart()
    document["pipeline"] = "Quick"
    document["inputs"]["videos"] = "file:rel"
    document["stages"]["clips"] |= {"kep": "clips", "crf": 99, "from": {"source": "videos"}}
    document["stages"]["model"]["training"]["phases"][0]["step"] = 1
    document["stages"]["release"]["rules"][0]["metric"] = "rendered/color_acc"
    document["stages"]["x"] = {"stage": "profil", "from": {"clips": "clip"}}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(document))
    found = validate_pipeline(path)
    assert {mistake["path"] for mistake in found} == {
        "pipeline", "inputs.videos", "stages.clips.kep", "stages.clips.crf",
        "stages.clips.from.source", "stages.clips.from.sources",
        "stages.model.training.phases.0.step", "stages.release.rules.0.metric",
        "stages.x.stage", "stages.x.from.clips",
    }  # fmt: skip
    with pytest.raises(SpecError) as caught:
        load_pipeline(path)
    assert [vars(mistake) for mistake in caught.value.mistakes] == found


def test_cycle_is_reported_beside_other_mistakes():
    document = quickstart()
    document["stages"]["clips"]["from"]["sources"] = "release"
    document["stages"]["clips"]["crf"] = 99
    assert mistakes(document)["stages"].startswith("cycle: clips -> ")


def test_error_survives_pickling():
    error = SpecError("x.yaml", [Mistake("a.b", "wrong")])
    assert str(pickle.loads(pickle.dumps(error))) == "x.yaml: a.b: wrong"


def test_relative_inputs_are_resolved_when_the_file_is_loaded(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = load_pipeline(QUICKSTART, ["inputs.videos=my vids #2"])
    assert spec.inputs["videos"] == str(tmp_path / "my vids #2")
    assert spec.document["inputs"] == spec.inputs


def test_relative_paths_of_options_are_resolved_too(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("min_luma: 3")
    changes = [
        "stages.samples.prompts=my prompts.txt",
        "stages.tokenizer={stage: train_tokenizer, from: {clips: good}}",
        "stages.tokenizer.image_weights=a/b",
        "stages.tokenizer.lpips_weights=/c",
        "stages.good.policy=my.yaml",
    ]
    stages = load_pipeline(QUICKSTART, changes).document["stages"]
    assert stages["samples"]["prompts"] == str(tmp_path / "my prompts.txt")
    assert stages["tokenizer"]["image_weights"] == str(tmp_path / "a/b")
    assert stages["tokenizer"]["lpips_weights"] == "/c"
    assert stages["good"]["policy"] == str(tmp_path / "my.yaml")


def test_names_that_are_no_paths_are_unchanged():
    changes = ["stages.samples.prompts=captions", "stages.tokenizer.image_weights="]
    stages = load_pipeline(QUICKSTART, changes).document["stages"]
    assert stages["samples"]["prompts"] == "captions"
    assert stages["good"]["policy"] == "permissive"
    assert stages["tokenizer"]["image_weights"] == ""


keys = st.sampled_from(["steps", "cpus", "x", "stage"])
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 1 << 40), st.text(max_size=5),
              st.sampled_from(["clips", "videos", "demo", "ucf", "ingest"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner)),
    max_leaves=6,
)  # fmt: skip


def places(node: object) -> list[tuple]:
    """Return the key paths of a document, the empty one included."""
    children = enumerate(node) if isinstance(node, list) else ()
    children = node.items() if isinstance(node, dict) else children
    return [(), *((key, *rest) for key, child in children for rest in places(child))]


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_value_at_any_key_is_accepted_or_reported(data: st.DataObject):
    document = quickstart()
    place = data.draw(st.sampled_from(places(document)[1:]))
    parent: object = document
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = data.draw(values)
    text = ""
    try:
        parse_pipeline(document, "x.yaml")
    except ConfigError as error:
        text = str(error)
    assert all(len(line) < 600 for line in text.splitlines())
    assert "validation error" not in text
