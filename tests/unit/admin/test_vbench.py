"""The verbs of VBench."""

import json

import pytest
from typer.testing import CliRunner

from videoar.cli.app import app
from videoar.core.errors import ConfigError
from videoar.storage.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store((tmp_path / "store").as_uri())


def call(store, *arguments):
    done = CliRunner().invoke(app, ["--store", store.url, "--json", "vbench", *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout)


def test_plan_writes_a_snapshot_once(store):
    _, result = call(store, "plan", "--flickering", "25")
    assert (result["entries"], result["prompts"], result["samples"]) == (946, 944, 6220)
    assert call(store, "plan", "--flickering", "25")[1] == result
    snapshot = store.snapshot(result["snapshot"])
    assert (snapshot.contract, snapshot.rows) == ("prompts@1", 6220)
    assert call(store, "plan", "--seed", "1")[1]["snapshot"] != result["snapshot"]


def test_plan_with_unusable_rewritten_prompts_names_the_file(store, tmp_path):
    (tmp_path / "short.txt").write_text("one")
    with pytest.raises(ConfigError, match="946 are needed"):
        call(store, "plan", "--rewritten", str(tmp_path / "short.txt"))
