"""Tokenize with two shards at once, killed at every step: always the same snapshot."""

import shutil

import pytest

from tests.support.token_runs import prepare, run_in_child
from videoar.records.names import find_run
from videoar.records.run_record import load_run
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow
KILLS = [
    "batch-encoded",
    "batch-encoded:4",  # of 9: in the second shard
    "batch-encoded:8",
    "write.after_put",
    "shard-written",
    "before-commit",
    "commit.before_log",
    "commit.after_log",
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A store with clips and a tokenizer, to be copied, and the pipeline."""
    folder = tmp_path_factory.mktemp("prepared")
    return folder, prepare(open_store(folder.as_uri()))


@pytest.fixture(scope="module")
def calm(prepared, tmp_path_factory):
    """The digest that an undisturbed run commits."""
    return run_and_read(prepared, tmp_path_factory.mktemp("calm"))


def run_and_read(prepared, folder, *kills):
    copied, document = prepared
    url = shutil.copytree(copied, folder, dirs_exist_ok=True).as_uri()
    for kill in kills:
        assert run_in_child(url, document, kill) == -9
    assert run_in_child(url, document) == 0
    store = open_store(url)
    run = load_run(store, find_run(store))
    tokens = store.snapshot(run.outputs["tokens"])
    table = tokens.table(verify=True)
    assert len(set(table["clip_id"].to_pylist())) == table.num_rows == 18
    assert len(tokens.files) == 9  # three files of clips, three shapes in each
    return tokens.digest


@pytest.mark.parametrize("kill", KILLS)
def test_killed_run_ends_with_the_tokens_of_an_undisturbed_one(prepared, calm, tmp_path, kill):
    assert run_and_read(prepared, tmp_path, kill) == calm


@pytest.mark.fault(26, "four kills in tokenize")
def test_run_killed_four_times_ends_with_the_same_tokens(prepared, calm, tmp_path):
    kills = ("batch-encoded:2", "batch-encoded:7", "shard-written", "batch-encoded")
    assert run_and_read(prepared, tmp_path, *kills) == calm
