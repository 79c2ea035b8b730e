"""MLflow as a mirror of the ledger: one MLflow run per run, written when the run has ended.

The ledger is the truth, so an MLflow server that is down costs a warning and a later
`record_run`, never a run. Logged: semantic config as params, stage and score metrics, loss curves,
the report page as artifact, each trained checkpoint as a logged model, and promotions as aliases.
"""

import json
import logging
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from videoar.contracts.names import MODELS, RELEASES, SCORES
from videoar.core.settings import set_defaults, settings
from videoar.pipeline.spec import PipelineSpec
from videoar.records.run_record import Run
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_PARAM_CHARS = 500
_RUN_TAG = "videoar.run_id"


def tracking_uri(store: Store) -> str:
    """Return the MLflow URI: the setting, else an SQLite file beside a local store."""
    if settings().mlflow_uri:
        return settings().mlflow_uri
    parts = urlsplit(store.url)
    folder = Path(parts.path) if parts.scheme == "file" else Path.cwd() / ".videoar"
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def record_run(store: Store, spec: PipelineSpec, run: Run, page: bytes | None) -> str:
    """Write a finished run to MLflow, or renew it there; returns the MLflow run id.

    Raises:
        Exception: whatever MLflow raises; the caller decides that a run outlives it.
    """
    set_defaults(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_ENABLE_ASYNC_LOGGING="false")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its database migrations are not news

    uri = tracking_uri(store)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = _experiment(client, uri, run.pipeline)
    known = client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{run.run_id}'")
    tags = {_RUN_TAG: run.run_id, "mlflow.runName": run.run_id, "videoar.status": run.status}
    if known:
        mlflow_id: str = known[0].info.run_id
        client.set_tag(mlflow_id, "videoar.status", run.status)
    else:
        started = int(run.started_at * 1000)
        mlflow_id = client.create_run(experiment, started, tags).info.run_id
        params = [Param(key, value[:_PARAM_CHARS]) for key, value in _params(spec)]
        client.log_batch(mlflow_id, params=params)
    now = int((run.started_at + run.seconds) * 1000)
    metrics = [Metric(name, value, now, step) for name, value, step in _metrics(store, run)]
    for begin in range(0, len(metrics), 1000):
        client.log_batch(mlflow_id, metrics=metrics[begin : begin + 1000])
    with tempfile.TemporaryDirectory() as folder:
        if page is not None:
            (Path(folder) / "report.html").write_bytes(page)
            client.log_artifact(mlflow_id, str(Path(folder) / "report.html"))
    for snapshot in _snapshots(store, run, MODELS):
        _log_model(client, store, experiment, mlflow_id, snapshot)
    _mirror_promotions(client, store, run)
    ended = "FINISHED" if run.status == "SUCCEEDED" else "FAILED"
    client.set_terminated(mlflow_id, ended, now)
    return mlflow_id


def _experiment(client: Any, uri: str, name: str) -> str:  # noqa: ANN401 - MlflowClient
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = uri.startswith("sqlite:///")
    folder = Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts"
    location = folder.as_uri() if local else None
    return str(client.create_experiment(name, artifact_location=location))


def _params(spec: PipelineSpec) -> Iterator[tuple[str, str]]:
    yield from ((f"inputs.{name}", url) for name, url in spec.inputs.items())
    for stage in spec.stages:
        for key, value in stage.config.semantic().items():
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"{stage.name}.{key}", text


def _metrics(store: Store, run: Run) -> Iterator[tuple[str, float, int]]:
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
                yield row["metric"].replace("@", "-"), row["value"], 0


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


def _log_model(client: Any, store: Store, experiment: str, mlflow_id: str, model: Snapshot) -> None:  # noqa: ANN401 - MlflowClient
    """Log a checkpoint as a logged model, once per snapshot, its files included."""
    found = client.search_logged_models(
        [experiment], filter_string=f"tags.`videoar.snapshot` = '{model.id}'"
    )
    if found:
        return
    row = model.table().to_pylist()[0]
    logged = client.create_logged_model(
        experiment,
        name=row["name"],
        source_run_id=mlflow_id,
        tags={"videoar.snapshot": model.id, "videoar.digest": row["digest"]},
        params={"num_parameters": str(row["num_parameters"]), "step": str(row["step"])},
        model_type=row["kind"],
    )
    with tempfile.TemporaryDirectory() as folder:
        store.fetch_folder(row["files"], Path(folder))
        client.log_model_artifacts(logged.model_id, folder)
    client.finalize_logged_model(logged.model_id, "READY")


def _mirror_promotions(client: Any, store: Store, run: Run) -> None:  # noqa: ANN401 - MlflowClient
    """Point a registered model's alias at what this run promoted."""
    from mlflow.exceptions import MlflowException

    for decision in _snapshots(store, run, RELEASES):
        rule = decision.table().to_pylist()[0]
        if store.refs.head(rule["ref"]) != rule["candidate"]:
            continue
        name = f"videoar-{run.pipeline}"
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = client.search_model_versions(f"name = '{name}'")
        tagged = [v for v in known if v.tags.get("videoar.snapshot") == rule["candidate"]]
        version = tagged[0].version if tagged else _new_version(client, name, rule["candidate"])
        client.set_registered_model_alias(name, rule["ref"].replace("/", "-"), version)


def _new_version(client: Any, name: str, candidate: str) -> str:  # noqa: ANN401 - MlflowClient
    tags = {"videoar.snapshot": candidate}
    return str(
        client.create_model_version(name, source=f"snapshot://{candidate}", tags=tags).version
    )
