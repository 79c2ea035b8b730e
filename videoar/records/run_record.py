"""The run record: an immutable `run.json` and create-once events, folded into a `Run` on reading.

A run that was killed has no last event. Whether it still runs is therefore asked of the machine:
the driver leaves its host, pid and start time, and a driver that is gone means INTERRUPTED.
"""

import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from videoar.core.errors import ConfigError
from videoar.core.hardware import hardware
from videoar.core.types import Frozen, Json
from videoar.pipeline.fingerprint import Components
from videoar.pipeline.spec import PipelineSpec
from videoar.storage.store import Store

Status = Literal[
    "PENDING",
    "RUNNING",
    "SUCCEEDED",
    "CACHED",
    "FAILED",
    "GATE_BLOCKED",
    "CANCELLED",
    "INTERRUPTED",
]


class ShardCounts(Frozen):
    """Shards of a map stage; a loop or reduction is one shard."""

    planned: int = 0
    cached: int = 0
    done: int = 0
    quarantined: int = 0
    """Items refused with a typed reason."""


class RowCounts(Frozen):
    """Rows through a stage."""

    model_config = ConfigDict(validate_by_name=True)
    in_: int = Field(default=0, alias="in")
    out: int = 0
    rejected: int = 0


class InputRun(Frozen):
    """One listed input of a run, against the same input of the pipeline's run before."""

    snapshot: str
    sources: int
    new: int
    changed: int
    """Same address, other etag."""
    gone: int

    def __str__(self) -> str:
        moved = f"{self.new} new, {self.changed} changed, {self.gone} gone"
        return f"{self.sources} sources ({moved})"


class StageRun(Frozen):
    """One stage of a run."""

    name: str
    type: str
    status: Status = "PENDING"
    fingerprint: str | None = None
    snapshot: str | None = None
    rejects: str | None = None
    """Snapshot of the rows that it refused; equal rows may come with other rejects."""
    inputs: dict[str, str] = Field(default_factory=dict)
    shards: ShardCounts = ShardCounts()
    rows: RowCounts = RowCounts()
    seconds: float = 0.0
    metrics: dict[str, float] = Field(default_factory=dict)
    """Sums over the shards of a map stage, of all attempts, and what they mean."""
    reason: str = ""
    error: str | None = None


class Run(Frozen):
    """One execution of a pipeline."""

    run_id: str
    pipeline: str
    status: Status
    started_at: float
    seconds: float
    code_version: str
    pipeline_digest: str
    document: dict[str, Any]
    source: str
    from_: str | None = Field(default=None, alias="from")
    """The first stage that was asked for; None: all."""
    until: str | None = None
    """The last one."""
    stages: tuple[StageRun, ...]
    outputs: dict[str, str]
    """Stage name to snapshot id."""
    inputs: dict[str, InputRun] = Field(default_factory=dict)
    """The inputs that were listed, by name."""
    error: str | None = None

    def stage(self, name: str) -> StageRun:
        """Return one stage.

        Raises:
            ConfigError: the run has no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ConfigError(name, f"run {self.run_id} has no such stage")

    def public(self) -> dict[str, Any]:
        """Return what the command line prints as JSON."""
        return self.model_dump(mode="json", by_alias=True, exclude={"document"})


class RunLog:
    """Writes the record of one run."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.run_id = run_id
        self._store = store

    def create(
        self, spec: PipelineSpec, code_version: str, start: str | None, until: str | None
    ) -> None:
        """Create `run.json`; a resumed run finds its own and keeps it."""
        record = {
            "run_id": self.run_id,
            "pipeline": spec.name,
            "pipeline_digest": spec.digest,
            "document": dict(spec.document),
            "source": spec.source,
            "from": start,
            "until": until,
            "code_version": code_version,
            "started_at": time.time(),
            "stages": [{"name": stage.name, "type": stage.type} for stage in spec.stages],
        }
        self._store.ledger.create(_run_key(self.run_id), record)

    def event(self, kind: str, **fields: Json) -> None:
        """Append one event."""
        event = {"kind": kind, "time": time.time(), **fields}
        self._store.ledger.append(f"runs/{self.run_id}/events", event)

    def driver(self) -> None:
        """Say which process drives the run."""
        self.event(
            "driver",
            host=socket.gethostname(),
            pid=os.getpid(),
            born=_born(os.getpid()),
            hardware=hardware(),
        )

    def input(self, name: str, listed: InputRun) -> None:
        """Record what an input was found to be."""
        self.event("input", name=name, input=listed.model_dump(mode="json"))

    def stage(self, stage: StageRun, parts: Components | None = None) -> None:
        """Record a stage's new state."""
        extra = {"parts": parts} if parts else {}
        self.event("stage", stage=stage.model_dump(mode="json", by_alias=True), **extra)

    def finish(self, status: Status, error: str | None) -> None:
        """Record how the run ended."""
        self.event("finish", status=status, error=error)


def _run_key(run_id: str) -> str:
    return f"runs/{run_id}/run.json"


def _born(pid: int) -> str:
    """Return a process's start time in clock ticks, "" when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return ""


def driver_alive(events: list[dict[str, Any]]) -> bool:
    """Say whether the newest driver lives; a driver on another host counts as alive."""
    drivers = [event for event in events if event["kind"] == "driver"]
    if not drivers:
        return False
    last = drivers[-1]
    if last["host"] != socket.gethostname():
        return True
    born = _born(last["pid"])
    return bool(born) and born == last["born"]


def run_ids(store: Store) -> list[str]:
    """Return all run ids, oldest first."""
    keys = [key for key in store.ledger.list("runs/") if key.endswith("/run.json")]
    return sorted(key.split("/")[1] for key in keys)


def find_run_id(store: Store, name: str | None) -> str:
    """Return the id that a user means: itself, a unique prefix, or the latest for None.

    Raises:
        ConfigError: none or several runs match.
    """
    known = run_ids(store)
    if name is None:
        if not known:
            raise ConfigError(store.url, "no runs yet", "start one with: videoar run PIPELINE")
        return known[-1]
    found = [run_id for run_id in known if run_id.startswith(name)]
    if len(found) != 1:
        what = "several runs match" if found else "no such run"
        raise ConfigError(name, what, "videoar ls lists them")
    return found[0]


def events_of(store: Store, run_id: str) -> list[dict[str, Any]]:
    """Return a run's events in order."""
    keys = sorted(store.ledger.list(f"runs/{run_id}/events/"))
    records = (store.ledger.read(key) for key in keys)
    return [record for record in records if record is not None]


def load_run(store: Store, run_id: str) -> Run:
    """Fold a run's record and events into its state.

    Raises:
        ConfigError: no such run.
    """
    record = store.ledger.read(_run_key(run_id))
    if record is None:
        raise ConfigError(run_id, "no such run", "videoar ls lists them")
    events = events_of(store, run_id)
    stages = {raw["name"]: StageRun(**raw) for raw in record.pop("stages")}
    inputs: dict[str, InputRun] = {}
    status: Status = "PENDING"
    error = None
    for event in events:
        if event["kind"] == "stage":
            stage = StageRun.model_validate(event["stage"])
            stages[stage.name] = stage
        elif event["kind"] == "input":
            inputs[event["name"]] = InputRun.model_validate(event["input"])
        elif event["kind"] == "finish":
            status, error = event["status"], event["error"]
        elif event["kind"] == "driver":
            status, error = "RUNNING", None
    if status == "RUNNING" and not driver_alive(events):
        status = "INTERRUPTED"
    return Run(
        **record,
        status=status,
        error=error,
        seconds=_busy_seconds(events),
        inputs=inputs,
        stages=tuple(stages.values()),
        outputs={stage.name: stage.snapshot for stage in stages.values() if stage.snapshot},
    )


def _busy_seconds(events: list[dict[str, Any]]) -> float:
    """Add up the time from each driver's first to its last event; pauses between do not count."""
    total, first, last = 0.0, 0.0, 0.0
    for event in events:
        if event["kind"] == "driver":
            total, first = total + last - first, event["time"]
        last = event["time"]
    return total + last - first


def stage_parts(store: Store, run_id: str, stage: str) -> Components | None:
    """Return the fingerprint parts that a run recorded for a stage."""
    found: Components | None = None
    for event in events_of(store, run_id):
        if event["kind"] == "stage" and event["stage"]["name"] == stage and "parts" in event:
            found = event["parts"]
    return found


def previous_parts(
    store: Store, pipeline: str, stage: str, before: str | None = None
) -> tuple[str, Components] | None:
    """Return the newest earlier run of a pipeline that recorded this stage, and its parts."""
    for run_id in _newest_first(store, pipeline, before):
        parts = stage_parts(store, run_id, stage)
        if parts is not None:
            return run_id, parts
    return None


def previous_input(store: Store, pipeline: str, name: str, before: str) -> InputRun | None:
    """Return what the newest earlier run of a pipeline that listed this input recorded of it."""
    for run_id in _newest_first(store, pipeline, before):
        found = load_run(store, run_id).inputs.get(name)
        if found is not None:
            return found
    return None


def _newest_first(store: Store, pipeline: str, before: str | None) -> Iterator[str]:
    for run_id in reversed(run_ids(store)):
        if before is None or run_id < before:
            record: Mapping[str, Any] = store.ledger.read(_run_key(run_id)) or {}
            if record.get("pipeline") == pipeline:
                yield run_id


def cancel_run(store: Store, name: str) -> str:
    """Tell the driver of a run to stop; it commits nothing more and records CANCELLED.

    Raises:
        ConfigError: the run is not driven from this machine, or not running.
    """
    run_id = find_run_id(store, name)
    events = events_of(store, run_id)
    if load_run(store, run_id).status != "RUNNING":
        raise ConfigError(run_id, "is not running")
    driver = [event for event in events if event["kind"] == "driver"][-1]
    if driver["host"] != socket.gethostname():
        raise ConfigError(run_id, f"is driven from {driver['host']}", "cancel it there")
    os.kill(driver["pid"], signal.SIGTERM)
    return run_id
