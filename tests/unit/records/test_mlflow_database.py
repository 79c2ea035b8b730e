"""The SQLite file of MLflow appears complete, and is moved aside by one process if it is broken."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import pytest

from videoar.core.errors import DamagedError
from videoar.records.mlflow.database import TABLES, complete, damage, relocate, require_usable


def create(uri: str) -> None:
    """Create tables as MLflow does: several transactions, and none of them if they exist."""
    with closing(sqlite3.connect(unquote(uri.removeprefix("sqlite:///")))) as db:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("model_versions", "source, storage_location"),
        ):
            db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({column})")
            time.sleep(0.01)
        for table in TABLES:
            db.execute(f"CREATE TABLE IF NOT EXISTS {table} (x)")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a b%20" / "mlflow.db"


def test_database_of_a_creation_that_failed_does_not_appear(path: Path):
    def fail(uri: str) -> None:
        create(uri)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        complete(path, fail)
    assert list(path.parent.iterdir()) == []
    complete(path, create)
    assert [file.name for file in path.parent.iterdir()] == ["mlflow.db"]


def test_racing_processes_move_a_broken_database_aside_once(path: Path):
    path.parent.mkdir()
    path.write_bytes(b"x" * 8192)
    assert damage(path) == "file is not a database"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: complete(path, create), range(8)))
    names = sorted(file.name for file in path.parent.iterdir())
    assert len(names) == 2
    assert names[1].startswith("mlflow.db.broken-")
    assert (path.parent / names[1]).read_bytes() == b"x" * 8192
    require_usable(path)


@pytest.mark.parametrize("is_folder", [True, False])
def test_folder_in_its_place_and_a_database_without_a_table_are_broken(path: Path, is_folder):
    complete(path, create)
    if is_folder:
        path.unlink()
        path.mkdir()
    else:
        with closing(sqlite3.connect(path)) as db:
            db.execute("DROP TABLE tags")
    what = "is a folder" if is_folder else "lacks tags"
    with pytest.raises(DamagedError, match=what):
        require_usable(path)
    complete(path, create)
    require_usable(path)
    assert len(list(path.parent.glob("mlflow.db.broken-*"))) == 1


def test_database_that_another_version_wrote_is_kept(path: Path):
    complete(path, create)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 0")

    def refuse(_: str) -> None:
        raise RuntimeError("out-of-date database schema")

    with pytest.raises(RuntimeError, match="out-of-date"):
        complete(path, refuse)
    assert [file.name for file in path.parent.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize(
    ("uri", "moved"),
    [
        ("file:///old%20place/mlflow-artifacts", "{new}"),
        ("file:///old%20place/mlflow-artifacts/1/artifacts", "{new}/1/artifacts"),
        ("file:///old%20place/mlflow-artifacts-2/1", "file:///old%20place/mlflow-artifacts-2/1"),
        ("s3://bucket/mlflow-artifacts", "s3://bucket/mlflow-artifacts"),
    ],
)
def test_addresses_below_the_old_folder_only_are_written_again(path: Path, uri: str, moved: str):
    complete(path, create)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO experiments VALUES ('file:///old%20place/mlflow-artifacts')")
        db.execute("INSERT INTO runs VALUES (?)", (uri,))
    relocate(path)
    with closing(sqlite3.connect(path)) as db:
        new = (path.parent / "mlflow-artifacts").as_uri()
        assert db.execute("SELECT * FROM experiments").fetchall() == [(new,)]
        assert db.execute("SELECT * FROM runs").fetchall() == [(moved.format(new=new),)]
