"""MLflow says what the store says: aliases, versions, runs; and a copy never writes elsewhere."""

import hashlib
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.published_model import published
from tests.support.small_pipeline import command, environment, in_a_process
from tests.support.toy_runs import execute, toy_document, toy_run, write_videos
from tests.support.toys import REGISTRY
from videoar import api
from videoar.admin import registry
from videoar.admin.damage import damage
from videoar.admin.promotion import rollback
from videoar.core.errors import VideoARError
from videoar.core.settings import settings
from videoar.pipeline.spec import parse_pipeline
from videoar.records.mlflow import aliases, database, runs
from videoar.records.mlflow import client as mlflow_client
from videoar.storage import layout
from videoar.storage.store import Store, open_store

pytestmark = pytest.mark.slow  # MLflow creates a database in seconds
MODEL = "models:/videoar@champion"
MORE_DAMAGE = ("alembic_version", "registered_model_aliases", "metrics")
"""Tables that somebody has dropped."""


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A store with run `r`, a model of it that `champion` points at, and its complete mirror."""
    folder = tmp_path_factory.mktemp("registry")
    store = open_store((folder / "store").as_uri())
    videos = write_videos(folder / "videos", "a.mp4", "b.mp4")
    run = execute(store, toy_document(videos, gate=None), "r")
    store.refs.advance("champion", run.outputs["model"], expect=None, evidence={})
    store.refs.advance("champion", published(store).id, expect=0, evidence={})
    registry.mirror(store, fix=True)
    return folder / "store"


@pytest.fixture
def mirrored(template: Path, tmp_path: Path) -> Store:
    """A copy of it, under a path with a space."""
    store = open_store(shutil.copytree(template, tmp_path / "a copy").as_uri())
    registry.mirror(store, fix=True)
    return store


@pytest.fixture
def mlflow_at(monkeypatch):
    """Return a function that sets the address of MLflow."""

    def set_address(uri: str) -> None:
        monkeypatch.setenv("VIDEOAR_MLFLOW_URI", uri)
        settings.cache_clear()

    yield set_address
    settings.cache_clear()


def client_of(store: Store):
    from mlflow import MlflowClient

    uri = mlflow_client.tracking_uri(store)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def champion(store: Store) -> str:
    client = client_of(store)
    return client.get_model_version_by_alias("videoar", "champion").tags["videoar.snapshot"]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.filterwarnings("ignore:.*type hint")  # of MLflow, on import
def test_champion_loads_with_mlflow_and_generates_the_same_video(mirrored: Store):
    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(mlflow_client.tracking_uri(mirrored))
    loaded = mlflow.pyfunc.load_model(MODEL)
    (video,) = loaded.predict(["a prompt"], params={"seed": 1})
    assert video == api.load("champion", store=mirrored).sample("a prompt", seed=1).mp4()
    frame = pd.DataFrame({"prompt": ["a prompt", "another"]})
    assert loaded.predict(frame, params={"seed": 1})[0] == video
    assert loaded.predict("a prompt", params={"seed": 1, "seconds": 1.5})[0] != video
    names = [path.name for path in Path(mlflow.artifacts.download_artifacts(MODEL)).iterdir()]
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".pth", ".pt"))]


def test_version_has_run_source_commit_and_user(mirrored: Store):
    client, run = client_of(mirrored), api.status(mirrored, "r")
    version = client.get_model_version_by_alias("videoar", "champion")
    assert client.get_run(version.run_id).data.tags["videoar.run_id"] == "r"
    (logged,) = client.search_logged_models(
        [client.get_experiment_by_name("toy").experiment_id],
        filter_string=f"tags.`videoar.snapshot` = '{mirrored.refs.head('champion')}'",
    )
    assert logged.artifact_location == version.source
    assert version.tags["mlflow.user"] == run.software.user
    assert version.tags["mlflow.source.git.commit"].startswith(run.software.commit)
    assert version.tags["mlflow.source.name"] == "toy.yaml"


def test_artifacts_are_not_taken_for_damaged_records(mirrored: Store):
    keys = [info.key for info in mirrored.objects.list(layout.MLFLOW_PREFIX)]
    assert any(key.endswith("config.json") for key in keys)
    assert not [check.name for check in damage(mirrored) if check.name.endswith(tuple(keys))]


@pytest.mark.parametrize(
    ("edit", "lost"),
    [
        ("UPDATE registered_model_aliases SET version = 99", "ref champion"),
        ("DELETE FROM registered_model_aliases", "ref champion"),
        ("UPDATE experiments SET lifecycle_stage = 'deleted'", "1 runs"),
    ],
)
def test_what_was_deleted_or_moved_by_hand_is_mirrored_again(mirrored: Store, edit, lost):
    with closing(sqlite3.connect(database.database(mirrored))) as db:
        db.execute(edit)
        db.commit()
    with pytest.raises(VideoARError, match=f"lacks the newest of {lost}"):
        registry.mirror(mirrored, fix=False)
    assert registry.mirror(mirrored, fix=True) == f"mirrored: {lost}"
    assert registry.mirror(mirrored, fix=False) == "MLflow has all runs and refs"
    assert champion(mirrored) == mirrored.refs.head("champion")


@pytest.mark.soak  # in a process: MLflow caches where the artifacts of a model go
def test_artifacts_that_were_deleted_are_written_again(mirrored: Store):
    shutil.rmtree(database.database(mirrored).with_name("mlflow-artifacts"))
    with pytest.raises(VideoARError, match="lacks the newest of ref champion"):
        registry.mirror(mirrored, fix=False)
    assert in_a_process(command("doctor", "--fix", store=mirrored.url), environment())[0] == 0
    assert registry.mirror(mirrored, fix=False) == "MLflow has all runs and refs"
    (version,) = client_of(mirrored).search_model_versions("name = 'videoar'")
    assert (Path(unquote(version.source.removeprefix("file://"))) / "model.safetensors").exists()


def test_params_are_flattened():
    value = {"optimizer": {"rate": 0.1}, "phases": [{"steps": 2}], "names": ["a", "b"], "on": None}
    assert dict(runs._flat("pretrain", value)) == {
        "pretrain.optimizer.rate": "0.1",
        "pretrain.phases.0.steps": "2",
        "pretrain.names": '["a", "b"]',
        "pretrain.on": "null",
    }


def test_alias_follows_every_move_of_a_ref_to_a_model(mirrored: Store, tmp_path: Path):
    first, second = (entry["snapshot"] for entry in mirrored.refs.history("champion"))
    assert champion(mirrored) == second
    rollback(mirrored, "champion")
    assert champion(mirrored) == first
    rollback(mirrored, "champion", to=second)
    assert champion(mirrored) == second
    api.freeze(mirrored, "tokenizer", "coder")
    coder = client_of(mirrored).get_model_version_by_alias("videoar", "coder")
    assert coder.tags["videoar.snapshot"] == mirrored.refs.head("coder")
    # of a gate in a run
    document = toy_document(write_videos(tmp_path / "videos", "c.mp4"))
    run = execute(mirrored, document, "r2")
    spec = parse_pipeline(document, "toy.yaml", REGISTRY)
    registry.mirror_run(mirrored, spec, "r2", None)
    assert champion(mirrored) == mirrored.refs.head("champion") == run.outputs["model"]
    assert "all runs and refs" in registry.mirror(mirrored, fix=False)


def test_copied_store_works_alone_and_never_writes_into_the_original(template, tmp_path):
    before = digests(template)
    copy = open_store(shutil.copytree(template, tmp_path / "copy").as_uri())
    with pytest.raises(VideoARError, match=f"names artifacts in {template.as_uri()}"):
        registry.mirror(copy, fix=False)
    rollback(copy, "champion")
    rollback(copy, "champion", to=copy.refs.history("champion")[1]["snapshot"])
    client = client_of(copy)
    version = client.get_model_version_by_alias("videoar", "champion")
    assert version.source.startswith((tmp_path / "copy").as_uri())
    client.log_text(version.run_id, "more", "more.txt")
    assert digests(template) == before


@pytest.mark.parametrize("name", ["a b", "a#b"])
def test_artifacts_are_in_the_folder_of_the_store_only(template, tmp_path, name):
    folder = shutil.copytree(template, tmp_path / name)
    store = open_store(folder.as_uri())
    # of another run: MLflow caches by its run id where artifacts go
    run = api.status(store, "r").model_copy(update={"run_id": "r2", "outputs": {}})
    mlflow_id = runs.record_run(store, run, b"a page")
    (page,) = folder.rglob("report.html")
    assert mlflow_id in page.parts
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "damage",
    ["header", "page", "cut off", *(pytest.param(d, marks=pytest.mark.soak) for d in MORE_DAMAGE)],
)
def test_broken_database_is_moved_aside_and_filled_again(template, tmp_path, damage, caplog):
    folder = shutil.copytree(template, tmp_path / "store")
    store, path = open_store(folder.as_uri()), folder / "mlflow.db"
    if damage == "cut off":  # by a full disk, while an earlier version created it
        with closing(sqlite3.connect(path)) as db:
            tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'mcp_%'"
            names = [name for (name,) in db.execute(tables)]
            db.execute(f"DROP TABLE {names[-1]}")
            db.execute("UPDATE alembic_version SET version_num = 'bf29a5ff90ea'")
            db.execute("PRAGMA user_version = 0")
            db.commit()
    elif damage in MORE_DAMAGE:
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"DROP TABLE {damage}")
            db.commit()
    else:
        data = bytearray(path.read_bytes())
        data[0 if damage == "header" else 4096 : 4196] = b"x" * 100
        path.write_bytes(data)
    broken = path.read_bytes()
    if damage != "cut off":  # MLflow begins to write it, and then fails
        with pytest.raises(VideoARError, match="doctor --fix"):
            registry.mirror(store, fix=False)
    assert registry.mirror(store, fix=True) == "mirrored: 1 runs, ref champion"
    (aside,) = folder.glob("mlflow.db.broken-*")
    assert aside.read_bytes() == broken
    assert caplog.text.count("broken (") == 1
    assert champion(store) == store.refs.head("champion")


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # of 950,000
from videoar.admin.registry import mirror
from videoar.storage import layout
from videoar.storage.store import open_store
mirror(open_store(sys.argv[1]), fix=True)
"""


def test_full_disk_leaves_no_broken_database(template: Path, tmp_path: Path):
    folder = shutil.copytree(template, tmp_path / "store")
    (folder / "mlflow.db").unlink()
    command = [sys.executable, "-c", FULL_DISK, folder.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "disk I/O error" in done.stderr
    assert not list(folder.glob("mlflow.db*"))
    store = open_store(folder.as_uri())
    assert registry.mirror(store, fix=True) == "mirrored: 1 runs, ref champion"
    assert champion(store) == store.refs.head("champion")


@pytest.mark.fault(35, "refuses connections during a run and a promotion; sent by doctor --fix")
def test_run_goes_on_without_mlflow_and_is_mirrored_later(tmp_path, mlflow_at, caplog):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # closed again: refuses
    mlflow_at(f"http://user:hunter2@127.0.0.1:{port}")
    store = open_store((tmp_path / "store").as_uri())
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4")
    document = toy_document(videos, model={"steps": 6})
    run = execute(store, document, "r")
    spec = parse_pipeline(document, "toy.yaml", REGISTRY)
    began = time.monotonic()
    registry.mirror_run(store, spec, "r", None)
    assert time.monotonic() - began < 20
    assert api.status(store, "r").status == "SUCCEEDED"
    other = toy_run(store, videos, model={"steps": 7}).outputs["model"]
    rollback(store, "champion")
    assert store.refs.head("champion") == run.outputs["model"] != other
    lines = [r.getMessage() for r in caplog.records if "videoar doctor --fix" in r.getMessage()]
    assert len(lines) == 2
    with pytest.raises(VideoARError, match="is the server up") as error:
        registry.mirror(store, fix=True)
    assert "hunter2" not in f"{caplog.text} {error.value}"
    mlflow_at("")
    assert registry.mirror(store, fix=True) == "mirrored: 2 runs, ref champion"
    assert champion(store) == run.outputs["model"]
    client = client_of(store)
    experiment = client.get_experiment_by_name("toy").experiment_id
    for mlflow_run in client.search_runs([experiment]):
        history = client.get_metric_history(mlflow_run.info.run_id, "model/loss")
        assert [(point.step, point.value) for point in history] == [(1, 1.0)]
    assert "all runs and refs" in registry.mirror(store, fix=False)


def test_names_of_the_registered_model(tmp_path, mlflow_at):
    store = open_store((tmp_path / "store").as_uri())
    assert aliases.registered_name(store) == "videoar"
    mlflow_at("http://127.0.0.1:1")
    name = aliases.registered_name(store)
    assert name.startswith("videoar-")
    assert name.endswith("-store")
    assert database.database(store) is None
