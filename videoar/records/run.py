"""A run and its stages as the record tells them, and what its events say of it.

Pure: `run_record` reads the events and knows whether the driver of the run lives.
"""

import platform
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field

from videoar.core.errors import ConfigError, did_you_mean
from videoar.core.settings import settings
from videoar.core.software import commit_id, packages_digest
from videoar.core.types import Stored
from videoar.pipeline.work.progress import Progress
from videoar.pipeline.work.task import Usage
from videoar.storage.ledger import current_user

Status = Literal[
    "PENDING", "RUNNING", "SUCCEEDED", "CACHED", "FAILED", "GATE_BLOCKED", "CANCELLED",
    "INTERRUPTED", "SKIPPED", "WAITING", "UNKNOWN", "TIMED_OUT", "QUEUED", "DAMAGED",
]  # fmt: skip
"""State of a run or a stage. SKIPPED: a stage outside the requested part (`--until`), or without
an input that it needs; PENDING: a requested stage that has not started; QUEUED: a run before which
another one has to end; DAMAGED: a run of which a record cannot be read, see `readable_run`."""
_EXIT_CODES = {
    "SUCCEEDED": 0, "FAILED": 3, "GATE_BLOCKED": 4, "TIMED_OUT": 6, "DAMAGED": 7, "UNKNOWN": 8,
    "CANCELLED": 130, "INTERRUPTED": 130,
}  # fmt: skip
"""Of the states in which a run has ended, until it is resumed."""


class ShardCounts(Stored):
    """Shards of a map stage; a loop or reduce stage counts as one shard."""

    planned: int = 0
    cached: int = 0
    done: int = 0
    quarantined: int = 0
    """Items rejected with a typed reason."""


class RowCounts(Stored):
    """Input, output and rejected rows of a stage."""

    model_config = ConfigDict(validate_by_name=True)
    in_: int = Field(default=0, alias="in")
    out: int = 0
    rejected: int = 0


class InputRun(Stored):
    """One listed input of a run, compared with the previous run of the same pipeline."""

    snapshot: str
    sources: int
    new: int
    changed: int
    """Sources with the same URI but another etag."""
    gone: int
    """Sources of the previous run that are no longer listed."""

    def __str__(self) -> str:
        difference = f"{self.new} new, {self.changed} changed, {self.gone} gone"
        return f"{self.sources} sources ({difference})"


class StageRun(Stored):
    """One stage of a run."""

    name: str
    type: str
    """Stage type, the value of `stage:` in the pipeline file."""
    status: Status = "PENDING"
    fingerprint: str | None = None
    snapshot: str | None = None
    rejects: str | None = None
    """Snapshot of the rejected rows; the id of `snapshot` does not depend on it."""
    inputs: dict[str, str] = Field(default_factory=dict)
    shards: ShardCounts = ShardCounts()
    rows: RowCounts = RowCounts()
    started_at: float | None = None
    """When it began, seconds since 1970."""
    seconds: float = 0.0
    """Duration; of a stage that runs, so far."""
    progress: Progress | None = None
    """How far it is, while it runs or where it was killed; not part of the record."""
    usage: Usage = Usage()
    """Of this run's work, without what was cached and what attempts before the last one used."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Sums over the shards of a map stage, of all attempts, and values derived from them."""
    reason: str = ""
    waiting: str = ""
    """What it waits for while it is WAITING: `lease: ...`, `store: ...` or `backoff: ...`."""
    error: str | None = None
    code: str | None = None
    """Reason code of the error."""

    @property
    def is_in_progress(self) -> bool:
        """Return whether the driver is at this stage."""
        return self.status in {"RUNNING", "WAITING"}


class Software(Stored):
    """Who ran it, and with which software."""

    user: str
    commit: str = ""
    """Of this package; "" if it was installed without its checkout."""
    is_clean: bool | None = None
    """Whether the code was that of the commit."""
    packages: str
    """SHA-256 over the names and versions of all installed packages."""
    python: str
    image: str = ""
    """The setting `image`."""

    @classmethod
    def current(cls) -> Self:
        """Return that of this process."""
        commit = commit_id()
        return cls(
            user=current_user(),
            commit=commit.removesuffix("-dirty"),
            is_clean=not commit.endswith("-dirty") if commit else None,
            packages=packages_digest(),
            python=platform.python_version(),
            image=settings().image,
        )


class Run(Stored):
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
    """First requested stage; None: from the beginning. Stages before it must be cached."""
    until: str | None = None
    """Last requested stage; None: to the end."""
    trigger: dict[str, Any] | None = None
    """What a schedule started it for: key, and window or consumed snapshot."""
    stages: tuple[StageRun, ...]
    outputs: dict[str, str]
    """Stage name to snapshot id."""
    inputs: dict[str, InputRun] = Field(default_factory=dict)
    """Listed inputs by name."""
    software: Software | None = None
    """That of its newest driver."""
    accepted_drift: tuple[str, ...] = ()
    """What changed between two drivers of the run: `resume --accept-drift`."""
    queued_behind: str | None = None
    """While it is QUEUED: the run that has to end before."""
    error: str | None = None
    code: str | None = None
    """Reason code of the error, see `docs/operators.md`."""

    def stage(self, name: str) -> StageRun:
        """Return one stage.

        Raises:
            ConfigError: the run has no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        hint = did_you_mean(name, [stage.name for stage in self.stages])
        raise ConfigError(name, f"run {self.run_id} has no such stage", hint)

    @property
    def has_ended(self) -> bool:
        """Return whether nothing works on it any more; a resume may change that."""
        return self.status in _EXIT_CODES

    @property
    def exit_code(self) -> int:
        """The exit code that stands for how the run ended; 0 while it has not."""
        return _EXIT_CODES.get(self.status, 0)

    def public(self) -> dict[str, Any]:
        """Return the JSON document that the command line prints."""
        return self.model_dump(mode="json", by_alias=True, exclude={"document"})


def requested_stages(record: Mapping[str, Any]) -> set[str]:
    """Return the names of the stages up to `until`, its ancestors and itself; all without it."""
    stages = record["document"]["stages"]
    if record["until"] is None:
        return set(stages)
    requested: set[str] = set()
    queue = [record["until"]]
    while queue:
        name = queue.pop()
        if name in stages and name not in requested:  # the ports of a stage may also name inputs
            requested.add(name)
            queue += stages[name].get("from", {}).values()
    return requested


def run_state(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the events of a run say of it as a whole; `queued_behind` is a lease."""
    inputs: dict[str, InputRun] = {}
    drift: dict[str, None] = {}
    # killed between run.json and the first event of its driver
    status, error, code, software, lease = "PENDING", None, None, None, None
    for event in events:
        match event["kind"]:
            case "queued":
                status, lease = "QUEUED", event["lease"]
            case "input":
                inputs[event["name"]] = InputRun.model_validate(event["input"])
            case "finish":
                status, error, code = event["status"], event["error"], event.get("code")
                lease = None
            case "driver":  # a resumed run: an earlier `finish` no longer holds
                status, error, code, lease = "RUNNING", None, None, None
                software = event.get("software")
                drift |= dict.fromkeys(event.get("accepted_drift", ()))
    return {
        "status": status, "error": error, "code": code, "software": software, "inputs": inputs,
        "queued_behind": lease, "accepted_drift": tuple(drift),
    }  # fmt: skip


def busy_seconds(events: list[dict[str, Any]], now: float | None) -> float:
    """Return the sum of the time from each driver's first to its last event, or to now.

    The time between an interruption and the resume does not count.
    """
    total, first, last = 0.0, 0.0, 0.0
    for event in events:
        if event["kind"] == "driver":
            total, first = total + last - first, event["time"]
        last = event["time"] if first else 0.0  # time in a queue does not count
    return total + (now or last) - first
