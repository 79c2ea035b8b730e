"""The three stage shapes, and nothing about where they run.

A stage turns committed snapshots into the rows of a new one:

    map     shard -> rows     pure, may run twice, any number of workers
    loop    group of ranks    training: long, stateful, resumes from its own checkpoints
    reduce  all rows -> few   statistics, filters, scores, gates

A stage has options, input ports and an output contract. It depends on no engine, no cluster and no
other stage. Every option enters the fingerprint unless its field is declared with `runtime(...)`:
those may change the speed of a stage, never its output.
"""

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

import pyarrow as pa
from pydantic import Field

from videoar.contracts.expectations import CheckReport
from videoar.core.types import FileRef, Frozen, Resources, Retries, Row
from videoar.pipeline.context import StageContext
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store


def runtime(default: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - same typing as pydantic.Field
    """Declare an option that cannot change the output; it is not part of the fingerprint."""
    return Field(default=default, json_schema_extra={"runtime": True}, **kwargs)


def publish_gate(default: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - same typing as pydantic.Field
    """Declare an option that decides whether a loop's output is published, not what it is.

    It is part of the fingerprint, but not of the keys of checkpoints: a training that failed its
    gate resumes from them after the gate was changed.
    """
    return Field(default=default, json_schema_extra={"publish_gate": True}, **kwargs)


class StageConfig(Frozen):
    """Base of every stage's options: the keys under the stage's name in the pipeline file."""

    resources: Resources = runtime(Resources())
    """Workers, cores, GPUs and memory of the stage."""
    max_reject_fraction: float = runtime(1.0, ge=0, le=1)
    """Fraction of the input rows above which rejected ones fail the stage."""

    retries: Retries = runtime(Retries())
    """How often work is tried again, by the kind of its error."""
    timeout_s: float | None = runtime(None, gt=0)
    """Time after which the stage ends as TIMED_OUT; what it has finished is kept."""
    stall_s: float | None = runtime(None, gt=0)
    """The same, after so long without a finished shard or a training step (not of reductions)."""

    def semantic(self) -> dict[str, Any]:
        """Return the part of the config that can change the output, as JSON values."""
        return self.model_dump(mode="json", exclude=self._declared("runtime"))

    def publish_gates(self) -> set[str]:
        """Return the names of the fields declared with `publish_gate(...)`."""
        return self._declared("publish_gate")

    def _declared(self, kind: str) -> set[str]:
        return {
            name
            for name, info in type(self).model_fields.items()
            if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get(kind)
        }

    def needs(self) -> Mapping[str, str]:
        """Return the optional ports that these options require, each with the reason."""
        return {}


C = TypeVar("C", bound=StageConfig)
Inputs = Mapping[str, Snapshot]


@dataclass(frozen=True)
class Port:
    """One named input of a stage."""

    contract: str
    """Contract that the snapshot must have, e.g. `clips@1`."""
    optional: bool = False
    repeatable: bool = False
    """Whether `PORT.NAME` is a further input of the same contract, for any NAME."""


@dataclass(frozen=True)
class Output:
    """Output rows of a stage, which become one file, and the rejected ones (`rejects@1`)."""

    rows: pa.Table
    rejects: pa.Table | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class PackedRows(Collection[Row]):
    """Rows of JSON values, compressed: a plan of a million prompts is held in memory."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._data = zlib.compress(json.dumps(rows).encode(), level=1)
        self._count = len(rows)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        return iter(json.loads(zlib.decompress(self._data)))

    def __contains__(self, row: object) -> bool:
        return row in list(self)


@dataclass(frozen=True)
class Shard:
    """The input of one call of a map stage: a file of an input snapshot, or rows by value."""

    index: int
    digest: str
    """Content digest: equal shards have equal digests, whichever snapshot they belong to."""
    file: FileRef | None = None
    rows: Collection[Mapping[str, Any]] = ()
    count: int | None = None
    """Number of input rows, where `rows` holds a description of them and not the rows."""

    @property
    def num_rows(self) -> int:
        """Number of input rows."""
        if self.count is not None:
            return self.count
        return self.file.rows if self.file else len(self.rows)


class Mapper(Protocol):
    """An opened map stage: a callable that holds the loaded weights."""

    def __call__(self, batch: pa.Table) -> Output | Sequence[Output]:
        """Compute the output of one shard's rows; pure, so that a shard may run twice.

        Several threads call this at once if the stage's `overlap` is greater than 1.
        """


@runtime_checkable
class Stoppable(Protocol):
    """A mapper with an `overlap` whose running calls can be stopped."""

    def stop(self) -> None:
        """Make the calls that run in other threads fail soon."""


class RankContext(Protocol):
    """The rank that a loop stage runs as: its index, progress reports and checkpoints."""

    index: int
    world_size: int
    scratch: Path
    """Empty local folder of this attempt."""

    def report(
        self,
        step: int,
        total: int,
        metrics: Mapping[str, float],
        curve: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Report progress; cheap, rate-limited, safe to call at every step. Only rank 0 reports.

        Args:
            step: steps taken.
            total: expected steps.
            metrics: of the last step.
            curve: `step` and metrics of some steps so far, as the model will have them.
        """

    def save_checkpoint(self, step: int, folder: Path, group: str = "") -> None:
        """Commit a folder as the checkpoint of `step`, atomically; called in any thread.

        The newest two are kept, also after the stage has ended: see `publish_gate`.

        Args:
            step: number of the checkpoint.
            folder: its files.
            group: see `Checkpoints`. With one, each rank gives the files of its part, and rank 0
                waits for those of all others; without one only rank 0 has files.
        """

    def load_checkpoint(self, into: Path) -> int | None:
        """Copy the newest committed checkpoint into a folder; return its step, None without one."""

    def is_preempted(self) -> bool:
        """Return whether this rank's machine has announced that it will be taken away."""


class Stage(ABC, Generic[C]):
    """Base of the three shapes. Subclasses set the class variables and implement one method."""

    name: ClassVar[str]
    shape: ClassVar[Literal["map", "loop", "reduce"]]
    version: ClassVar[int] = 1
    """Increase it when the output changes for the same input, and the code closure does not."""
    consumes: ClassVar[Mapping[str, Port]]
    produces: ClassVar[str]
    config_type: ClassVar[type[StageConfig]]

    def __init__(self, config: C) -> None:
        self.config = config

    @classmethod
    def port(cls, name: str) -> Port | None:
        """Return the declaration of a port, None if there is no such port."""
        base, dot, further = name.partition(".")
        declared = cls.consumes.get(base)
        if declared is None or (dot and not (further and declared.repeatable)):
            return None
        return declared

    def tools(self) -> Mapping[str, str]:
        """Return versions and digests outside code and options that the output depends on."""
        return {}

    def state(self, store: Store, inputs: Inputs) -> Mapping[str, str]:
        """Return what the output depends on in the store beside the inputs, such as a ref's head.

        Part of the fingerprint, and passed to the stage as `StageContext.state`.
        """
        del store, inputs  # by default nothing
        return {}

    def after_commit(self, output: Snapshot, store: Store, run_id: str) -> None:
        """Act on the committed output, for example move a ref. Does nothing by default.

        Called whenever a run reaches the output, also when it was cached or resumed, so it must be
        idempotent.

        Raises:
            GateError: the output forbids it; the stage then counts as blocked.
            RefMovedError: the output was computed from a state that has changed; the run resolves
                the ref again and decides again.
        """


class MapStage(Stage[C]):
    """Shards to shards, independent of each other."""

    shape = "map"
    placement: ClassVar[Literal["pool", "serve"]] = "pool"
    """Where the Ray engine runs the mapper: an actor pool, or replicas of a Serve deployment."""
    overlap: ClassVar[int] = 1
    """Shards that one worker runs concurrently: one computes while others read and write."""
    primary: ClassVar[str]
    """Port whose files are the shards."""
    allows_empty_output: ClassVar[bool] = False
    """An empty output is valid. For other stages, rejecting every row is a failure."""

    @property
    def sharded(self) -> Collection[str]:
        """Ports of whose inputs only a shard's own part counts in its fingerprint."""
        return {self.primary}

    def divided(self, inputs: Inputs) -> Snapshot:
        """Return the input whose files are the shards: that of the primary port."""
        return inputs[self.primary]

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        """Plan the work: cheap, pure, in a fixed order. Default: one shard per primary file."""
        files = self.divided(inputs).files
        return [Shard(index=i, digest=file.sha256, file=file) for i, file in enumerate(files)]

    def scratch_bytes(self, shard: Shard) -> int:  # noqa: ARG002 - most stages need none
        """Return how much free space for temporary files a shard needs, as an estimate."""
        return 0

    @abstractmethod
    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Load what is needed once per worker, such as weights."""


class LoopStage(Stage[C]):
    """Training: a group of ranks that run together."""

    shape = "loop"

    @abstractmethod
    def run(self, inputs: Inputs, context: StageContext, rank: RankContext) -> Output | None:
        """Run to the end, from the newest checkpoint if there is one; rank 0 returns the rows."""


class ReduceStage(Stage[C]):
    """Reduces all rows of the inputs to a few."""

    shape = "reduce"

    @abstractmethod
    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Yield output tables; each becomes one file. Yield them in a fixed order."""

    def check(self, inputs: Inputs, output: pa.Table) -> CheckReport | None:  # noqa: ARG002 - no gate
        """Check the output rows before they are committed; return None if there are no checks."""
        return None
