"""`features` killed at every step: always the rows of an undisturbed run."""

import pytest

from tests.support.feature_runs import prepare
from tests.support.token_runs import execute, run_in_child
from videoar.records.names import find_run
from videoar.records.run_record import load_run
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow
KILLS = [
    "features-computed",
    "features-computed:5",  # of 9 clips: in the second shard
    "write.after_put",
    "shard-written",
    "before-commit",
    "commit.before_log",
    "commit.after_log",
]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The digest that an undisturbed run commits."""
    store = open_store(tmp_path_factory.mktemp("calm").as_uri())
    return store.snapshot(execute(store, prepare(store)).outputs["features"]).digest


def rows_after(folder, *kills):
    store = open_store(folder.as_uri())
    document = prepare(store)
    for kill in kills:
        assert run_in_child(store.url, document, kill) == -9
    assert run_in_child(store.url, document) == 0
    features = store.snapshot(load_run(store, find_run(store)).outputs["features"])
    assert features.table(verify=True).num_rows == 9 * 5
    assert len(features.files) == 3
    return features.digest


@pytest.mark.parametrize("kill", KILLS)
def test_killed_run_ends_with_the_features_of_an_undisturbed_one(calm, tmp_path, kill):
    assert rows_after(tmp_path, kill) == calm


def test_run_killed_four_times_ends_with_the_same_features(calm, tmp_path):
    kills = ("features-computed:2", "features-computed:4", "shard-written", "features-computed")
    assert rows_after(tmp_path, *kills) == calm
