"""The report of one run: a single HTML file that opens from disk, offline, on any screen.

Everything on the page is data of the run (`ReportData`); what is missing becomes a sentence, never
an empty box. Videos and pictures travel as data URLs. Captions, labels and names come from files of
strangers: every value is escaped, and the page forbids itself scripts and network by its own
security policy.
"""

import base64
import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Literal

from jinja2 import Environment, StrictUndefined, Template
from pydantic import Field

from videoar.contracts.expectations import Expectation
from videoar.core.types import Frozen
from videoar.report.figures import Graph, Plot, histogram, layered_graph, line_plot


class StageReport(Frozen):
    """One stage run, or one raw input of the pipeline (`kind` input)."""

    name: str
    kind: str
    """Stage type as in the pipeline file."""
    status: str
    """State in the run record, e.g. SUCCEEDED, CACHED, FAILED."""
    parents: tuple[str, ...] = ()
    """Names of the stages and inputs that it reads."""
    snapshot: str = ""
    """Id of the snapshot that it made."""
    rows_in: int | None = None
    rows_out: int | None = None
    seconds: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class FunnelStep(Frozen):
    """How many items one filtering step kept, and why it refused the others."""

    name: str
    unit: str
    """What is counted after the step: videos, clips."""
    count: int
    reasons: tuple[tuple[str, int], ...] = ()
    """Reason and number of refused items."""


class Histogram(Frozen):
    """How one score of the clips that came in is distributed, and the bounds on it."""

    score: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    bounds: tuple[tuple[float, str], ...] = ()
    """Value and name of each bound."""


class Picture(Frozen):
    """One frame of a clip, or why there is none."""

    jpeg: bytes = b""
    why: str = ""


class Sheet(Frozen):
    """Pictures of some clips that met the same fate."""

    title: str
    count: int
    """Clips that met it; the sheet shows the first few by id."""
    pictures: tuple[Picture, ...]


class Repeat(Frozen):
    """A refused clip beside the one that it repeats."""

    reason: str
    clip_id: str
    kept_id: str
    picture: Picture
    kept_picture: Picture


class DataCheck(Frozen):
    """The expectations on one stage's output, and whether they held."""

    stage: str
    success: bool
    page: str
    """Great Expectations' own page, as a path from where the report is kept."""
    expectations: tuple[Expectation, ...]


class Curve(Frozen):
    """One panel of training curves."""

    title: str
    x_label: str
    series: dict[str, tuple[tuple[float, float], ...]]


class Generated(Frozen):
    """One generated video, with a real one of the same prompt where there is one."""

    prompt: str
    seed: int
    video: bytes
    real: bytes | None = None


class Reconstruction(Frozen):
    """A real clip and its round trip through the tokenizer."""

    name: str
    real: bytes
    reconstruction: bytes


class ByScale(Frozen):
    """A real clip beside what its tokens show after each scale."""

    name: str
    real: bytes
    steps: tuple[tuple[str, bytes], ...]
    """Grid of the last scale that took part, and the video."""


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
    """Asked-for attribute (rows) against the one that was found (columns)."""

    title: str
    asked: tuple[str, ...]
    found: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class GateRule(Frozen):
    """One row of `releases@1`."""

    rule: str
    value: float | None
    bound: float | None
    passed: bool
    reason: str


class LineageNode(Frozen):
    """One snapshot and the snapshots that it was made from."""

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
    """One protocol lock and the metrics that were taken under it."""

    metrics: dict[str, str]
    """Metric to the digest of its lock."""
    text: str
    """The lock as indented JSON, without the metric's name."""


class ReportData(Frozen):
    """All that the page shows."""

    run_id: str
    pipeline: str
    status: str
    started_at: str
    seconds: float
    hardware: str
    code_version: str
    stages: tuple[StageReport, ...] = ()
    funnel: tuple[FunnelStep, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    repeats: tuple[Repeat, ...] = ()
    checks: tuple[DataCheck, ...] = ()
    curves: tuple[Curve, ...] = ()
    generated: tuple[Generated, ...] = ()
    num_generated: int = 0
    """Samples of the run; the page shows the first of them."""
    reconstructions: tuple[Reconstruction, ...] = ()
    by_scale: tuple[ByScale, ...] = ()
    scores: tuple[Score, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    gate: tuple[GateRule, ...] = ()
    licences: tuple[Licence, ...] = ()
    lineage: tuple[LineageNode, ...] = ()
    config: str = ""
    """The resolved pipeline file as YAML."""
    locks: tuple[Lock, ...] = ()


class Tally(Frozen):
    """Reused and executed stages of a run, for the headline."""

    executed: int
    reused: int
    other: int


def render(data: ReportData) -> str:
    """Return the page of one run as HTML."""
    return _template().render(
        data=data,
        graphs={
            "wide": _graph(data.stages, vertical=False),
            "narrow": _graph(data.stages, vertical=True),
        },
        stages={stage.name: stage for stage in data.stages},
        tally=_tally(data.stages),
        histograms=[(h, histogram(h.edges, h.counts, h.bounds)) for h in data.histograms],
        plots=[(curve, _plot(curve)) for curve in data.curves],
        score_groups=_groups(data.scores),
        guard=static_guard(data.scores),
        tree=_tree(data.lineage),
    )


def static_guard(scores: Sequence[Score]) -> str:
    """Say how far scores that a frozen clip would win can be trusted; empty without such scores.

    A still clip has perfect flicker, smoothness and consistency, so these are only readable next to
    a measure of motion of the same samples.
    """
    taken = {score.metric: score.value for score in scores if score.value is not None}
    still = [name for name in taken if name.endswith(_WON_BY_STANDING_STILL)]
    moving = [name for name in taken if name.endswith(_MEASURES_OF_MOTION)]
    if not still:
        return ""
    won = f"A frozen clip would win {_listed(still, taken)}."
    if not moving:
        return f"{won} No measure of motion was taken beside it: do not read it as quality."
    return f"{won} Read it next to the motion of the same samples: {_listed(moving, taken)}."


_WON_BY_STANDING_STILL = (
    "temporal_flickering",
    "motion_smoothness",
    "subject_consistency",
    "background_consistency",
    "hist_consistency",
    "linear_interp_residual",
)
_MEASURES_OF_MOTION = ("dynamic_degree", "frame_diff_top5", "motion_acc")


def _listed(names: Sequence[str], values: dict[str, float]) -> str:
    return ", ".join(f"{name} ({_number(values[name])})" for name in names)


def _graph(stages: Sequence[StageReport], *, vertical: bool) -> Graph:
    return layered_graph({stage.name: stage.parents for stage in stages}, vertical=vertical)


def _plot(curve: Curve) -> Plot | None:
    finite = any(math.isfinite(y) for points in curve.series.values() for _, y in points)
    return line_plot(curve.series) if finite else None


def _tally(stages: Sequence[StageReport]) -> Tally:
    states = Counter(stage.status.upper() for stage in stages if stage.kind != "input")
    executed, reused = states["SUCCEEDED"], states["CACHED"]
    return Tally(executed=executed, reused=reused, other=states.total() - executed - reused)


def _groups(scores: Sequence[Score]) -> list[tuple[str, list[Score]]]:
    """Group scores by the prefix of their name; those without one come first."""
    groups: dict[str, list[Score]] = {}
    for score in sorted(scores, key=lambda score: "/" in score.metric):
        prefix = score.metric.partition("/")[0] if "/" in score.metric else ""
        groups.setdefault(prefix, []).append(score)
    return list(groups.items())


def _tree(lineage: Sequence[LineageNode]) -> list[tuple[int, str, LineageNode, bool]]:
    """Flatten the lineage into lines of (depth, port, node, already shown above)."""
    nodes = {node.snapshot: node for node in lineage}
    inner = {parent for node in lineage for parent in node.parents.values()}
    lines: list[tuple[int, str, LineageNode, bool]] = []
    shown: set[str] = set()

    def walk(node: LineageNode, depth: int, port: str) -> None:
        lines.append((depth, port, node, node.snapshot in shown and bool(node.parents)))
        if node.snapshot in shown:
            return
        shown.add(node.snapshot)
        for name, parent in node.parents.items():
            if parent in nodes:
                walk(nodes[parent], depth + 1, name)

    for node in lineage:
        if node.snapshot not in inner:
            walk(node, 0, "")
    return lines


def _number(value: float | None) -> str:
    """Return four significant digits; a dash for what is not there."""
    if value is None or not math.isfinite(value):
        return "-"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _tone(status: str) -> str:
    """Return the colour class of a run or stage state."""
    if status.upper() in {"SUCCEEDED", "CACHED"}:
        return "good"
    return "bad" if status.upper() in {"FAILED", "GATE_BLOCKED", "TIMED_OUT"} else "warn"


def _video_url(mp4: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(mp4).decode()


def _picture_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": _number,
        "duration": _duration,
        "tone": _tone,
        "video_url": _video_url,
        "picture_url": _picture_url,
    }
    source = files("videoar.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)
