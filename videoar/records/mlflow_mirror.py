"""Mirror of run records and refs in MLflow: one MLflow run per run, one alias per ref of a model.

The store is the source of truth: if MLflow is unavailable, the run succeeds with a warning, and
`videoar doctor --fix` writes what is missing. While a run goes on, `LiveMirror` sends the curves of
its trainings; a point that MLflow has is not sent again, so each writer may be repeated. Logged are
the semantic config as params, stage metrics, scores and training curves as metrics, the report page
as artifact, each trained checkpoint as a logged model, and models that a ref points at as versions
of a registered model, which `mlflow.pyfunc.load_model` loads without pickle.
"""

import json
import logging
import math
import os
import platform
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from videoar.contracts.names import MODELS, SCORES
from videoar.core.errors import VideoARError, one_line
from videoar.core.settings import set_defaults, settings
from videoar.core.types import Json
from videoar.pipeline.spec import PipelineSpec, parse_pipeline
from videoar.pipeline.work.progress import Curve
from videoar.records import mlflow_database
from videoar.records.run import Run
from videoar.records.run_record import load_run, run_ids
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities import Run as MlflowRun
    from mlflow.entities.model_registry import ModelVersion

Package = Callable[[Snapshot, Path], bool]
"""Writes the files of a model into a new folder; returns whether it generates videos."""

logger = logging.getLogger(__name__)
_PARAM_CHARS = 500  # chosen: older MLflow servers reject longer values (current limit: 6,000)
_KEY_CHARS = 250  # limit of MLflow
_RUN_TAG, _STATUS_TAG, _SNAPSHOT_TAG = "videoar.run_id", "videoar.status", "videoar.snapshot"
_PACKAGED_TAG = "videoar.packaged"
_LOADER = "videoar.admin.mlflow_loader"
_CALL_TIMEOUT_S = "8"
"""chosen: for connection and answer each; a server that does not answer costs a run 10 s."""
_CLOSE_TIMEOUT_S = 30.0  # chosen: creating the local database takes seconds
_RETRY_S = 60.0
# MLflow has RUNNING, SCHEDULED, FINISHED, FAILED and KILLED; the exact status is in a tag.
_MLFLOW_STATUS = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED"}


def tracking_uri(store: Store) -> str:
    """Return the MLflow URI: the setting, else an SQLite file beside a local store."""
    path = mlflow_database.database(store)
    return mlflow_database.sqlite_uri(path) if path else settings().mlflow_uri


def registered_name(store: Store) -> str:
    """Return the name of the registered model whose aliases are the refs of a store.

    `videoar` in a database of its own, with the address of the store where several may meet.
    """
    parts = urlsplit(store.url)
    if parts.scheme == "file" and mlflow_database.database(store):
        return "videoar"
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", f"{parts.netloc}{unquote(parts.path)}").strip("-")
    return f"videoar-{slug}"


def alias_of(ref: str) -> str:
    """Return the alias of a ref: letters, digits, `_` and `-` only."""
    return ref.replace("/", "-")


def _client(store: Store, *, writes: bool = True) -> "MlflowClient":
    """Connect to MLflow, with time limits; a local database is created, repaired and relocated.

    Raises:
        DamagedError: `writes` is False, and it is damaged or names artifacts of another folder.
    """
    _import_mlflow()
    from mlflow import MlflowClient

    path = mlflow_database.database(store)
    if path and writes:
        mlflow_database.complete(path, _open_database)
        mlflow_database.relocate(path)
    elif path:
        mlflow_database.require_usable(path)
    uri = tracking_uri(store)
    return _open_database(uri) if path else MlflowClient(tracking_uri=uri, registry_uri=uri)


def import_ahead(store: Store) -> None:
    """Import MLflow in a thread: it takes a second, while the caller waits for the store."""

    def run() -> None:
        with suppress(Exception):  # raised again, and reported, where it is needed
            _import_mlflow()
            for part in ("model_registry", "tracking") if mlflow_database.database(store) else ():
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


def record_run(store: Store, run: Run, page: bytes | None, spec: PipelineSpec | None = None) -> str:
    """Create or update the MLflow run of a finished run; return the MLflow run id.

    Args:
        store: where the run is recorded.
        run: its state.
        page: its report page, None if there is none.
        spec: its pipeline, for the params; None reads its document.

    Raises:
        Exception: any error of MLflow; the caller must not fail the run for it.
    """
    mirror = _RunMirror(store, run, spec)
    client, mlflow_id = mirror.client, mirror.id
    mirror.log(_metrics(store, run))
    if page is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.html"
            path.write_bytes(page)
            client.log_artifact(mlflow_id, str(path))
    for snapshot in _snapshots(store, run, MODELS):
        _log_model(client, store, mirror.experiment, mlflow_id, snapshot)
    # last: a first mirror that was cut off stays RUNNING
    if run.has_ended and run.status != "UNKNOWN":
        ended = int((run.started_at + run.seconds) * 1000)
        client.set_terminated(mlflow_id, _MLFLOW_STATUS.get(run.status, "FAILED"), ended)
    return mlflow_id


def unmirrored(store: Store, *, repair: bool = False) -> list[Run]:
    """Return the runs that have ended and whose mirror is missing, cut off or of an earlier end.

    Args:
        store: where the runs are.
        repair: move a broken local database aside, and write artifacts' addresses again.

    Raises:
        DamagedError: the local database is damaged, or names artifacts of another folder.
        Exception: any error of MLflow.
    """
    is_absent = _is_absent(store) and not repair
    statuses = {} if is_absent else _mirrored_statuses(_client(store, writes=repair))
    # a run that has succeeded changes no more; others may have been resumed
    open_ids = [run_id for run_id in run_ids(store) if statuses.get(run_id) != "SUCCEEDED"]
    runs = [load_run(store, run_id) for run_id in open_ids]
    return [
        run
        for run in runs
        if run.has_ended and run.status not in {"UNKNOWN", statuses.get(run.run_id)}
    ]


def _is_absent(store: Store) -> bool:
    path = mlflow_database.database(store)
    return path is not None and not path.exists()


def _mirrored_statuses(client: "MlflowClient") -> dict[str, str]:
    """Return the status that each run was mirrored with, without those that were cut off."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    result: dict[str, str] = {}
    token: str | None = ""
    while token is not None:
        page = client.search_runs(experiments, max_results=1000, page_token=token or None)
        for run in page:
            if run.info.status != "RUNNING" and _RUN_TAG in run.data.tags:
                result[run.data.tags[_RUN_TAG]] = run.data.tags.get(_STATUS_TAG, "")
        token = page.token or None
    return result


class _RunMirror:
    """The MLflow run of a run, created if it does not exist."""

    def __init__(self, store: Store, run: Run, spec: PipelineSpec | None) -> None:
        self.client = client = _client(store)
        self.experiment = _experiment(client, store, run.pipeline)
        # by name: the values of each step; None is looked up where a point of it comes up
        self._logged: dict[str, dict[int, float] | None] = {}
        existing = _find_run(client, self.experiment, run.run_id)
        if existing is not None:
            self.id = str(existing.info.run_id)
            self._logged = dict.fromkeys(existing.data.metrics)
            client.set_tag(self.id, _STATUS_TAG, run.status)
            client.update_run(self.id, "RUNNING")
            return
        tags = {"mlflow.runName": run.run_id, _STATUS_TAG: run.status, **_origin(run)}
        # MLflow counts milliseconds
        started = int(run.started_at * 1000)
        self.id = str(client.create_run(self.experiment, started, tags).info.run_id)
        # once: MLflow rejects another value of a param
        _log_params(client, self.id, run, spec)

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
                    self._store, load_run(self._store, self._run_id), self._spec
                )
                for stage, curve in curves.items():
                    mirror.log(_curve(stage, curve))
            except Exception as error:  # noqa: BLE001 - MLflow is a mirror: if it is down, warn
                mirror = None  # reads what has arrived
                if not has_warned:
                    what = "metrics are not in MLflow yet, sent later, or by videoar doctor --fix"
                    logger.warning("%s: %s", what, one_line(error))
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


def _experiment(client: "MlflowClient", store: Store, name: str) -> str:
    """Return the id of the pipeline's experiment; create it if it does not exist."""
    existing = client.get_experiment_by_name(name)
    if existing is not None:
        return str(existing.experiment_id)
    # Without a location MLflow writes artifacts of a local database to ./mlruns of the process.
    path = mlflow_database.database(store)
    location = mlflow_database.artifacts(path) if path else None
    return str(client.create_experiment(name, artifact_location=location))


def _find_run(client: "MlflowClient", experiment: str, run_id: str) -> "MlflowRun | None":
    # by tag, because MLflow chooses its run ids: a resumed run updates its mirror
    runs = client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{run_id}'")
    return runs[0] if runs else None


def _origin(run: Run) -> dict[str, str]:
    """Return the tags that say which run something is of, who started it and with which code."""
    tags = {_RUN_TAG: run.run_id, "mlflow.source.name": run.source}
    if software := run.software:
        dirty = "" if software.is_clean in {True, None} else "-dirty"
        commit = {"mlflow.source.git.commit": software.commit + dirty} if software.commit else {}
        tags |= {"mlflow.user": software.user, **commit}
    return tags


def _log_params(
    client: "MlflowClient", mlflow_id: str, run: Run, spec: PipelineSpec | None
) -> None:
    from mlflow.entities import Param

    params = {
        re.sub(r"[^\w\-. /:]", "-", key)[:_KEY_CHARS]: text[:_PARAM_CHARS]
        for key, text in _params(run, spec)
    }
    client.log_batch(mlflow_id, params=[Param(key, text) for key, text in params.items()])


def _params(run: Run, spec: PipelineSpec | None) -> Iterator[tuple[str, str]]:
    with suppress(VideoARError):  # a document of an earlier version: its own values, no defaults
        spec = spec or parse_pipeline(run.document, run.source)
    if spec is None:
        yield from _flat("inputs", run.document.get("inputs", {}))
        yield from (pair for s in run.document["stages"].items() for pair in _flat(*s))
        return
    yield from _flat("inputs", dict(spec.inputs))
    for stage in spec.stages:
        yield from _flat(stage.name, stage.config.semantic())


def _flat(key: str, value: Json) -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested values, `a.b.0.c`; a list of plain values is one leaf."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(f"{key}.{name}", item)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for number, item in enumerate(value):
            yield from _flat(f"{key}.{number}", item)
    else:
        yield key, value if isinstance(value, str) else json.dumps(value)


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
    of_snapshot = f"tags.`{_SNAPSHOT_TAG}` = '{model.id}'"
    existing = client.search_logged_models([experiment], filter_string=of_snapshot)
    # one whose files are incomplete stayed PENDING
    done = [logged for logged in existing if str(logged.status) == "READY"]
    if done and (package is None or _PACKAGED_TAG in done[0].tags):
        return done[0]
    row = model.table().to_pylist()[0]
    if existing:
        logged = (done or list(existing))[0]
    else:
        logged = client.create_logged_model(
            experiment,
            name=row["name"],
            source_run_id=mlflow_id,
            tags={_SNAPSHOT_TAG: model.id, "videoar.digest": row["digest"]},
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


def mirrored_aliases(store: Store) -> dict[str, str | None]:
    """Return the snapshot that each alias of the registered model points at, as MLflow has it.

    Raises:
        Exception: any error of MLflow.
    """
    if _is_absent(store):
        return {}
    client, name = _client(store, writes=False), registered_name(store)
    registered = client.search_registered_models(f"name = '{name}'")
    aliases = registered[0].aliases if registered else {}
    versions = {alias: client.get_model_version(name, v) for alias, v in aliases.items()}
    return {alias: version.tags.get(_SNAPSHOT_TAG) for alias, version in versions.items()}


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
    client, name = _client(store), registered_name(store)
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
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get(_SNAPSHOT_TAG) == model.id:
            return version
    run = load_run(store, model.commit.provenance.run_id)
    experiment = _experiment(client, store, run.pipeline)
    existing = _find_run(client, experiment, run.run_id)
    mlflow_id = str(existing.info.run_id) if existing else record_run(store, run, None)
    logged = _log_model(client, store, experiment, mlflow_id, model, package)
    return client.create_model_version(
        name,
        source=logged.artifact_location,
        run_id=mlflow_id,
        tags={_SNAPSHOT_TAG: model.id, **_origin(run)},
        model_id=logged.model_id,
    )
