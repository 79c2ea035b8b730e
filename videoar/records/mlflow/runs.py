"""The MLflow run of a run.

Logged are the semantic config as params, stage metrics, scores and training curves as metrics, the
report page as artifact, and each trained checkpoint as a logged model. A point that MLflow has is
not sent again, so each writer may be repeated.
"""

import json
import math
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from videoar.contracts.names import MODELS, SCORES
from videoar.core.errors import VideoARError
from videoar.core.types import Json
from videoar.pipeline.spec import PipelineSpec, parse_pipeline
from videoar.pipeline.work.progress import Curve
from videoar.records.mlflow.client import (
    RUN_TAG,
    connect,
    experiment_id,
    find_run,
    is_absent,
    origin_tags,
)
from videoar.records.mlflow.logged_models import log_model
from videoar.records.run import Run
from videoar.records.run_record import load_run, run_ids
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

_STATUS_TAG = "videoar.status"
_PARAM_CHARS = 500  # chosen: older MLflow servers reject longer values (current limit: 6,000)
_KEY_CHARS = 250  # limit of MLflow
# MLflow has RUNNING, SCHEDULED, FINISHED, FAILED and KILLED; the exact status is in a tag.
_MLFLOW_STATUS = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED"}


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
    mirror = RunMirror(store, run, spec)
    client, mlflow_id = mirror.client, mirror.id
    mirror.log(_metrics(store, run))
    if page is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "report.html"
            path.write_bytes(page)
            client.log_artifact(mlflow_id, str(path))
    for snapshot in _snapshots(store, run, MODELS):
        log_model(client, store, mirror.experiment, mlflow_id, snapshot)
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
    has_none = is_absent(store) and not repair
    statuses = {} if has_none else _mirrored_statuses(connect(store, writes=repair))
    # a run that has succeeded changes no more; others may have been resumed
    open_ids = [run_id for run_id in run_ids(store) if statuses.get(run_id) != "SUCCEEDED"]
    runs = [load_run(store, run_id) for run_id in open_ids]
    return [
        run
        for run in runs
        if run.has_ended and run.status not in {"UNKNOWN", statuses.get(run.run_id)}
    ]


def _mirrored_statuses(client: "MlflowClient") -> dict[str, str]:
    """Return the status that each run was mirrored with, without those that were cut off."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    result: dict[str, str] = {}
    token: str | None = ""
    while token is not None:
        page = client.search_runs(experiments, max_results=1000, page_token=token or None)
        for run in page:
            if run.info.status != "RUNNING" and RUN_TAG in run.data.tags:
                result[run.data.tags[RUN_TAG]] = run.data.tags.get(_STATUS_TAG, "")
        token = page.token or None
    return result


class RunMirror:
    """The MLflow run of a run, created if it does not exist."""

    def __init__(self, store: Store, run: Run, spec: PipelineSpec | None) -> None:
        self.client = client = connect(store)
        self.experiment = experiment_id(client, store, run.pipeline)
        # by name: the values of each step; None is looked up where a point of it comes up
        self._logged: dict[str, dict[int, float] | None] = {}
        existing = find_run(client, self.experiment, run.run_id)
        if existing is not None:
            self.id = str(existing.info.run_id)
            self._logged = dict.fromkeys(existing.data.metrics)
            client.set_tag(self.id, _STATUS_TAG, run.status)
            client.update_run(self.id, "RUNNING")
            return
        tags = {"mlflow.runName": run.run_id, _STATUS_TAG: run.status, **origin_tags(run)}
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
            yield from curve_points(snapshot.dataset, json.loads(row["history_json"]))
    for snapshot in _snapshots(store, run, SCORES):
        for row in snapshot.table(columns=["metric", "value"]).to_pylist():
            if row["value"] is not None and math.isfinite(row["value"]):
                yield row["metric"].replace("@", "-"), row["value"], 0  # MLflow rejects `@`


def curve_points(dataset: str, curve: Curve) -> Iterator[tuple[str, float, int]]:
    """Yield (name, value, step) of a training curve."""
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
