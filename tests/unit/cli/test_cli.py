"""The command line's own part: what goes to stdout is the answer and nothing else."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from videoar.cli.app import app

RUN = SimpleNamespace(
    run_id="r", pipeline="p", status="SUCCEEDED", seconds=1.0, inputs={}, stages=[],
    public=lambda: {"run_id": "r"},
)  # fmt: skip


@pytest.mark.parametrize("verb", ["run", "resume"])
def test_what_libraries_print_meanwhile_is_no_part_of_the_answer(verb, tmp_path, monkeypatch):
    def works(*_: object, **__: object) -> SimpleNamespace:
        print("(raylet) A worker died or was killed")  # noqa: T201 - as Ray does
        return RUN

    monkeypatch.setattr(f"videoar.api.{verb}", works)
    done = CliRunner().invoke(app, ["--store", tmp_path.as_uri(), "--json", verb, "p"])
    assert json.loads(done.stdout) == {"run_id": "r"}
    assert "(raylet) A worker died" in done.stderr
