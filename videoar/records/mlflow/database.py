"""The MLflow database of a store without a server: `mlflow.db` and its artifacts in one folder.

MLflow creates a database in dozens of steps, and one that a full disk or a kill has cut off is
never finished. So it is created under another name, and appears complete. MLflow also keeps the
absolute path of each artifact; when the folder was moved or copied, the paths are written again, or
a copy would write into the original.
"""

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from videoar.core.errors import DamagedError, one_line
from videoar.core.scratch import Scratch, sweep
from videoar.core.settings import settings
from videoar.storage.layout import MLFLOW_PREFIX
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_ARTIFACTS = MLFLOW_PREFIX.rstrip("/")
_COMPLETE = 0x76A3
"""`user_version` of a database whose creation was seen to end; MLflow does not use it."""
_LOCATIONS = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"), ("model_versions", "source"),
    ("model_versions", "storage_location"),
)  # fmt: skip
"""Columns of MLflow 3.17 with addresses of artifacts."""
TABLES = {table for table, _ in _LOCATIONS} | {
    "alembic_version", "registered_models", "registered_model_aliases", "model_version_tags",
    "latest_metrics", "metrics", "params", "tags",
}  # fmt: skip
"""Tables of MLflow 3.17 that a mirror is written to and read from."""
_PLAIN = "/ #"
"""Kept in addresses, besides what `quote` keeps: MLflow makes the folder of the address as it is
written, too, so as little as possible is encoded."""
_UNFINISHED = ("already exists", "duplicate column", "no such table", "no such column")
"""What SQLite says of a schema that is half of one."""


def database(store: Store) -> Path | None:
    """Return the path of the SQLite file: in the folder of the store, else in the current one.

    None: the setting `mlflow_uri` names another place.
    """
    if settings().mlflow_uri:
        return None
    parts = urlsplit(store.url)
    is_local = parts.scheme == "file"
    folder = Path(unquote(parts.path)) if is_local else Path.cwd() / ".videoar"
    return folder / "mlflow.db"


def sqlite_uri(path: Path) -> str:
    """Return the address of an SQLite file for MLflow, which decodes its path once."""
    return f"sqlite:///{quote(str(path), safe=_PLAIN)}"


def artifacts(path: Path) -> str:
    """Return the address of the artifacts of a database."""
    return (path.parent / _ARTIFACTS).as_uri()


def complete(path: Path, open_with_mlflow: Callable[[str], object]) -> None:
    """Create a database if there is none; a broken one is moved aside, and created again.

    Args:
        path: of the SQLite file.
        open_with_mlflow: opens the database at an address, creating its tables.

    Raises:
        OSError: the folder cannot be written.
        sqlite3.OperationalError: the file cannot be read, or is locked.
    """
    with suppress(sqlite3.OperationalError):  # another process may be moving it aside
        if _is_ready(path):
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    # one process at a time: a second one would take the database of the first for the broken one
    with _locked(path.parent):
        if _is_ready(path):
            return
        if path.exists():
            if not (what := damage(path) or _try(path, open_with_mlflow)):
                _mark(path)
                return
            _move_aside(path, what)
        sweep(path.parent)
        with Scratch(path.parent) as scratch:
            created = scratch / path.name
            open_with_mlflow(sqlite_uri(created))
            _mark(created)
            created.rename(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released on process exit
        yield
    finally:
        os.close(handle)


def _is_ready(path: Path) -> bool:
    return path.exists() and not damage(path) and _is_complete(path)


def damage(path: Path) -> str:
    """Return what is wrong with an SQLite file, "" if nothing is.

    Raises:
        sqlite3.OperationalError: it cannot be read, or is locked.
    """
    if path.is_dir():
        return "is a folder"
    try:
        with closing(_connect(path)) as db:
            (result,) = db.execute("PRAGMA quick_check(1)").fetchone()
            found = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
            if result == "ok" and _is_marked(db) and (lost := sorted(TABLES - found)):
                return f"lacks {', '.join(lost)}"
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if result == "ok" else one_line(result)


def require_usable(path: Path) -> None:
    """Raise if a database has to be repaired before it is used.

    Raises:
        DamagedError: it is damaged, or was moved or copied and names artifacts elsewhere.
    """
    what = damage(path)
    if not what:
        with closing(_connect(path)) as db:
            if elsewhere := _displaced(db, path):
                what = f"names artifacts in {elsewhere[0]}"
    if what:
        raise DamagedError(str(path), one_line(what), "videoar doctor --fix")


def relocate(path: Path) -> None:
    """Write the addresses of artifacts again if the folder of a database was moved or copied."""
    new = artifacts(path)
    with closing(_connect(path)) as db:
        if not (old := _displaced(db, path)):
            return
        with db:  # one transaction
            for table, column in _LOCATIONS:
                for base in old:
                    db.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - constants
                        f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (new, len(base) + 1, base, len(base) + 1, f"{base}/"),
                    )
    logger.info("%s: its artifacts are in its own folder again, no longer in %s", path, old[0])


def _displaced(db: sqlite3.Connection, path: Path) -> list[str]:
    query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE ?"
    has_tables = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
    rows = db.execute(query, (f"file:///%/{_ARTIFACTS}",)) if has_tables else ()
    found = [location for (location,) in rows]
    return [location for location in found if location != artifacts(path)]


def _connect(path: Path) -> sqlite3.Connection:
    # never creates a file; the path of a URI is decoded once
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)


def _is_complete(path: Path) -> bool:
    with closing(_connect(path)) as db:
        return _is_marked(db)


def _is_marked(db: sqlite3.Connection) -> bool:
    return bool(db.execute("PRAGMA user_version").fetchone()[0] == _COMPLETE)


def _mark(path: Path) -> None:
    with closing(_connect(path)) as db:
        db.execute(f"PRAGMA user_version = {_COMPLETE}")


def _try(path: Path, open_with_mlflow: Callable[[str], object]) -> str:
    """Open a copy of a database of an earlier version; return why it can never be opened, or ""."""
    with Scratch(path.parent) as scratch:
        copy = scratch / path.name
        with closing(_connect(path)) as db, closing(sqlite3.connect(copy)) as target:
            db.backup(target)
        try:
            open_with_mlflow(sqlite_uri(copy))
        except Exception as error:
            # others, as of a newer MLflow, are no damage
            if not any(text in str(error) for text in _UNFINISHED):
                raise
            return f"its creation was cut off: {one_line(error)[:100]}"
    return ""


def _move_aside(path: Path, what: str) -> None:
    aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    # first: beside another database it would be taken for its journal
    journal = path.with_name(f"{path.name}-journal")
    with suppress(FileNotFoundError):
        journal.rename(aside.with_name(f"{aside.name}-journal"))
    path.rename(aside)
    hint = "a new one is begun, videoar doctor --fix fills it"
    logger.warning("%s: broken (%s), moved to %s: %s", path, what, aside.name, hint)
