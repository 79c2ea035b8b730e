"""Mirror of run records in MLflow: one MLflow run per run, written when the run has ended.

The store is the source of truth: if MLflow is unavailable, the run succeeds with a warning and a
later `record_run` writes the mirror. Logged are the semantic config as params, stage metrics,
scores and training curves as metrics, the report page as artifact, each trained checkpoint as a
logged model, and promotions as aliases of a registered model.
"""

import json
import logging
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from videoar.contracts.names import MODELS, RELEASES, SCORES
from videoar.core.settings import set_defaults, settings
from videoar.pipeline.spec import PipelineSpec
from videoar.records.run_record import Run
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)
_PARAM_CHARS = 500  # chosen: older MLflow servers reject longer values (current limit: 6,000)
_RUN_TAG, _SNAPSHOT_TAG = "videoar.run_id", "videoar.snapshot"
# MLflow has RUNNING, SCHEDULED, FINISHED, FAILED and KILLED; the exact status is in a tag.
_MLFLOW_STATUS = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED"}


def tracking_uri(store: Store) -> str:
    """Return the MLflow URI: the setting, else an SQLite file beside a local store."""
    if settings().mlflow_uri:
        return settings().mlflow_uri
    parts = urlsplit(store.url)
    folder = Path(parts.path) if parts.scheme == "file" else Path.cwd() / ".videoar"
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def record_run(store: Store, spec: PipelineSpec, run: Run, page: bytes | None) -> str:
    """Create or update the MLflow run of a finished run; return the MLflow run id.

    Args:
        store: where the run is recorded.
        spec: its pipeline, for the params.
        run: its state.
        page: its report page, None if there is none.

    Raises:
        Exception: any error of MLflow; the caller must not fail the run for it.
    """
    # Before the import: MLflow reads both settings once, at import time.
    set_defaults(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_ENABLE_ASYNC_LOGGING="false")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # else it logs every database migration

    uri = tracking_uri(store)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = _experiment(client, uri, run.pipeline)
    # by tag, because MLflow chooses its run ids: a resumed run updates its mirror
    existing = client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{run.run_id}'")
    tags = {_RUN_TAG: run.run_id, "mlflow.runName": run.run_id, "videoar.status": run.status}
    if existing:
        mlflow_id = str(existing[0].info.run_id)
        client.set_tag(mlflow_id, "videoar.status", run.status)
    else:
        # MLflow counts milliseconds
        started = int(run.started_at * 1000)
        mlflow_id = str(client.create_run(experiment, started, tags).info.run_id)
        # once: MLflow rejects another value of a param
        params = [Param(key, value[:_PARAM_CHARS]) for key, value in _params(spec)]
        client.log_batch(mlflow_id, params=params)
    now = int((run.started_at + run.seconds) * 1000)
    metrics = [Metric(name, value, now, step) for name, value, step in _metrics(store, run)]
    client.log_batch(mlflow_id, metrics=metrics)  # the client splits it into requests of 1,000
    if page is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.html"
            path.write_bytes(page)
            client.log_artifact(mlflow_id, str(path))
    for snapshot in _snapshots(store, run, MODELS):
        _log_model(client, store, experiment, mlflow_id, snapshot)
    _mirror_promotions(client, store, run)
    # last: a first mirror that was cut off stays RUNNING
    client.set_terminated(mlflow_id, _MLFLOW_STATUS.get(run.status, "FAILED"), now)
    return mlflow_id


def _experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """Return the id of the pipeline's experiment; create it if it does not exist."""
    existing = client.get_experiment_by_name(name)
    if existing is not None:
        return str(existing.experiment_id)
    # Without a location MLflow writes artifacts of a local database to ./mlruns of the process.
    is_local = uri.startswith("sqlite:///")
    folder = Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts"
    location = folder.as_uri() if is_local else None
    return str(client.create_experiment(name, artifact_location=location))


def _params(spec: PipelineSpec) -> Iterator[tuple[str, str]]:
    yield from ((f"inputs.{name}", url) for name, url in spec.inputs.items())
    for stage in spec.stages:
        for key, value in stage.config.semantic().items():
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"{stage.name}.{key}", text


def _metrics(store: Store, run: Run) -> Iterator[tuple[str, float, int]]:
    """Yield (name, value, step) of stages, training curves and scores."""
    for stage in run.stages:
        yield f"{stage.name}/seconds", stage.seconds, 0
        yield f"{stage.name}/rows_out", float(stage.rows.out), 0
        yield f"{stage.name}/rows_rejected", float(stage.rows.rejected), 0
        yield from ((f"{stage.name}/{name}", value, 0) for name, value in stage.metrics.items())
    for snapshot in _snapshots(store, run, MODELS):
        for row in snapshot.table(columns=["history_json"]).to_pylist():
            yield from _curves(snapshot.dataset, json.loads(row["history_json"]))
    for snapshot in _snapshots(store, run, SCORES):
        for row in snapshot.table(columns=["metric", "value"]).to_pylist():
            if row["value"] is not None and math.isfinite(row["value"]):
                yield row["metric"].replace("@", "-"), row["value"], 0  # MLflow rejects `@`


def _curves(dataset: str, history: list[dict[str, float]]) -> Iterator[tuple[str, float, int]]:
    for point in history:
        step = int(point["step"])
        for name, value in point.items():
            if name != "step" and math.isfinite(value):
                yield f"{dataset}/{name}", float(value), step


def _snapshots(store: Store, run: Run, contract: str) -> Iterator[Snapshot]:
    for snapshot_id in run.outputs.values():
        snapshot = store.snapshot(snapshot_id)
        if snapshot.contract == contract:
            yield snapshot


def _log_model(
    client: "MlflowClient", store: Store, experiment: str, mlflow_id: str, model: Snapshot
) -> None:
    """Log a checkpoint with its files as a logged model, once per snapshot."""
    of_snapshot = f"tags.`{_SNAPSHOT_TAG}` = '{model.id}'"
    if client.search_logged_models([experiment], filter_string=of_snapshot):
        return
    row = model.table().to_pylist()[0]
    logged = client.create_logged_model(
        experiment,
        name=row["name"],
        source_run_id=mlflow_id,
        tags={_SNAPSHOT_TAG: model.id, "videoar.digest": row["digest"]},
        params={"num_parameters": str(row["num_parameters"]), "step": str(row["step"])},
        model_type=row["kind"],
    )
    with tempfile.TemporaryDirectory() as folder:
        store.fetch_folder(row["files"], Path(folder))
        client.log_model_artifacts(logged.model_id, folder)
    # last: a model whose files are incomplete stays PENDING
    client.finalize_logged_model(logged.model_id, "READY")


def _mirror_promotions(client: "MlflowClient", store: Store, run: Run) -> None:
    """Set the alias of the registered model to the model that this run promoted."""
    from mlflow.exceptions import MlflowException

    for decision in _snapshots(store, run, RELEASES):
        rule = decision.table().to_pylist()[0]
        if store.refs.head(rule["ref"]) != rule["candidate"]:
            continue  # not promoted, or promoted and replaced or rolled back since
        name = f"videoar-{run.pipeline}"
        try:
            # created without a look-up before, which could lose a race with another run
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = client.search_model_versions(f"name = '{name}'")
        existing = [v for v in versions if v.tags.get(_SNAPSHOT_TAG) == rule["candidate"]]
        version = existing[0].version if existing else _new_version(client, name, rule["candidate"])
        # an alias has letters, digits, _ and - only; a ref may contain /
        client.set_registered_model_alias(name, rule["ref"].replace("/", "-"), str(version))


def _new_version(client: "MlflowClient", name: str, candidate: str) -> str:
    tags = {_SNAPSHOT_TAG: candidate}
    version = client.create_model_version(name, source=f"snapshot://{candidate}", tags=tags)
    return str(version.version)
