"""A run as events of OpenLineage, which lineage catalogues (Marquez, DataHub, ...) read.

    run   START ........................................ COMPLETE | FAIL | ABORT
    input       START COMPLETE                                      a listing of videos
    stage             START .. COMPLETE  START .. FAIL              parent: the run

The record of the run and the commits of its snapshots are all that is read, no table. Ids depend on
the run id and the name of the stage alone, so a second export names the same runs.

Specification: https://openlineage.io/spec/2-0-2/OpenLineage.json and `spec/facets/`.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import NAMESPACE_URL, uuid5

import yaml

from videoar import __version__
from videoar.contracts.contract import load_contract
from videoar.core.types import Json, Row
from videoar.records.names import find_run
from videoar.records.run import Run, StageRun
from videoar.records.run_record import events_of, load_run
from videoar.storage.layout import table_folder
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

_SPEC = "https://openlineage.io/spec"
_PRODUCER = f"pkg:pypi/videoar@{__version__}"
_FACETS = {
    "dataSource": "1-0-1/DatasourceDatasetFacet",
    "errorMessage": "1-0-1/ErrorMessageRunFacet",
    "inputStatistics": "1-0-0/InputStatisticsInputDatasetFacet",
    "jobType": "2-0-4/JobTypeJobFacet",
    "nominalTime": "1-0-1/NominalTimeRunFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
    "parent": "1-2-0/ParentRunFacet",
    "processing_engine": "1-1-1/ProcessingEngineRunFacet",
    "schema": "1-2-0/SchemaDatasetFacet",
    "sourceCode": "1-0-1/SourceCodeJobFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet",
}
"""Version and name of the schema of each standard facet."""
_FIELD = {"name", "type", "description"}
_ENDS = {
    "SUCCEEDED": "COMPLETE", "CACHED": "COMPLETE", "FAILED": "FAIL", "TIMED_OUT": "FAIL",
    "GATE_BLOCKED": "FAIL", "CANCELLED": "ABORT", "INTERRUPTED": "ABORT",
}  # fmt: skip
"""Other states have not ended; of a run that is UNKNOWN it is not known whether it has."""


def openlineage(store: Store, name: str) -> Iterator[Row]:
    """Yield the RunEvents of a run, of its listed inputs and its stages, in order of time.

    Stages that were skipped or have not started have no events. Namespace of jobs and datasets is
    the URL of the store; what lies outside of it has the names that OpenLineage gives to files.

    Args:
        store: where the run is recorded.
        name: of the run; a snapshot means the run that made it.

    Raises:
        ConfigError: no run matches, or several do.
    """
    yield from _Export(store, load_run(store, find_run(store, name))).events()


class _Export:
    def __init__(self, store: Store, run: Run) -> None:
        self._store, self._run = store, run
        self._log = events_of(store, run.run_id)

    def events(self) -> Iterator[Row]:
        run, last = self._run, self._log[-1]["time"] if self._log else self._run.started_at
        document = yaml.safe_dump(run.document, sort_keys=False)
        job = self._job("", "PIPELINE")
        job["facets"]["sourceCode"] = _facet("sourceCode", language="YAML", sourceCode=document)
        facets = self._run_facets(run)
        if window := (run.trigger or {}).get("window"):
            facets["nominalTime"] = _facet("nominalTime", nominalStartTime=window)
        event = {"run": {"runId": self._id(), "facets": facets}, "job": job}
        end = _ENDS.get(run.status)
        inner = [e for part in (*self._listings(), *self._stages(last)) for e in part]
        yield _event("START", run.started_at, event)
        # sorting is stable: a stage that ended when the next one began comes first
        yield from (_event(*entry) for entry in sorted(inner, key=lambda entry: entry[1]))
        if end:
            yield _event(end, last, event)

    def _listings(self) -> Iterator[list[tuple[str, float, Row]]]:
        listed = {e["name"]: e["time"] for e in self._log if e["kind"] == "input"}
        for name, of_input in self._run.inputs.items():
            inner = {
                "run": {"runId": self._id(name), "facets": {"parent": self._parent()}},
                "job": self._job(name, "LISTING"),
                "inputs": [_external(self._run.document["inputs"][name])],
            }
            outputs = {"outputs": [self._output(of_input.snapshot)]}
            time = listed[name]
            yield [("START", time, inner), ("COMPLETE", time, inner | outputs)]

    def _stages(self, last: float) -> Iterator[list[tuple[str, float, Row]]]:
        times = {e["stage"]["name"]: e["time"] for e in self._log if e["kind"] == "stage"}
        for stage in self._run.stages:
            if stage.started_at is None or stage.status in {"SKIPPED", "PENDING"}:
                continue
            facets = self._run_facets(stage) | {"parent": self._parent()}
            inner = {
                "run": {"runId": self._id(stage.name), "facets": facets},
                "job": self._job(stage.name, "STAGE"),
                "inputs": list(map(self._input, dict.fromkeys(stage.inputs.values()))),
            }
            made = list(map(self._output, filter(None, (stage.snapshot, stage.rejects))))
            events = [("START", stage.started_at, inner)]
            if end := _ENDS.get(stage.status):
                # the record of one that was killed ends with its start
                time = last if end == "ABORT" else times[stage.name]
                events.append((end, time, inner | {"outputs": made}))
            yield events

    def _id(self, stage: str = "") -> str:
        return str(uuid5(NAMESPACE_URL, f"videoar:runs/{self._run.run_id}/{stage}"))

    def _job(self, name: str, kind: str) -> Row:
        facet = _facet("jobType", processingType="BATCH", integration="VIDEOAR", jobType=kind)
        full_name = ".".join(filter(None, (self._run.pipeline, name)))
        return {"namespace": self._store.url, "name": full_name, "facets": {"jobType": facet}}

    def _parent(self) -> Row:
        job = {"namespace": self._store.url, "name": self._run.pipeline}
        return _facet("parent", run={"runId": self._id()}, job=job)

    def _run_facets(self, state: Run | StageRun) -> Row:
        """Return the facets of a run or a stage; `videoar_run` has what no standard facet has."""
        software = self._run.software
        ours = {
            "runId": self._run.run_id,
            "status": state.status,
            "code": state.code,
            **({"user": software.user, "gitCommit": software.commit} if software else {}),
        }
        if isinstance(state, StageRun):
            ours |= {"type": state.type, "reason": state.reason, "fingerprint": state.fingerprint}
        engine = {"name": "videoar", "version": self._run.code_version}
        facets = {
            "processing_engine": _facet("processing_engine", **engine),
            "videoar_run": _facet("", **{key: value for key, value in ours.items() if value}),
        }
        if state.error:
            error = {"message": state.error, "programmingLanguage": "Python"}
            facets["errorMessage"] = _facet("errorMessage", **error)
        return facets

    def _input(self, snapshot_id: str) -> Row:
        snapshot = self._store.snapshot(snapshot_id)
        facet = _facet("inputStatistics", **_counts(snapshot))
        return self._dataset(snapshot) | {"inputFacets": {"inputStatistics": facet}}

    def _output(self, snapshot_id: str) -> Row:
        snapshot = self._store.snapshot(snapshot_id)
        facet = _facet("outputStatistics", **_counts(snapshot))
        return self._dataset(snapshot) | {"outputFacets": {"outputStatistics": facet}}

    def _dataset(self, snapshot: Snapshot) -> Row:
        location = f"{self._store.url}/{table_folder(snapshot.dataset)}"
        columns = load_contract(snapshot.contract).columns
        facets = {
            "dataSource": _facet("dataSource", name=self._store.url, uri=location),
            "schema": _facet("schema", fields=[c.model_dump(include=_FIELD) for c in columns]),
            "version": _facet("version", datasetVersion=snapshot.id),
        }
        return {"namespace": self._store.url, "name": snapshot.dataset, "facets": facets}


def _counts(snapshot: Snapshot) -> dict[str, int]:
    size_bytes, files = snapshot.commit.size_bytes, len(snapshot.files)
    return {"rowCount": snapshot.rows, "size": size_bytes, "fileCount": files}


def _external(url: str) -> Row:
    """Return an input of a pipeline as a dataset: folder, bucket or rendered videos."""
    parts = urlsplit(url)
    if parts.scheme in {"", "file"}:
        return {"namespace": "file", "name": unquote(parts.path) if parts.scheme else url}
    name = parts.path.strip("/") or parts.query or "/"
    return {"namespace": f"{parts.scheme}://{parts.netloc}", "name": name}


def _event(kind: str, time: float, fields: Mapping[str, Any]) -> Row:
    return {
        "eventType": kind,
        "eventTime": datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds"),
        **fields,
        "producer": _PRODUCER,
        "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
    }


def _facet(name: str, /, **fields: Json) -> Row:
    """Return a facet; one of our own has the schema of any run facet."""
    version, _, kind = _FACETS.get(name, "").partition("/")
    path = f"facets/{version}/{kind}.json#/$defs/{kind}" if name else ""
    schema = path or "2-0-2/OpenLineage.json#/$defs/RunFacet"
    return {"_producer": _PRODUCER, "_schemaURL": f"{_SPEC}/{schema}", **fields}
