"""Mirror of run records in MLflow: one MLflow run per run, complete when the run has ended.

The store is the source of truth: if MLflow is unavailable, the run succeeds with a warning and a
later `record_run` writes the mirror. While a run goes on, `LiveMirror` sends the curves of its
trainings; a point that MLflow has is not sent again, so each writer may be repeated. Logged are the
semantic config as params, stage metrics, scores and training curves as metrics, the report page as
artifact, each trained checkpoint as a logged model, and promotions as aliases of a registered
model.
"""

import json
import logging
import math
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from videoar.contracts.names import MODELS, RELEASES, SCORES
from videoar.core.settings import set_defaults, settings
from videoar.pipeline.spec import PipelineSpec
from videoar.pipeline.work.progress import Curve
from videoar.records.run_record import Run, load_run
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)
_PARAM_CHARS = 500  # chosen: older MLflow servers reject longer values (current limit: 6,000)
_RUN_TAG, _SNAPSHOT_TAG = "videoar.run_id", "videoar.snapshot"
_CALL_TIMEOUT_S = "8"
"""chosen: for connection and answer each; a server that does not answer costs a run 10 s."""
_CLOSE_TIMEOUT_S = 30.0  # chosen: creating the local database takes seconds
_RETRY_S = 60.0
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
    mirror = _RunMirror(store, spec, run)
    client, mlflow_id = mirror.client, mirror.id
    mirror.log(_metrics(store, run))
    if page is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.html"
            path.write_bytes(page)
            client.log_artifact(mlflow_id, str(path))
    for snapshot in _snapshots(store, run, MODELS):
        _log_model(client, store, mirror.experiment, mlflow_id, snapshot)
    _mirror_promotions(client, store, run)
    # last: a first mirror that was cut off stays RUNNING
    if run.has_ended and run.status != "UNKNOWN":
        ended = int((run.started_at + run.seconds) * 1000)
        client.set_terminated(mlflow_id, _MLFLOW_STATUS.get(run.status, "FAILED"), ended)
    return mlflow_id


class _RunMirror:
    """The MLflow run of a run, created if it does not exist."""

    def __init__(self, store: Store, spec: PipelineSpec, run: Run) -> None:
        # Before the import: MLflow reads settings once, at import time. Without the limits, one
        # call to a server that is silent takes up to 15 minutes.
        set_defaults(
            MLFLOW_DISABLE_TELEMETRY="true",
            MLFLOW_ENABLE_ASYNC_LOGGING="false",
            MLFLOW_HTTP_REQUEST_TIMEOUT=_CALL_TIMEOUT_S,
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        )
        from mlflow import MlflowClient
        from mlflow.entities import Param

        # else it logs every database migration
        logging.getLogger("mlflow").setLevel(logging.WARNING)

        uri = tracking_uri(store)
        self.client = client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.experiment = _experiment(client, uri, run.pipeline)
        # by tag, because MLflow chooses its run ids: a resumed run updates its mirror
        existing = client.search_runs([self.experiment], f"tags.`{_RUN_TAG}` = '{run.run_id}'")
        tags = {_RUN_TAG: run.run_id, "mlflow.runName": run.run_id, "videoar.status": run.status}
        # by name: the values of each step; None is looked up where a point of it comes up
        self._logged: dict[str, dict[int, float] | None] = {}
        if existing:
            self.id = str(existing[0].info.run_id)
            self._logged = dict.fromkeys(existing[0].data.metrics)
            client.set_tag(self.id, "videoar.status", run.status)
            client.update_run(self.id, "RUNNING")
            return
        # MLflow counts milliseconds
        started = int(run.started_at * 1000)
        self.id = str(client.create_run(self.experiment, started, tags).info.run_id)
        # once: MLflow rejects another value of a param
        params = [Param(key, value[:_PARAM_CHARS]) for key, value in _params(spec)]
        client.log_batch(self.id, params=params)

    def log(self, metrics: Iterable[tuple[str, float, int]]) -> None:
        """Log (name, value, step), without the points that MLflow has.

        MLflow would keep a second point of a step. At step 0, where what has no curve is, another
        value is another point, and the newest one counts.
        """
        from mlflow.entities import Metric

        now, batch = int(time.time() * 1000), []
        for name, value, step in metrics:
            if (logged := self._logged.setdefault(name, {})) is None:
                history = self.client.get_metric_history(self.id, name)
                self._logged[name] = logged = {point.step: point.value for point in history}
            if step not in logged or (step == 0 and logged[step] != value):
                batch.append(Metric(name, value, now, step))
        self.client.log_batch(self.id, metrics=batch)  # the client splits it into 1,000 a request
        for metric in batch:
            self._logged.setdefault(metric.key, {})[metric.step] = metric.value  # type: ignore[index]


class LiveMirror:
    """Sends the curves of trainings to MLflow while they go on, from a thread of its own.

    Whoever offers a curve never waits. What cannot be sent now is sent with a later curve, or by
    `record_run` at the end.
    """

    def __init__(self, store: Store, spec: PipelineSpec, run_id: str) -> None:
        self._store, self._spec, self._run_id = store, spec, run_id
        # a curve is all of its points so far, so the newest one of each stage is enough
        self._curves: dict[str, Curve] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def offer(self, stage: str, curve: Curve) -> None:
        """Send a curve soon, unless a longer one comes first."""
        with self._changed:
            self._curves[stage] = curve
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Send what was offered last, if that is soon."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        mirror: _RunMirror | None = None
        has_warned = False
        while (curves := self._take()) is not None:
            try:
                mirror = mirror or _RunMirror(
                    self._store, self._spec, load_run(self._store, self._run_id)
                )
                for stage, curve in curves.items():
                    mirror.log(_curve(stage, curve))
            except Exception as error:  # noqa: BLE001 - MLflow is a mirror: if it is down, warn
                mirror = None  # reads what has arrived
                if not has_warned:
                    what = "metrics are not in MLflow yet, sent later or at the end of the run"
                    logger.warning("%s: %s", what, error)
                has_warned = True
                with self._changed:
                    if self._changed.wait_for(lambda: self._is_closed, _RETRY_S):
                        return
            else:
                has_warned = False

    def _take(self) -> dict[str, Curve] | None:
        """Wait for curves; return None once closed and all are sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._curves)
            curves, self._curves = self._curves, {}
            return curves or None


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
            yield from _curve(snapshot.dataset, json.loads(row["history_json"]))
    for snapshot in _snapshots(store, run, SCORES):
        for row in snapshot.table(columns=["metric", "value"]).to_pylist():
            if row["value"] is not None and math.isfinite(row["value"]):
                yield row["metric"].replace("@", "-"), row["value"], 0  # MLflow rejects `@`


def _curve(dataset: str, curve: Curve) -> Iterator[tuple[str, float, int]]:
    for point in curve:
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
