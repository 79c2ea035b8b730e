"""Connect to the MLflow of a store, and find what it has of a run."""

import logging
import os
import threading
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import unquote

from videoar.core.settings import set_defaults, settings
from videoar.records.mlflow import database
from videoar.records.run import Run
from videoar.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

RUN_TAG, SNAPSHOT_TAG = "videoar.run_id", "videoar.snapshot"
_CALL_TIMEOUT_S = "8"
"""chosen: for connection and answer each; a server that does not answer costs a run 10 s."""


def tracking_uri(store: Store) -> str:
    """Return the MLflow URI: the setting, else an SQLite file beside a local store."""
    path = database.database(store)
    return database.sqlite_uri(path) if path else settings().mlflow_uri


def connect(store: Store, *, writes: bool = True) -> "MlflowClient":
    """Connect to MLflow, with time limits; a local database is created, repaired and relocated.

    Raises:
        DamagedError: `writes` is False, and it is damaged or names artifacts of another folder.
    """
    _import_mlflow()
    from mlflow import MlflowClient

    path = database.database(store)
    if path and writes:
        database.complete(path, _open_database)
        database.relocate(path)
    elif path:
        database.require_usable(path)
    uri = tracking_uri(store)
    return _open_database(uri) if path else MlflowClient(tracking_uri=uri, registry_uri=uri)


def import_ahead(store: Store) -> None:
    """Import MLflow in a thread: it takes a second, while the caller waits for the store."""

    def run() -> None:
        with suppress(Exception):  # raised again, and reported, where it is needed
            _import_mlflow()
            for part in ("model_registry", "tracking") if database.database(store) else ():
                import_module(f"mlflow.store.{part}.sqlalchemy_store")

    # no daemon: a process that exits in the middle of an import may crash
    threading.Thread(target=run, name="mlflow-import").start()


def _import_mlflow() -> None:
    # Before the import: MLflow reads settings once, at import time. Without the limits, one
    # call to a server that is silent takes up to 15 minutes.
    set_defaults(
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_ENABLE_ASYNC_LOGGING="false",
        MLFLOW_HTTP_REQUEST_TIMEOUT=_CALL_TIMEOUT_S,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    import_module("mlflow")
    # else it logs every database migration
    logging.getLogger("mlflow").setLevel(logging.WARNING)


def _open_database(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)  # creates the tables
    folder = uri.removeprefix("sqlite:///").rpartition("/")[0]
    if unquote(folder) != folder:
        # MLflow has made the folder of the encoded path, and uses that of the decoded one
        with suppress(OSError):
            os.removedirs(folder)
    return client


def is_absent(store: Store) -> bool:
    """Return whether the store has no local database yet, though it is where MLflow would be."""
    path = database.database(store)
    return path is not None and not path.exists()


def experiment_id(client: "MlflowClient", store: Store, name: str) -> str:
    """Return the id of the pipeline's experiment; create it if it does not exist."""
    existing = client.get_experiment_by_name(name)
    if existing is not None:
        if existing.lifecycle_stage == "deleted":  # its runs are not found
            client.restore_experiment(existing.experiment_id)
        return str(existing.experiment_id)
    # Without a location MLflow writes artifacts of a local database to ./mlruns of the process.
    path = database.database(store)
    location = database.artifacts(path) if path else None
    return str(client.create_experiment(name, artifact_location=location))


def find_run(client: "MlflowClient", experiment: str, run_id: str) -> "MlflowRun | None":
    """Return the MLflow run of a run."""
    # by tag, because MLflow chooses its run ids: a resumed run updates its mirror
    runs = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run_id}'")
    return runs[0] if runs else None


def origin_tags(run: Run) -> dict[str, str]:
    """Return the tags that say which run something is of, who started it and with which code."""
    tags = {RUN_TAG: run.run_id, "mlflow.source.name": run.source}
    if software := run.software:
        dirty = "" if software.is_clean in {True, None} else "-dirty"
        commit = {"mlflow.source.git.commit": software.commit + dirty} if software.commit else {}
        tags |= {"mlflow.user": software.user, **commit}
    return tags
