"""Every id that a verb prints is a name that every verb takes."""

from pathlib import Path

import pytest

from tests.support.toy_runs import toy_run, write_videos
from videoar.core.errors import ConfigError, SnapshotNotFoundError
from videoar.records.names import find_run, find_snapshot
from videoar.records.run import Run
from videoar.storage.store import Store, open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("names")


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return open_store((folder / "store").as_uri())


@pytest.fixture(scope="module")
def runs(store: Store, folder: Path) -> list[Run]:
    """Two runs: the first with a rejected video, the second with another model."""
    videos = write_videos(folder / "videos", "a.mp4", "b.mp4", "bad.mp4")
    return [toy_run(store, videos), toy_run(store, videos, model={"steps": 4})]


def test_names_of_snapshots_datasets_refs_and_run_stages_resolve(store: Store, runs: list[Run]):
    old, new = (run.outputs["model"] for run in runs)
    assert old != new
    assert find_snapshot(store, old).id == old
    assert find_snapshot(store, "model").id == new
    assert find_snapshot(store, "champion").id == new
    assert find_snapshot(store, f"{runs[0].run_id}/model").id == old
    assert find_snapshot(store, "last/model").id == new
    assert find_snapshot(store, "last").id == runs[1].outputs["gate"]


def test_unique_prefixes_resolve(store: Store, runs: list[Run]):
    model = runs[0].outputs["model"]
    digest = store.snapshot(model).digest
    fingerprint = runs[0].stage("model").fingerprint
    assert fingerprint
    for name in (model[:12], model.partition(":")[2], digest, digest[:8], fingerprint):
        assert find_snapshot(store, name).id == model
    first, second = (run.run_id for run in runs)
    both = next(i for i in range(len(first)) if first[i] != second[i])
    assert find_run(store, first[: both + 1]) == first
    assert find_snapshot(store, first[: both + 1]).id == runs[0].outputs["gate"]


def test_row_ids_resolve(store: Store, runs: list[Run]):
    model = store.snapshot(runs[0].outputs["model"])
    digest = model.table(["digest"])["digest"][0].as_py()
    assert find_snapshot(store, digest).id == find_snapshot(store, digest[:9]).id == model.id
    assert find_snapshot(store, "bad.mp4").id == runs[0].stage("big").rejects


def test_snapshot_name_where_a_run_is_expected_means_the_run_that_made_it(
    store: Store, runs: list[Run]
):
    first, second = (run.run_id for run in runs)
    assert find_run(store) == find_run(store, "last") == second
    assert find_run(store, runs[0].outputs["model"]) == first
    assert find_run(store, "champion") == second


@pytest.mark.parametrize("find", [find_snapshot, find_run])
def test_ambiguous_prefix_lists_its_candidates(store: Store, runs: list[Run], find):
    with pytest.raises(ConfigError, match="matches 2") as error:
        find(store, runs[0].run_id[:5])
    assert all(run.run_id in str(error.value) for run in runs)
    with pytest.raises(ConfigError, match="matches 2") as error:
        find_snapshot(store, "model:")
    assert all(run.outputs["model"] in str(error.value) for run in runs)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("modle", "did you mean model?"),
        ("model:00", "model has model:"),
        ("zzz", "known: big, big.rejects, champion, few, gate, model, videos"),
        ("last/nosuch", "known: big, few, gate, model"),
        ("", "''"),
    ],
)
def test_unknown_name_is_rejected_with_existing_names(store: Store, name: str, words: str):
    with pytest.raises(SnapshotNotFoundError) as error:
        find_snapshot(store, name)
    assert words in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    "name", ["../../../usr", "..", "../store/refs/champion", "/etc", "model/../model", "a\0b", "."]
)
def test_name_with_a_path_is_rejected(store: Store, name: str):
    for find in (lambda name: find_snapshot(store, name), store.snapshot):
        with pytest.raises(SnapshotNotFoundError):
            find(name)
    with pytest.raises(SnapshotNotFoundError):
        store.snapshot(f"{name}:0123456789abcdef")
    with pytest.raises(ConfigError):
        find_run(store, name)


def test_empty_store_error_names_the_run_command(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    with pytest.raises(SnapshotNotFoundError, match="the store is empty"):
        find_snapshot(store, "clips")
    for name in (None, "last"):
        with pytest.raises(ConfigError, match="no runs yet"):
            find_run(store, name)
