"""Frozen value types that are passed between layers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"
"""A JSON value, for reading. Read-only shapes: `dict[str, int]` is a `Mapping[str, Json]` but no
`dict[str, Json]`, because dict and list are invariant."""
Row: TypeAlias = dict[str, Any]
"""One row of a table as `RecordBatch.to_pylist()` returns it; its contract gives the columns."""


class Frozen(BaseModel):
    """Immutable model of user input; rejects unknown keys, which are typos there.

    Attribute docstrings become the descriptions of its JSON Schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Stored(Frozen):
    """Immutable model of a record that is read back from a store; ignores unknown keys.

    A newer version may add a field to its records. Rejecting them would make the store unreadable
    for older clients, which do not need the field.
    """

    model_config = ConfigDict(extra="ignore")


Count: TypeAlias = Annotated[int, Field(ge=1, le=100_000)]


class Resources(Frozen):
    """Resources of one worker of a stage. Never part of a fingerprint."""

    cpus: float = Field(default=1.0, gt=0)
    """CPU cores per worker."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs per worker. On Ray a worker sees these and no others; in this process, all there are."""
    memory_gib: float = Field(default=0.0, ge=0)
    """Memory reserved per worker; 0 reserves none."""
    scratch_gib: float = Field(default=0.0, ge=0)
    """Free space for temporary files without which a shard does not begin on a machine, beside the
    largest source that it fetches (`ingest`)."""
    workers: Count | tuple[Count, Count] = 1
    """Workers (map stages) or ranks (loop stages). As `[MIN, MAX]`, a loop stage on Ray starts with
    as many ranks as the cluster has room for, and starts again when that number changes; `generate`
    on Ray starts with MIN, or 1 of a number, and adds workers while shards wait and the cluster has
    room; another map stage uses at most MAX."""
    readers: int = Field(default=0, ge=0, le=1_000)
    """Processes per worker, a core each, that read clips for it wherever the cluster has cores (on
    Ray; `tokenize`). 0 reads in threads of the worker, on all of its cores but one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(f"workers: {self.min_workers} is more than {self.max_workers}")
        return self

    @property
    def min_workers(self) -> int:
        """Workers without which the stage does not run."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """Workers that the stage uses at most."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Retries(Frozen):
    """How often a shard, a training or a reduction is tried again, by the kind of its error.

    Errors of other kinds (a wrong option, bad data, a bug) are never tried again.
    """

    infra: int = Field(default=3, ge=0)
    """A store or a worker that failed."""
    preempt: int = Field(default=8, ge=0)
    """A machine that was taken away."""
    memory: int = Field(default=1, ge=0)
    """Not enough memory on the host or the GPU."""
    throttle: int = Field(default=8, ge=0)
    """A store that asks for fewer requests."""


class Footer(Stored):
    """Size and checksum of the footer of a Parquet file, which has no checksum of its own."""

    size_bytes: int
    xxh3: int


class FileRef(Stored):
    """One immutable, content-addressed object of the store."""

    key: str
    """Key in the store, ending in the content hash."""
    sha256: str
    size_bytes: int
    rows: int = 0
    """Rows for Parquet files, 0 for anything else."""
    footer: Footer | None = None
    """None for other files, and for Parquet files of versions that did not record it."""
    marks: str | None = None
    """Beginnings of the digests in its rows, see `takedown.marks_of`; None: not recorded."""


class Provenance(Stored):
    """The run that made a snapshot, and its inputs. In the Delta commit, not in the digest."""

    run_id: str
    pipeline: str
    stage: str
    """Name of the stage in the pipeline file."""
    fingerprint: str
    code_version: str
    parents: dict[str, str] = Field(default_factory=dict)
    """Port name to snapshot id."""


class Commit(Stored):
    """A snapshot as the Delta log records it."""

    snapshot: str
    """Id: `<dataset>:<first 16 hex digits of the digest>`."""
    digest: str
    """SHA-256 over the sorted {sha256, bytes, rows} of the files and the contract id."""
    dataset: str
    contract: str
    version: int
    """Delta version of this commit in this store (stores differ in it, digests do not)."""
    files: tuple[FileRef, ...]
    provenance: Provenance
    metrics: dict[str, float] = Field(default_factory=dict)
    rejects: str | None = None
    """Snapshot id of the rows that the stage rejected, None if it rejected none."""

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)
