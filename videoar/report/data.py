"""Data of the pages: of one run, as `collect` gathers it, and of two, as `comparison` does.

`page` renders both.
"""

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
    reason: str = ""
    """Why it was skipped, "" if it was not."""
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
    left_out: str = ""
    """What was found and not taken, in words."""


class Histogram(Frozen):
    """Distribution of one score: of the input of a filter with its bounds, or in two snapshots."""

    score: str
    edges: tuple[float, ...]
    counts: tuple[float, ...]
    unit: str
    """Of the score; also names it where it has none."""
    bounds: tuple[tuple[float, str], ...] = ()
    """Value and label of each bound."""
    other: tuple[float, ...] = ()
    """Counts of a second snapshot."""


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
    expectations: tuple[Expectation, ...]


class Curve(Frozen):
    """One panel of training curves."""

    title: str
    x_label: str
    unit: str
    """Of the values; `no unit` if they have none."""
    series: dict[str, tuple[tuple[float, float], ...]]


class BlockTable(Frozen):
    """Held-out numbers of the blocks of a model: frames (rows) and scales (columns)."""

    title: str
    step: int
    cells: tuple[tuple[tuple[float, float] | None, ...], ...]
    """Nats per bit and bit accuracy of each block; None where no val row has one."""


class Clip(Frozen):
    """A video (MP4) with its caption; without a video, the caption says why."""

    label: str
    video: bytes | None = None


class Card(Frozen):
    """Clips that are shown side by side, and what is known of them."""

    clips: tuple[Clip, ...]
    text: str = ""
    note: str = ""
    """Identity: seed or clip id."""


class Gallery(Frozen):
    """Cards of one metric, the most remarkable first."""

    metric: str
    protocol: str
    text: str
    """What they are."""
    cards: tuple[Card, ...]


class Change(Frozen):
    """One metric in two snapshots of scores."""

    metric: str
    old: float | None = None
    new: float | None = None
    higher_is_better: bool = True
    delta: float | None = None
    """New value minus old one; None if they are not comparable."""
    ci_low: float | None = None
    ci_high: float | None = None
    """Ends of its 95 % interval."""
    method: str = ""
    """How the interval was computed."""
    protocol: str = ""
    """Preset and N."""
    reason: str = ""
    """Why the values are not comparable."""

    @property
    def outcome(self) -> Literal["better", "worse", "same", ""]:
        """Whether the interval excludes 0, and on which side; "" without an interval."""
        if self.ci_low is None or self.ci_high is None:
            return ""
        if self.ci_low <= 0 <= self.ci_high:
            return "same"
        return "better" if (self.ci_low > 0) == self.higher_is_better else "worse"


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
    protocol: str = ""
    """Preset and N: what a printed value must not be without."""
    table: str = ""
    """Dataset of the snapshot that it is from."""
    change: Change | None = None
    """Compared with the champion; None if there is none."""
    is_chance: bool = False
    """Whether the value may be that of guessing."""
    note: str = ""
    """What the value is compared with, if not with guessing."""


class VBench(Frozen):
    """Values of the VBench dimensions of one model."""

    dimensions: dict[str, float]
    """Raw values of the evaluated ones."""
    totals: dict[str, float] = Field(default_factory=dict)
    """Total, quality and semantic score in percent; empty unless all their dimensions are there."""
    reason: str = ""
    """Why there is no total."""


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
    metric: str = ""
    value: float | None
    bound: float | None
    passed: bool
    reason: str


class Gate(Frozen):
    """One decision of a promotion gate."""

    stage: str = ""
    entry: int | None = None
    """Newest entry of the ref that the decision made; None: the ref did not move."""
    ref: str = ""
    candidate: str = ""
    """Snapshot of the model; both are "" in a decision without a rule."""
    champion: str | None = None
    champion_seq: int | None = -1
    """Holder of the ref that it was compared with, and the number of the ref's entry; -1: the ref
    did not exist."""
    rules: tuple[GateRule, ...] = ()


class LineageNode(Frozen):
    """One line of the tree of snapshots: a snapshot below what was made of it."""

    snapshot: str
    stage: str
    rows: int
    depth: int = 0
    port: str = ""
    """Port of the snapshot above that it was given to, "" for the last outputs of a run."""
    is_repeated: bool = False
    """Whether its parents were listed before."""


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


class Side(Frozen):
    """A run, or one of two runs or snapshots that are compared."""

    name: str
    """Run or snapshot id."""
    pipeline: str = ""
    status: str = ""
    started_at: str = ""
    seconds: float | None = None
    code_version: str = ""
    funnel: tuple[FunnelStep, ...] = ()


class ReportData(Side):
    """Everything that the page shows."""

    hardware: str
    made_by: str = ""
    """User, commit and image of the newest driver."""
    error: str = ""
    """What ended the run, "" if it succeeded or is still running."""
    stages: tuple[StageReport, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    contact_sheets: tuple[ContactSheet, ...] = ()
    duplicates: tuple[DuplicatePair, ...] = ()
    checks: tuple[DataCheck, ...] = ()
    curves: tuple[Curve, ...] = ()
    blocks: tuple[BlockTable, ...] = ()
    generated: tuple[Card, ...] = ()
    num_generated: int = 0
    """Samples of the run; `generated` holds the first of them."""
    reconstructions: tuple[Card, ...] = ()
    scale_series: tuple[Card, ...] = ()
    """Real clips, each after its reconstructions from the first 1, 2, ... all scales of tokens."""
    scores: tuple[Score, ...] = ()
    vbench: VBench | None = None
    galleries: tuple[Gallery, ...] = ()
    """The worst samples of each metric, and those nearest to training clips."""
    score_curves: tuple[Curve, ...] = ()
    """Distances against N and training step, and scores over the time of a clip."""
    confusions: tuple[Confusion, ...] = ()
    gates: tuple[Gate, ...] = ()
    licences: tuple[Licence, ...] = ()
    lineage: tuple[LineageNode, ...] = ()
    config: str = ""
    """The resolved pipeline file as YAML."""
    locks: tuple[Lock, ...] = ()
    damage: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What could not be read, by id of the section that lacks it."""


class Counted(Frozen):
    """A dataset in both sides: rows, and the metrics of its commits that differ."""

    dataset: str
    contract: str
    old: str = ""
    """Snapshot id; "" if this side has none."""
    new: str = ""
    old_rows: int | None = None
    new_rows: int | None = None
    metrics: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)


class Comparison(Frozen):
    """Everything that the page of two runs or snapshots shows."""

    old: Side
    new: Side
    counts: tuple[Counted, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    changes: tuple[Change, ...] = ()
    pairs: tuple[Card, ...] = ()
    num_pairs: int = 0
    """Pairs of the two; `pairs` holds the first of them."""


class IndexedRun(Frozen):
    """A run on the page of a store."""

    name: str
    pipeline: str
    status: str
    started_at: str
    seconds: float
    reason: str = ""
    """What ended it, or how far it is; "" if it succeeded."""
    made: tuple[tuple[str, int], ...] = ()
    """Stages with a new output, and its rows."""
    num_cached: int = 0
    """Stages whose output was found."""
    moved: tuple[str, ...] = ()
    """Refs that it has moved, with the number of the entry."""
    page: str = ""
    """Address of its report page; "": there is none."""


class RefEntry(Frozen):
    """One move of a ref."""

    ref: str
    seq: int
    target: str
    is_model: bool
    at: float
    """Seconds since 1970; 0 if it was not recorded."""
    when: str
    by: str
    run: str
    """Run that moved it; "": a person."""
    why: str
    evidence: str
    """Snapshot of the decision."""
    scores: tuple[Score, ...]
    """Those of its target that a gate of the ref has rules on."""


class ScheduleState(Frozen):
    """The schedule of a pipeline."""

    pipeline: str
    trigger: str
    concurrency: str
    is_paused: bool
    next: str
    """Next window; "" if it does not go by the clock."""
    missed: int
    """Windows that are due."""
    last: str
    """When it fired last, and how that ended."""
    last_run: str


class DatasetSize(Frozen):
    """The newest snapshot of a dataset, and what all of them have."""

    name: str
    contract: str
    num_snapshots: int
    rows: int
    size_bytes: int
    num_files: int
    added_rows: int | None
    """Since the snapshot before; None if there is none."""
    added_bytes: int | None
    written_bytes: int
    """Of all snapshots; a file that several have counts once."""


class FolderSize(Frozen):
    """A top-level folder of the store."""

    name: str
    num_files: int
    size_bytes: int


class Index(Frozen):
    """Everything that the page of a store shows."""

    url: str
    rendered_at: str
    runs: tuple[IndexedRun, ...] = ()
    num_runs: int = 0
    """Of the store; `runs` are the newest ones."""
    entries: tuple[RefEntry, ...] = ()
    """Newest first."""
    score_curves: tuple[Curve, ...] = ()
    schedules: tuple[ScheduleState, ...] = ()
    datasets: tuple[DatasetSize, ...] = ()
    growth: tuple[Curve, ...] = ()
    folders: tuple[FolderSize, ...] = ()
    damage: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """What could not be read, by section."""
