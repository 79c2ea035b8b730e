"""The three stage shapes, and nothing about where they run.

A stage turns committed snapshots into the rows of a new one:

    map     shard -> rows     pure, may run twice, any number of workers
    loop    gang of ranks     training: long, stateful, resumes from its own checkpoints
    reduce  all rows -> few   statistics, verdicts, scores, gates

A stage knows its config, its input ports and its contract. It never sees an engine, a cluster or
another stage. Everything in a config counts for the fingerprint unless the field is declared with
`runtime(...)`: those may change the speed of a stage, never its output.
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

import pyarrow as pa
from pydantic import Field

from videoar.contracts.expectations import CheckReport
from videoar.core.types import FileRef, Frozen, Resources
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store


def runtime(default: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - same typing as pydantic.Field
    """Declare a config field that cannot change the output; it stays out of the fingerprint."""
    return Field(default=default, json_schema_extra={"runtime": True}, **kwargs)


def gate(default: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - same typing as pydantic.Field
    """Declare a config field that decides whether a loop's output counts, not what it is.

    It is in the fingerprint, but not in the keys of checkpoints: a training that has missed its
    gate goes on from them when the gate has been changed.
    """
    return Field(default=default, json_schema_extra={"gate": True}, **kwargs)


class StageConfig(Frozen):
    """Base of every stage's options: the keys under the stage's name in the pipeline file."""

    resources: Resources = runtime(Resources())
    """Workers, cores, GPUs and memory of the stage."""
    max_reject_fraction: float = runtime(1.0, ge=0, le=1)
    """Share of refused rows above which the stage fails."""

    def semantic(self) -> dict[str, Any]:
        """Return the part of the config that can change the output, as JSON values."""
        return self.model_dump(mode="json", exclude=self._declared("runtime"))

    def gates(self) -> set[str]:
        """Return the names of the fields declared with `gate(...)`."""
        return self._declared("gate")

    def _declared(self, kind: str) -> set[str]:
        return {
            name
            for name, info in type(self).model_fields.items()
            if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get(kind)
        }

    def needs(self) -> Mapping[str, str]:
        """Return the optional ports that these options cannot do without, and why."""
        return {}


C = TypeVar("C", bound=StageConfig)
Inputs = Mapping[str, Snapshot]


@dataclass(frozen=True)
class Port:
    """One named input of a stage."""

    contract: str
    """Contract that the snapshot must have, e.g. `clips@1`."""
    optional: bool = False


@dataclass(frozen=True)
class Output:
    """Rows that a stage made, which become one file, and the rows that it refused (`rejects@1`)."""

    rows: pa.Table
    rejects: pa.Table | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """One unit of a map stage's work. Either a file of an input snapshot or rows given directly."""

    index: int
    digest: str
    """Content digest: equal shards have equal digests, whatever the snapshot they came from."""
    file: FileRef | None = None
    rows: tuple[Mapping[str, Any], ...] = ()
    count: int | None = None
    """Rows that go in, where `rows` says how to find them."""

    @property
    def num_rows(self) -> int:
        """Rows that go in."""
        if self.count is not None:
            return self.count
        return self.file.rows if self.file else len(self.rows)


class Mapper(Protocol):
    """The opened form of a map stage: weights are loaded, rows go in, rows come out."""

    def __call__(self, batch: pa.Table) -> Output | Sequence[Output]:
        """Turn the rows of one shard into output rows; pure, so that a shard may run twice.

        Of a stage with an `overlap`, several threads call this at once.
        """
        ...


@runtime_checkable
class Stoppable(Protocol):
    """A mapper with an `overlap` that can be asked to end."""

    def stop(self) -> None:
        """Let the calls that other threads are in fail soon."""
        ...


class Rank(Protocol):
    """One member of a loop stage's gang, and its only way to talk to the outside."""

    index: int
    world_size: int
    scratch: Path
    """Empty local folder of this attempt."""

    def report(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Tell progress; cheap, rate-limited, safe to call at every step. Rank 0 speaks."""
        ...

    def save_checkpoint(self, step: int, folder: Path) -> None:
        """Commit a folder as the checkpoint of `step`. Atomic: it counts entirely or not at all.

        The newest two stay, also when the stage has ended: see `gate`.
        """
        ...

    def load_checkpoint(self, into: Path) -> int | None:
        """Fill `into` with the newest committed checkpoint; return its step, None without one."""
        ...


def keep_checkpoint(rank: Rank, step: int, save: Callable[[Path], None]) -> None:
    """Commit what `save` writes into a folder; the folder goes, so that none fills the disk."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=rank.scratch) as folder:
        save(Path(folder))
        rank.save_checkpoint(step, Path(folder))


def resume(rank: Rank, load: Callable[[Path], None]) -> None:
    """Let `load` read the newest committed checkpoint, if there is one, from a passing folder."""
    with tempfile.TemporaryDirectory(prefix="resume-", dir=rank.scratch) as folder:
        if rank.load_checkpoint(Path(folder)) is not None:
            load(Path(folder))


class Stage(ABC, Generic[C]):
    """What the shapes share. Subclasses set the class variables and one method."""

    name: ClassVar[str]
    shape: ClassVar[Literal["map", "loop", "reduce"]]
    version: ClassVar[int] = 1
    """Raise it when the output changes for the same input in a way that the code does not show."""
    consumes: ClassVar[Mapping[str, Port]]
    produces: ClassVar[str]
    config_type: ClassVar[type[StageConfig]]

    def __init__(self, config: C) -> None:
        self.config = config

    def tools(self) -> Mapping[str, str]:
        """Return versions and digests outside the code and config that the output depends on."""
        return {}


class MapStage(Stage[C]):
    """Shards to shards."""

    shape = "map"
    placement: ClassVar[Literal["pool", "serve"]] = "pool"
    """Where an engine that has both hosts the mapper: an actor pool or a serving deployment."""
    overlap: ClassVar[int] = 1
    """Shards that one worker runs at once: while one computes, others read and write."""
    primary: ClassVar[str]
    """Port whose files are the shards."""
    may_refuse_all: ClassVar[bool] = False
    """That nothing is left is a finding here; elsewhere it is a failure."""

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        """Plan the work: cheap, pure, in a fixed order. Default: one shard per primary file."""
        return [
            Shard(index=i, digest=file.sha256, file=file)
            for i, file in enumerate(inputs[self.primary].files)
        ]

    @abstractmethod
    def open(self, inputs: Inputs, store: Store) -> Mapper:
        """Load what is needed once per worker."""


class LoopStage(Stage[C]):
    """A gang of ranks."""

    shape = "loop"

    @abstractmethod
    def run(self, inputs: Inputs, store: Store, rank: Rank) -> Output | None:
        """Run to the end, from the last checkpoint if there is one; rank 0 returns the rows."""


class ReduceStage(Stage[C]):
    """All rows to few."""

    shape = "reduce"

    @abstractmethod
    def reduce(self, inputs: Inputs, store: Store) -> Iterator[Output]:
        """Yield output tables; each becomes one file. Yield them in a fixed order."""

    def check(self, inputs: Inputs, output: pa.Table) -> CheckReport | None:  # noqa: ARG002 - no gate
        """Gate the output rows before the commit becomes visible; None asks nothing of them."""
        return None
