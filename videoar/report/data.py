"""Data of the report page of one run, as `collect` gathers it and `page` renders it."""

from typing import Literal

from pydantic import Field

from videoar.contracts.expectations import Expectation
from videoar.core.types import Frozen


class StageReport(Frozen):
    """One stage run, or one raw input of the pipeline (`kind` input)."""

    name: str
    kind: str
    """Stage type as in the pipeline file."""
    status: str
    """Status in the run record, e.g. SUCCEEDED, CACHED, FAILED."""
    parents: tuple[str, ...] = ()
    """Names of the stages and inputs that it reads."""
    snapshot: str = ""
    """Id of its output snapshot, "" if it has none."""
    rows_in: int | None = None
    rows_out: int | None = None
    seconds: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class FunnelStep(Frozen):
    """Items that remain after one step, and the reasons of rejected items."""

    name: str
    unit: str
    """Unit of the count: videos or clips."""
    count: int
    reasons: tuple[tuple[str, int], ...] = ()
    """Reason and number of rejected items, the most frequent first."""


class Histogram(Frozen):
    """Distribution of one score over the input clips of a filter, and the bounds on it."""

    score: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    bounds: tuple[tuple[float, str], ...] = ()
    """Value and label of each bound."""


class Thumbnail(Frozen):
    """One frame of a clip, or the error that prevented reading it."""

    jpeg: bytes = b""
    error: str = ""


class ContactSheet(Frozen):
    """Thumbnails of clips with the same outcome: kept, or rejected with one decisive reason."""

    title: str
    """`kept` or the reason."""
    count: int
    """Clips with this outcome; the sheet shows the first few by id."""
    thumbnails: tuple[Thumbnail, ...]


class DuplicatePair(Frozen):
    """A rejected clip and the kept clip that it duplicates."""

    reason: str
    clip_id: str
    kept_id: str
    thumbnail: Thumbnail
    kept_thumbnail: Thumbnail


class DataCheck(Frozen):
    """Results of the expectations on one stage's output."""

    stage: str
    success: bool
    page: str
    """Page of Great Expectations, relative to the key of the report."""
    expectations: tuple[Expectation, ...]


class Curve(Frozen):
    """One panel of training curves."""

    title: str
    x_label: str
    series: dict[str, tuple[tuple[float, float], ...]]


class BlockTable(Frozen):
    """Held-out numbers of the blocks of a model: frames (rows) and scales (columns)."""

    title: str
    step: int
    cells: tuple[tuple[tuple[float, float] | None, ...], ...]
    """Nats per bit and bit accuracy of each block; None where no val row has one."""


class GeneratedSample(Frozen):
    """One generated video, and a real clip with the same prompt if there is one."""

    prompt: str
    seed: int
    video: bytes
    real: bytes | None = None


class Reconstruction(Frozen):
    """A real clip and its reconstruction by the tokenizer; both are MP4."""

    name: str
    real: bytes
    reconstruction: bytes


class ScaleSeries(Frozen):
    """A real clip and its reconstructions from the first 1, 2, ... all scales of its tokens."""

    name: str
    real: bytes
    steps: tuple[tuple[str, bytes], ...]
    """Grid of the last decoded scale (`up to 4 x 4`), and the MP4."""


class Score(Frozen):
    """One row of `scores@1`."""

    metric: str
    status: Literal["ok", "not_evaluated"]
    reason: str | None = None
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    chance: float | None = None
    higher_is_better: bool = True
    num_samples: int = 0
    num_reference: int = 0


class Confusion(Frozen):
    """Confusion matrix: prompted attribute (rows) against the predicted one (columns)."""

    title: str
    prompted: tuple[str, ...]
    predicted: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """Videos, a tuple per row."""


class GateRule(Frozen):
    """One row of `releases@1`."""

    rule: str
    value: float | None
    bound: float | None
    passed: bool
    reason: str


class LineageNode(Frozen):
    """One snapshot and its parents."""

    snapshot: str
    stage: str
    rows: int
    parents: dict[str, str] = Field(default_factory=dict)
    """Port name to snapshot id."""


class Licence(Frozen):
    """Source videos of one origin under one licence."""

    name: str
    origin: str = "not stated"
    num_videos: int


class Lock(Frozen):
    """One protocol lock and the metrics that were computed under it."""

    metrics: dict[str, str]
    """Metric name to the SHA-256 of its lock."""
    text: str
    """The lock as indented JSON, without the metric's name."""


class ReportData(Frozen):
    """Everything that the page shows."""

    run_id: str
    pipeline: str
    status: str
    started_at: str
    seconds: float
    hardware: str
    code_version: str
    error: str = ""
    """What ended the run, "" if it succeeded or is still running."""
    stages: tuple[StageReport, ...] = ()
    funnel: tuple[FunnelStep, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    contact_sheets: tuple[ContactSheet, ...] = ()
    duplicates: tuple[DuplicatePair, ...] = ()
    checks: tuple[DataCheck, ...] = ()
    curves: tuple[Curve, ...] = ()
    blocks: tuple[BlockTable, ...] = ()
    generated: tuple[GeneratedSample, ...] = ()
    num_generated: int = 0
    """Samples of the run; `generated` holds the first of them."""
    reconstructions: tuple[Reconstruction, ...] = ()
    scale_series: tuple[ScaleSeries, ...] = ()
    scores: tuple[Score, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    gate: tuple[GateRule, ...] = ()
    licences: tuple[Licence, ...] = ()
    lineage: tuple[LineageNode, ...] = ()
    config: str = ""
    """The resolved pipeline file as YAML."""
    locks: tuple[Lock, ...] = ()
