"""Checkpoints as logged models, which `mlflow.pyfunc.load_model` loads without pickle."""

import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from videoar.records.mlflow.client import SNAPSHOT_TAG
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

Package = Callable[[Snapshot, Path], bool]
"""Writes the files of a model into a new folder; returns whether it generates videos."""

_PACKAGED_TAG = "videoar.packaged"
_LOADER = "videoar.admin.mlflow_loader"


def has_files(location: str | None) -> bool:
    """Return whether a folder of artifacts exists, where this machine can know it."""
    # no `urlsplit`: a `#` in an address is one of its path
    is_local = location is not None and location.startswith("file://")
    return not is_local or Path(unquote(str(location).removeprefix("file://"))).is_dir()


def log_model(
    client: "MlflowClient",
    store: Store,
    experiment: str,
    mlflow_id: str,
    model: Snapshot,
    package: Package | None = None,
) -> "LoggedModel":
    """Return the logged model of a checkpoint; it and its files are logged once per snapshot.

    Args:
        client: of MLflow.
        store: where the checkpoint is.
        experiment: of the run that made it.
        mlflow_id: of that run.
        model: snapshot of one checkpoint.
        package: writes what is needed to load it; None logs the files of the checkpoint alone.
    """
    of_snapshot = f"tags.`{SNAPSHOT_TAG}` = '{model.id}'"
    existing = client.search_logged_models([experiment], filter_string=of_snapshot)
    # one whose files are incomplete stayed PENDING
    ready = [logged for logged in existing if str(logged.status) == "READY"]
    done = [logged for logged in ready if has_files(logged.artifact_location)]
    if done and (package is None or _PACKAGED_TAG in done[0].tags):
        return done[0]
    row = model.table().to_pylist()[0]
    if existing:
        logged = (done or ready or list(existing))[0]
    else:
        logged = client.create_logged_model(
            experiment,
            name=row["name"],
            source_run_id=mlflow_id,
            tags={SNAPSHOT_TAG: model.id, "videoar.digest": row["digest"]},
            params={"num_parameters": str(row["num_parameters"]), "step": str(row["step"])},
            model_type=row["kind"],
        )
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        if package is None:
            store.fetch_folder(row["files"], folder)
        elif package(model, folder):
            _write_flavor(folder, logged.model_id)
        client.log_model_artifacts(logged.model_id, str(folder))
    if package is not None:
        client.set_logged_model_tags(logged.model_id, {_PACKAGED_TAG: "true"})
    # last: a model whose files are incomplete stays PENDING
    return client.finalize_logged_model(logged.model_id, "READY")


def _write_flavor(folder: Path, model_id: str) -> None:
    """Write the file by which `mlflow.pyfunc` loads a folder: it names a module, no pickle."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    params = [ParamSpec("seed", "long", 0), ParamSpec("seconds", "double", None)]
    model = Model(model_id=model_id, signature=ModelSignature(params=ParamSchema(params)))
    model.add_flavor(
        "python_function",
        loader_module=_LOADER,
        python_version=platform.python_version(),
        config={"text_encoder": "", "device": ""},
    )
    model.save(folder / "MLmodel")
