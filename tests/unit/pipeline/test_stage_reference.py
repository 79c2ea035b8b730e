"""Every option of every stage is described once, and what derives from that is fresh."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml

from videoar.core.errors import ConfigError
from videoar.core.yaml_file import read_mapping
from videoar.pipeline.codegen import generated_files, main, pipeline_schema
from videoar.pipeline.registry import BUILTIN
from videoar.pipeline.stage_reference import OptionReference, stage_reference, stage_references

PIPELINES = Path(__file__).parents[3] / "pipelines"


def option(stage: str, name: str) -> OptionReference:
    return next(o for o in stage_reference(stage).options if o.name == name)


def test_every_option_has_a_meaning_and_every_number_a_unit():
    for reference in stage_references():
        options = reference.options
        is_number = {o.name: "number" in o.type or "integer" in o.type for o in options}
        assert [o.name for o in options if len(o.meaning) <= 5] == [], reference.name
        assert [o.name for o in options if bool(o.unit) != is_number[o.name]] == [], reference.name


def test_option_has_type_bounds_default_and_unit():
    rate = option("ingest", "rate_fps")
    assert (rate.type, rate.bounds, rate.default) == ("number or null", "> 0 and <= 120", 8.0)
    assert (rate.unit, rate.required, rate.changes_output) == ("frames/s", False, True)
    assert option("ingest", "keep").choices == ("clips", "references")
    assert option("promote", "rules").required


def test_nested_options_are_expanded():
    assert option("pretrain", "training.phases").required
    assert option("pretrain", "training.phases[].steps").bounds == ">= 1"
    assert option("train_tokenizer", "training.weights.l1").default == 1.0
    assert option("train_tokenizer", "tokenizer.num_bits").unit == "bits"
    assert option("filter", "policy.min_luma").type == "number or string or null"
    assert not option("ingest", "resources.cpus").changes_output


def test_stage_has_ports_and_what_it_makes():
    reference = stage_reference("filter")
    ports = [(port.name, port.contract, port.optional) for port in reference.ports]
    assert ports == [
        ("clips", "clips@1", False), ("profile", "profiles@1", True), ("kept", "clips@1", True),
        ("accepted", "rejects@1", True),
    ]  # fmt: skip
    assert (reference.produces, reference.shape) == ("clips@1", "reduce")
    json.dumps(reference.model_dump(mode="json"), allow_nan=False)


def test_reference_lists_all_stages_in_order_and_rejects_an_unknown_one():
    assert [reference.name for reference in stage_references()] == list(BUILTIN)
    with pytest.raises(ConfigError, match="did you mean ingest"):
        stage_references(["ingst"])


def test_reference_imports_neither_torch_nor_ray():
    code = (
        "import sys; from videoar.pipeline.stage_reference import stage_references;"
        "stage_references(); print(sorted({'torch', 'ray', 'dask', 'mlflow'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_generated_files_are_fresh():
    lines: list[str] = []
    assert main(["--check"], lines.append) == 0, lines


def test_page_has_every_option():
    page = generated_files()["STAGES.md"]
    for reference in stage_references():
        assert f"## {reference.name}\n" in page
        assert all(f"| `{o.name}`" in page for o in reference.options)


@pytest.fixture(scope="module")
def errors() -> Callable[[dict], list[str]]:
    """Return a function that returns where a document does not match the schema."""
    schema = json.loads((PIPELINES / "pipeline.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    return lambda document: [error.json_path for error in validator.iter_errors(document)]


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_pipeline_matches_the_schema_and_names_it(errors, path: Path):
    assert errors(read_mapping(path, "")) == []
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=pipeline.schema.json"


@pytest.mark.parametrize(
    ("keys", "value", "where"),
    [
        (("pipeline",), "My pipeline", "$.pipeline"),
        (("inputs", "videos"), 3, "$.inputs.videos"),
        (("inputs", "videos"), "~/x", "$.inputs.videos"),
        (("inputs", "videos"), "file:rel", "$.inputs.videos"),
        (("inputs", "videos"), "s3://user:secret@bucket", "$.inputs.videos"),
        (("stages", "clips", "stage"), "ingst", "$.stages.clips.stage"),
        (("stages", "clips", "sizepx"), 3, "$.stages.clips"),
        (("stages", "clips", "keep"), "clip", "$.stages.clips.keep"),
        (("stages", "clips", "resources"), {"cpus": 0}, "$.stages.clips.resources.cpus"),
        (("stages", "clips", "from"), {"source": "videos"}, "$.stages.clips.from"),
        (("stages", "tokenizer", "preset"), "demmo", "$.stages.tokenizer.preset"),
        (("stages", "tokenizer", "tokenizer"), {"num_bit": 1}, "$.stages.tokenizer.tokenizer"),
        (("stages", "model", "training"), {"phases": []}, "$.stages.model.training.phases"),
        (("stages", "A.b"), {"stage": "profile", "from": {"clips": "clips"}}, "$.stages"),
        (("stage",), {}, "$"),
    ],
)
def test_wrong_pipeline_does_not_match_the_schema(errors, keys: tuple, value: object, where: str):
    document = yaml.safe_load((PIPELINES / "quickstart.yaml").read_text())
    node = document
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    assert where in errors(document)


def test_schema_describes_every_key():
    text = json.dumps(pipeline_schema())
    assert not re.search(r'"title": "(?!VideoAR)', text)
    assert '"runtime"' not in text
