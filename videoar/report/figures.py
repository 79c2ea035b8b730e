"""Layout of the figures of the pages: a layered graph, a line plot, a histogram and a radar.

Functions map values to coordinates in px; the template writes them as SVG. A plotting package would
add a dependency and some 100 kB per figure, and its colours could not follow CSS (dark mode).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """Top left corner of a node of the graph, px."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Graph:
    """Layout of a graph: boxes of equal size, edges as SVG path data."""

    width: float
    height: float
    box_width: float
    box_height: float
    boxes: tuple[Box, ...]
    edges: tuple[str, ...]


_TRACK_PX = 13.0  # chosen: distance of two parallel edges, about the height of a line of text
_LAYER_GAP_PX = 34.0  # chosen: room for the bend of an edge between two layers
_ROW_GAP_PX = 18.0


def layered_graph(parents: Mapping[str, Sequence[str]], *, box: Point = (132.0, 68.0)) -> Graph:
    """Lay out nodes in dependency layers.

    Each node is one layer after its last parent. An edge over several layers runs in a track beside
    all boxes, so that it crosses none; edges of one source share its track.

        a -> b -> c      layers 0, 1, 2; the edge a -> c skips layer 1,
        '---------^      so it runs in the first track below the boxes

    Args:
        parents: node name to the names of its parents; acyclic; unknown parents are ignored.
        box: width and height of a box, px.
    """
    edges = [(p, node) for node, names in parents.items() for p in names if p in parents]
    layer = _layers(parents)
    row = _rows(layer)
    tracks = _tracks(edges, layer)
    pitch = (box[0] + _LAYER_GAP_PX, box[1] + _ROW_GAP_PX)
    track_base = (max(row.values(), default=0) + 1) * pitch[1] - 4.0

    def route(source: str, target: str) -> str:
        start = (layer[source] * pitch[0] + box[0], row[source] * pitch[1] + box[1] / 2)
        end = (layer[target] * pitch[0], row[target] * pitch[1] + box[1] / 2)
        via: list[Point] = []
        if layer[target] - layer[source] > 1:
            track = track_base + tracks[source] * _TRACK_PX
            via = [(start[0] + _LAYER_GAP_PX, track), (end[0] - _LAYER_GAP_PX, track)]
        return _path([start, *via, end])

    boxes = [Box(node, layer[node] * pitch[0], row[node] * pitch[1]) for node in parents]
    width = max(layer.values(), default=0) * pitch[0] + box[0]
    height = track_base - 14.0 + (max(tracks.values()) * _TRACK_PX + 20.0 if tracks else 0.0)
    return Graph(width, height, *box, tuple(boxes), tuple(route(*edge) for edge in edges))


def _layers(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the length of the longest path from a root to each node."""
    layer: dict[str, int] = {}

    def depth(node: str) -> int:
        if node not in layer:
            layer[node] = 1 + max((depth(p) for p in parents[node] if p in parents), default=-1)
        return layer[node]

    for node in parents:
        depth(node)
    return layer


def _rows(layer: Mapping[str, int]) -> dict[str, int]:
    """Return the position of each node within its layer, in the order of the mapping."""
    used: dict[int, int] = {}
    rows = {}
    for node, index in layer.items():
        rows[node] = used.get(index, 0)
        used[index] = rows[node] + 1
    return rows


def _tracks(edges: Sequence[tuple[str, str]], layer: Mapping[str, int]) -> dict[str, int]:
    """Return the track of each source with a long edge: the first one free over the edge's span.

    Greedy colouring of intervals in order of their start needs the smallest number of tracks.
    """
    reach: dict[str, int] = {}
    for source, target in edges:
        if layer[target] - layer[source] > 1:
            reach[source] = max(reach.get(source, 0), layer[target])
    tracks: dict[str, int] = {}
    # of edges that start in one layer the longest first: the others run outside of it
    for source in sorted(reach, key=lambda name: (layer[name], -reach[name])):
        used = {
            tracks[other]
            for other in tracks
            # strict: edges that only meet in a layer can share a track
            if layer[other] < reach[source] and layer[source] < reach[other]
        }
        tracks[source] = next(i for i in range(len(reach)) if i not in used)
    return tracks


def _path(points: Sequence[Point]) -> str:
    """Join points by cubic Bezier curves whose ends are parallel to the layer axis."""
    text = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x0, y0), (x1, y1) in pairwise(points):
        xm = (x0 + x1) / 2
        text += f"C{xm:g} {y0:g} {xm:g} {y1:g} {x1:g} {y1:g}"
    return text


@dataclass(frozen=True)
class Line:
    """One series of a plot: SVG path data and the last value."""

    name: str
    path: str
    last: float


@dataclass(frozen=True)
class LinePlot:
    """Layout of a line plot; ticks are (position in px, text)."""

    width: float
    height: float
    left: float
    bottom: float
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def line_plot(
    series: Mapping[str, Sequence[Point]], *, width: float = 420.0, height: float = 220.0
) -> LinePlot:
    """Return the layout of series of (x, y) with round ticks; non-finite points are omitted.

    Raises:
        ValueError: no point is finite.
    """
    finite = {
        name: [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
        for name, points in series.items()
    }
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    if not xs:
        raise ValueError("no finite point to plot")
    # Margins: 46 px for labels of the y axis, 26 px for those of the x axis.
    left, right, top, bottom = 46.0, width - 12.0, 10.0, height - 26.0
    x_axis, y_axis = _Axis.of(xs, left, right), _Axis.of(ys, bottom, top)
    lines = [
        # a tenth of a px cannot be seen, and more digits would double the size of a curve
        Line(name, "M" + "L".join(f"{x_axis(x):.1f} {y_axis(y):.1f}" for x, y in p), p[-1][1])
        for name, p in finite.items()
        if p
    ]
    return LinePlot(width, height, left, bottom, tuple(lines), x_axis.ticks(), y_axis.ticks())


_LABEL_PX = 70.0  # chosen: width of `max 0.1448` at 12 px


@dataclass(frozen=True)
class Mark:
    """One vertical line and its label; `anchor` is SVG's text-anchor, start or end."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True)
class HistogramPlot:
    """Layout of a histogram: all bars of a series as one SVG path; ticks are (px, text)."""

    width: float
    height: float
    left: float
    top: float
    bottom: float
    paths: tuple[str, ...]
    marks: tuple[Mark, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def histogram(
    edges: Sequence[float],
    series: Sequence[Sequence[float]],
    marks: Sequence[tuple[float, str]] = (),
    *,
    width: float = 420.0,
    height: float = 170.0,
) -> HistogramPlot:
    """Return the layout of a histogram; the x axis extends to every mark and every filled bin.

    Args:
        edges: ascending borders of the bins, one more than counts.
        series: values per bin, of each series.
        marks: (value, label) of vertical lines.
        width: width of the figure, px.
        height: height of the figure, px.
    """
    left, right, top, bottom = 46.0, width - 12.0, 22.0, height - 26.0
    filled = [i for i, counts in enumerate(zip(*series, strict=True)) if any(counts)] or [0]
    borders = edges[filled[0]], edges[filled[-1] + 1]  # bins of a constant are half empty
    x_axis = _Axis.of([*borders, *(value for value, _ in marks)], left, right)
    # from 0, because bars are compared by their height
    y_axis = _Axis.of([0.0, *(max(counts) for counts in series)], bottom, top)
    paths = tuple(
        "".join(
            f"M{x_axis(low):.1f} {bottom:g}V{y_axis(count):.1f}H{x_axis(high):.1f}V{bottom:g}Z"
            for (low, high), count in zip(pairwise(edges), counts, strict=True)
            if count
        )
        for counts in series
    )
    middle = sum(value for value, _ in marks) / max(1, len(marks))
    placed = tuple(
        Mark(round(x, 1), text, _side(x, left, right, upper=value > middle))
        for value, text in marks
        for x in [x_axis(value)]
    )
    return HistogramPlot(
        width, height, left, top, bottom, paths, placed, x_axis.ticks(), y_axis.ticks()
    )


def _side(x: float, left: float, right: float, *, upper: bool) -> str:
    """Return the text-anchor of a mark's label: away from the other marks if the label fits."""
    if upper:
        return "start" if right - x > _LABEL_PX else "end"
    return "end" if x - left > _LABEL_PX else "start"


@dataclass(frozen=True)
class Spoke:
    """One axis of a radar: its end, and where its label begins or ends."""

    name: str
    end: Point
    label: Point
    anchor: str
    """SVG's text-anchor."""


@dataclass(frozen=True)
class Radar:
    """Layout of a radar: rings at fifths of the scale, and per series an outline and its points."""

    size: float
    centre: float
    rings: tuple[float, ...]
    spokes: tuple[Spoke, ...]
    outlines: tuple[tuple[str, str], ...]
    """Name and SVG path; a gap where an axis has no value."""
    points: tuple[Point, ...]
    """Of the first series."""
    hollow: tuple[Point, ...]
    """Ends of the axes on which the first series has no value."""


def radar(
    names: Sequence[str], series: Mapping[str, Mapping[str, float]], *, size: float = 440.0
) -> Radar:
    """Return the layout of series of values in [0, 1], an axis per name, clockwise from the top.

    Args:
        names: of the axes.
        series: value by axis, of each series; values beyond [0, 1] are drawn at its ends.
        size: width and height of the figure, px.
    """
    centre, radius = size / 2, size / 2 - 84.0  # px of a label: `consistency` at 12 px

    def at(index: int, value: float, extra: float = 0.0) -> Point:
        angle = 2 * math.pi * (index % len(names)) / len(names)
        reach = radius * min(1.0, max(0.0, value)) + extra
        x, y = centre + reach * math.sin(angle), centre - reach * math.cos(angle)
        return round(x, 1), round(y, 1)

    def outline(values: Mapping[str, float]) -> str:
        steps = [
            (at(i, values[name]), at(i + 1, values[after]))
            for i, (name, after) in enumerate(pairwise([*names, *names[:1]]))
            if name in values and after in values
        ]
        return "".join(f"M{x0:g} {y0:g}L{x1:g} {y1:g}" for (x0, y0), (x1, y1) in steps)

    def spoke(index: int, name: str) -> Spoke:
        x, y = at(index, 1.0, 12.0)
        anchor = "middle" if abs(x - centre) < 4.0 else "start" if x > centre else "end"
        # a label has two lines: above the circle it ends at the point, below it begins there
        first_line = round(y - 2.0 - 12.0 * (centre - y) / radius, 1)
        return Spoke(name, at(index, 1.0), (x, first_line), anchor)

    first = next(iter(series.values()))
    return Radar(
        size=size,
        centre=centre,
        rings=tuple(radius * step / 5 for step in range(1, 6)),
        spokes=tuple(spoke(i, name) for i, name in enumerate(names)),
        outlines=tuple((name, outline(values)) for name, values in series.items()),
        points=tuple(at(i, first[name]) for i, name in enumerate(names) if name in first),
        hollow=tuple(at(i, 1.0) for i, name in enumerate(names) if name not in first),
    )


@dataclass(frozen=True)
class _Axis:
    """Linear scale with round ends; SVG's y points down, so y axes start at the larger px."""

    low: float
    high: float
    start_px: float
    end_px: float
    step: float

    @classmethod
    def of(cls, values: Sequence[float], start_px: float, end_px: float) -> "_Axis":
        low, high = min(values), max(values)
        if low == high:  # a constant series: an axis of zero length has no scale
            pad = max(0.5, abs(low) / 2)
            low, high = low - pad, high + pad
        step = _round_step((high - low) / 4)
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        return cls(low, high, start_px, end_px, step)

    def __call__(self, value: float) -> float:
        fraction = (value - self.low) / (self.high - self.low)
        return self.start_px + fraction * (self.end_px - self.start_px)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        count = round((self.high - self.low) / self.step)
        values = [self.low + i * self.step for i in range(count + 1)]
        return tuple((round(self(v), 1), _tick_text(v, self.step)) for v in values)


def _round_step(raw: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least `raw`.

    1e-9 is the tolerance for rounding errors of `raw`: a step of 0.2 must not become 0.5.
    """
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _tick_text(value: float, step: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.0e}"
    return f"{value:,.{max(0, -math.floor(math.log10(step)))}f}"
