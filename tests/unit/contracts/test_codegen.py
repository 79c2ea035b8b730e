"""Generated files are fresh, and the JSON Schema agrees with the row checks."""

import json

import jsonschema
import pytest

from videoar.contracts.codegen import generated_files, main, row_schema
from videoar.contracts.contract import load_contract
from videoar.contracts.generated import stale_files
from videoar.core.types import Commit, Provenance


def test_generated_files_are_fresh():
    assert main(["--check"], print) == 0


def test_generated_file_changed_or_missing_is_stale(tmp_path):
    for name, text in generated_files().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "clips.v1.json").write_text("{}")
    (tmp_path / "TABLES.md").unlink()
    assert stale_files(tmp_path, generated_files()) == ["clips.v1.json", "TABLES.md"]


@pytest.mark.parametrize(
    ("change", "valid"),
    [({}, True), ({"split": None}, True), ({"split": "test"}, False), ({"size_bytes": -1}, False)],
)
def test_row_schema_agrees_with_contract_checks(change, valid):
    row = {"uri": "a", "name": "a", "etag": "1", "size_bytes": 1, "split": "train", **change}
    validator = jsonschema.Draft202012Validator(row_schema(load_contract("sources@1")))
    assert validator.is_valid(row) == valid


def test_commit_schema_accepts_a_commit():
    made = Provenance(run_id="r", pipeline="p", stage="s", fingerprint="f", code_version="c")
    commit = Commit(
        snapshot="a:0",
        digest="0",
        dataset="a",
        contract="clips@1",
        version=1,
        files=(),
        provenance=made,
    )
    schema = json.loads(generated_files()["commit.v1.json"])
    jsonschema.validate(commit.model_dump(mode="json"), schema)
