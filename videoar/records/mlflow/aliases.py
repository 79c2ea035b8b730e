"""The registered model of a store, and its aliases, one per ref.

Its versions are the models that refs have pointed at since MLflow has mirrored them.
"""

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from videoar.records.mlflow import database
from videoar.records.mlflow.client import (
    SNAPSHOT_TAG,
    connect,
    experiment_id,
    find_run,
    is_absent,
    origin_tags,
)
from videoar.records.mlflow.logged_models import Package, has_files, log_model
from videoar.records.mlflow.runs import record_run
from videoar.records.run_record import load_run
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def registered_name(store: Store) -> str:
    """Return the name of the registered model whose aliases are the refs of a store.

    `videoar` in a database of its own, with the address of the store where several may meet.
    """
    parts = urlsplit(store.url)
    if parts.scheme == "file" and database.database(store):
        return "videoar"
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", f"{parts.netloc}{unquote(parts.path)}").strip("-")
    return f"videoar-{slug}"


def alias_of(ref: str) -> str:
    """Return the alias of a ref: letters, digits, `_` and `-` only."""
    return ref.replace("/", "-")


def mirrored_aliases(store: Store) -> dict[str, str | None]:
    """Return the snapshot that each alias of the registered model points at, as MLflow has it.

    Raises:
        Exception: any error of MLflow.
    """
    if is_absent(store):
        return {}
    client, name = connect(store, writes=False), registered_name(store)
    registered = client.search_registered_models(f"name = '{name}'")
    aliases = registered[0].aliases if registered else {}
    found = client.search_model_versions(f"name = '{name}'") if aliases else []
    snapshots = {str(v.version): v.tags.get(SNAPSHOT_TAG) for v in found if has_files(v.source)}
    # of a version that somebody has deleted: none
    return {alias: snapshots.get(str(version)) for alias, version in aliases.items()}


def mirror_ref(store: Store, ref: str, package: Package) -> None:
    """Point the alias of a ref at the version of the model that the ref points at.

    A version has the run that made the model, who started it, and with which commit. The run is
    mirrored first if it is not yet.

    Args:
        store: where the ref is.
        ref: whose head is one model.
        package: writes the files of a version.

    Raises:
        Exception: any error of MLflow or of the store.
    """
    client, name = connect(store), registered_name(store)
    mirrored = None
    # again if another call has moved the ref while the files were sent
    while (head := store.refs.head(ref)) is not None and head != mirrored:
        version = _version(client, store, name, store.snapshot(head), package)
        client.set_registered_model_alias(name, alias_of(ref), str(version.version))
        mirrored = head


def _version(
    client: "MlflowClient", store: Store, name: str, model: Snapshot, package: Package
) -> "ModelVersion":
    """Return the version of a model; create it if it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        # without a look-up before, which could lose a race with another run
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((v for v in versions if v.tags.get(SNAPSHOT_TAG) == model.id), None)
    if version is not None and has_files(version.source):
        return version
    run = load_run(store, model.commit.provenance.run_id)
    experiment = experiment_id(client, store, run.pipeline)
    existing = find_run(client, experiment, run.run_id)
    mlflow_id = str(existing.info.run_id) if existing else record_run(store, run, None)
    logged = log_model(client, store, experiment, mlflow_id, model, package)
    return version or client.create_model_version(
        name,
        source=logged.artifact_location,
        run_id=mlflow_id,
        tags={SNAPSHOT_TAG: model.id, **origin_tags(run)},
        model_id=logged.model_id,
    )
