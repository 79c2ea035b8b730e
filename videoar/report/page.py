r"""Render the page of a run, of two, or of a store: an HTML file that opens offline, on any screen.

A page shows `ReportData`, `Comparison` or `Index` only; where a part is missing it has a sentence,
or no section, but never an empty box. Videos and images are embedded as data URLs. Captions, file
names and error texts come from outside, so every value is escaped for HTML, control characters are
shown as `\x1b`, and the page's content security policy forbids scripts and network access.
"""

import base64
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template

from videoar.core.printable import printable
from videoar.evaluation.metric_names import metric_of, unit_of
from videoar.evaluation.vbench import normalized
from videoar.evaluation.vbench_constants import DIMENSIONS
from videoar.report.data import (
    Comparison,
    Curve,
    Histogram,
    Index,
    RefEntry,
    ReportData,
    Score,
    StageReport,
    VBench,
)
from videoar.report.figures import (
    HistogramPlot,
    LinePlot,
    Radar,
    histogram,
    layered_graph,
    line_plot,
    radar,
)


def render(data: ReportData) -> str:
    """Return the page of one run as HTML."""
    chance = [score for score in data.scores if score.is_chance]
    published = json.loads(_resource("vbench_published.json"))
    tone = _tone(data.status)
    histograms = _drawn(data.histograms)
    sections: dict[str, tuple[str, object]] = {
        "pipeline": ("Pipeline", data.stages),
        "filtering": ("Filtering", data.funnel),
        "curation": ("Curation", histograms or data.contact_sheets or data.duplicates),
        "checks": ("Data checks", data.checks),
        "videos": ("Generated videos", data.generated),
        "reconstructions": ("Reconstructions", data.reconstructions or data.scale_series),
        "scores": ("Scores", data.scores),
        "worst": ("Worst samples", data.galleries),
        "distance": ("Distance and drift", data.score_curves),
        "vbench": ("VBench", data.vbench),
        "confusion": ("Confusion matrices", data.confusions),
        "training": ("Training", data.curves),
        "lineage": ("Lineage", data.licences or data.lineage),
        "config": ("Configuration", data.config),
        "lock": ("Protocol lock", data.locks),
    }
    return _page("page.html.j2").render(
        data=data,
        # a run whose scores are those of guessing has succeeded at nothing
        tone="warn" if chance and tone == "good" else tone,
        chance=chance,
        shown={
            name: title
            for name, (title, content) in sections.items()
            if content or data.damage.get(name)
        },
        damage=defaultdict(tuple, data.damage),
        # the error of a blocked run repeats the rules that failed
        is_explained=any(data.error.startswith(f"gate {gate.stage}: ") for gate in data.gates),
        ungated=[
            stage
            for stage in data.stages
            if stage.kind == "promote" and stage.name not in {gate.stage for gate in data.gates}
        ],
        stage_graph=layered_graph({stage.name: stage.parents for stage in data.stages}),
        stages={stage.name: stage for stage in data.stages},
        stage_counts=_stage_counts(data.stages),
        histograms=histograms,
        plots=[(curve, _plot(curve)) for curve in data.curves],
        score_plots=[(curve, _plot(curve)) for curve in data.score_curves],
        score_groups=_groups(data.scores),
        compared=any(score.change for score in data.scores),
        protocols=defaultdict(str, {score.metric: score.protocol for score in data.scores}),
        frozen_clip_warning=frozen_clip_warning(data.scores),
        published=published,
        radar=_radar(data.vbench, published["dimensions"]) if data.vbench else None,
        vbench_rows=_vbench_rows(data.vbench, published["models"]) if data.vbench else [],
    )


def render_comparison(data: Comparison) -> str:
    """Return the page of two runs or snapshots as HTML."""
    return _page("comparison.html.j2").render(data=data, histograms=_drawn(data.histograms))


def render_index(data: Index) -> str:
    """Return the page of a store as HTML."""
    newest: dict[str, RefEntry] = {}
    for entry in data.entries:
        newest.setdefault(entry.ref, entry)
    return _page("index.html.j2").render(
        data=data,
        heads=[entry for entry in newest.values() if entry.is_model],
        pages=defaultdict(str, {run.name: run.page for run in data.runs}),
        plots=[(curve, _plot(curve)) for curve in data.score_curves],
        growth=[(curve, _plot(curve)) for curve in data.growth],
    )


def _drawn(histograms: Sequence[Histogram]) -> list[tuple[Histogram, HistogramPlot]]:
    return [
        (h, histogram(h.edges, [h.counts, *([h.other] if h.other else [])], h.bounds))
        for h in histograms
    ]


def _radar(ours: VBench, published: Mapping[str, Mapping[str, float]]) -> Radar:
    return radar(
        DIMENSIONS,
        {
            name: {dimension: normalized(dimension, value) for dimension, value in raw.items()}
            for name, raw in {"this model": ours.dimensions, **published}.items()
        },
    )


def _vbench_rows(
    ours: VBench, published: Sequence[Sequence[str | float | None]]
) -> list[Sequence[str | float | None]]:
    return [("this model", *map(ours.totals.get, ("total", "quality", "semantic"))), *published]


def frozen_clip_warning(scores: Sequence[Score]) -> str:
    """Return how to read scores that a frozen clip would maximize; "" without such scores.

    A frozen clip has perfect flickering, smoothness and consistency, so these scores are meaningful
    only together with a measure of motion of the same samples.
    """
    values = {
        score.metric: score.value
        for score in scores
        if score.value is not None and not score.metric.startswith("rendered_recon/")
    }  # reconstructions are other clips than the samples
    # names have prefixes of their method, such as `proxy/`
    perfect = [name for name in values if name.endswith(_PERFECT_WHEN_FROZEN)]
    motion = [name for name in values if name.endswith(_MOTION)]
    if not perfect:
        return ""
    warning = f"A frozen clip would score best on {_listed(perfect, values)}."
    if not motion:
        return f"{warning} No motion was measured, so this is no evidence of quality."
    return f"{warning} Read it together with the motion of the same samples: " + (
        f"{_listed(motion, values)}."
    )


# The first four are VBench dimensions, the others are names of proxies for them.
_PERFECT_WHEN_FROZEN = (
    "temporal_flickering",
    "motion_smoothness",
    "subject_consistency",
    "background_consistency",
    "hist_consistency",
    "linear_interp_residual",
)
_MOTION = ("dynamic_degree", "frame_diff_top5", "motion_acc")


def _listed(names: Sequence[str], values: dict[str, float]) -> str:
    return ", ".join(f"{name} ({_number(values[name])})" for name in names)


def _plot(curve: Curve) -> LinePlot | None:
    finite = any(math.isfinite(y) for points in curve.series.values() for _, y in points)
    return line_plot(curve.series) if finite else None


def _stage_counts(stages: Sequence[StageReport]) -> dict[str, int]:
    """Count the stages of a run by what happened to them."""
    happened = {"SUCCEEDED": "executed", "CACHED": "cached", "SKIPPED": "skipped"}
    none = dict.fromkeys((*happened.values(), "unfinished"), 0)
    counted = (happened.get(s.status, "unfinished") for s in stages if s.kind != "input")
    return none | Counter(counted)


def _groups(scores: Sequence[Score]) -> list[tuple[str, list[Score]]]:
    """Group scores by table and prefix; distances and scores without a prefix come first."""
    several = len({score.table for score in scores}) > 1
    groups: dict[str, list[Score]] = {}
    # Sorting is stable: within a group the order of the table is kept.
    for score in sorted(scores, key=lambda score: _prefix(score.metric) != ""):
        parts = (score.table if several else "", _prefix(score.metric))
        groups.setdefault(": ".join(filter(None, parts)), []).append(score)
    return list(groups.items())


def _prefix(metric: str) -> str:
    definition = metric_of(metric)
    is_distance = definition is not None and definition.is_distance
    return "" if is_distance or "/" not in metric else metric.partition("/")[0]


def _number(value: float | None) -> str:
    """Return four significant digits; a dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "-"
    # Scientific notation where four digits would need more than five places or leading zeros.
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + _number(value)


def _count(number: int, noun: str) -> str:
    """Return `1 row`, `2,000 rows`."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    # rounded first: 119.6 s are 2 min 0 s, not 1 min 60 s
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _size(num_bytes: float) -> str:
    """Return `812 B`, `3.4 MB`: powers of 1,000, as disks and stores are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 999.5 or unit == "TB":  # 999.5 would be printed as 1,000
            break
        num_bytes /= 1000
    digits = ".3g" if abs(num_bytes) < 999.5 else ".0f"
    return f"{num_bytes:,{digits}} {unit}"


def _tone(status: str) -> str:
    """Return the CSS class of the colour of a run or stage status."""
    if status in {"SUCCEEDED", "CACHED"}:
        return "good"
    if status == "SKIPPED":
        return "soft"
    return "bad" if status in {"FAILED", "GATE_BLOCKED", "TIMED_OUT", "DAMAGED"} else "warn"


def _words(name: str) -> str:
    """Return `LOW_MOTION` as `LOW MOTION`: browsers wrap lines at spaces only."""
    return name.replace("_", " ")


# Base64 costs a third of the bytes more than a file would, but the page stays one file.
def _video_url(mp4: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(mp4).decode()


def _image_url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _finalize(value: object) -> object:
    """Escape control characters of a value; Jinja calls this for every expression that it prints.

    The output of macros has `__html__`: it consists of values that were escaped before.
    """
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _resource(name: str) -> str:
    # a resource of the package: found in an installed wheel, too
    return files("videoar.report").joinpath(name).read_text(encoding="utf-8")


@lru_cache
def _page(name: str) -> Template:
    # StrictUndefined: a misspelt field fails the tests instead of printing an empty string.
    environment = Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "signed": _signed,
        "count": _count,
        "duration": _duration,
        "size": _size,
        "tone": _tone,
        "words": _words,
        "unit": unit_of,
        "video_url": _video_url,
        "image_url": _image_url,
    }
    return environment.get_template(name)
