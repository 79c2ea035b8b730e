"""Geometry of the report's three drawings: a layered graph, a line plot and a histogram.

Numbers in, coordinates out; the template turns them into SVG. Writing the 200 lines ourselves keeps
the page at a few kilobytes with no script and no plotting package, and lets CSS pick the colours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """Where one node of the graph is drawn."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Graph:
    """A drawing of a graph: boxes of one size and SVG path strings between them."""

    width: float
    height: float
    box_width: float
    box_height: float
    boxes: tuple[Box, ...]
    edges: tuple[str, ...]


_LANE = 13.0  # chosen: distance of two parallel long edges, px


def layered_graph(
    parents: Mapping[str, Sequence[str]], *, vertical: bool, box: Point = (132.0, 68.0)
) -> Graph:
    """Lay nodes out in dependency layers.

    Each node stands one layer after its last parent. An edge that skips layers runs in a lane of
    its source beside all boxes, so that it crosses none; edges of one source share their lane.

    Args:
        parents: node name to the names of its parents; acyclic; unknown parents are left out.
        vertical: layers go downwards (narrow screens) rather than to the right.
        box: width and height of a box, px.
    """
    edges = [(p, node) for node, names in parents.items() for p in names if p in parents]
    layer = _layers(parents)
    row = _rows(layer)
    lanes = _lanes(edges, layer)
    along, across = (box[1], box[0]) if vertical else box
    pitch = (along + 34.0, across + 18.0)
    lane_base = (max(row.values(), default=0) + 1) * pitch[1] - 4.0

    def flip(point: Point) -> Point:
        return (point[1], point[0]) if vertical else point

    def route(source: str, target: str) -> str:
        start = (layer[source] * pitch[0] + along, row[source] * pitch[1] + across / 2)
        end = (layer[target] * pitch[0], row[target] * pitch[1] + across / 2)
        via: list[Point] = []
        if layer[target] - layer[source] > 1:
            lane = lane_base + lanes[source] * _LANE
            via = [(start[0] + 34.0, lane), (end[0] - 34.0, lane)]
        return _path([flip(point) for point in (start, *via, end)], vertical=vertical)

    boxes = [Box(node, *flip((layer[node] * pitch[0], row[node] * pitch[1]))) for node in parents]
    length = max(layer.values(), default=0) * pitch[0] + along
    breadth = lane_base - 14.0 + (max(lanes.values()) * _LANE + 20.0 if lanes else 0.0)
    width, height = flip((length, breadth))
    return Graph(width, height, *box, tuple(boxes), tuple(route(*edge) for edge in edges))


def _layers(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    layer: dict[str, int] = {}

    def depth(node: str) -> int:
        if node not in layer:
            layer[node] = 1 + max((depth(p) for p in parents[node] if p in parents), default=-1)
        return layer[node]

    for node in parents:
        depth(node)
    return layer


def _rows(layer: Mapping[str, int]) -> dict[str, int]:
    taken: dict[int, int] = {}
    rows = {}
    for node, index in layer.items():
        rows[node] = taken.get(index, 0)
        taken[index] = rows[node] + 1
    return rows


def _lanes(edges: Sequence[tuple[str, str]], layer: Mapping[str, int]) -> dict[str, int]:
    """Give every source with a long edge the first lane that is free over the edge's span."""
    reach: dict[str, int] = {}
    for source, target in edges:
        if layer[target] - layer[source] > 1:
            reach[source] = max(reach.get(source, 0), layer[target])
    lanes: dict[str, int] = {}
    for source in sorted(reach, key=lambda name: (layer[name], -reach[name])):
        busy = {
            lanes[other]
            for other in lanes
            if layer[other] < reach[source] and layer[source] < reach[other]
        }
        lanes[source] = next(i for i in range(len(reach)) if i not in busy)
    return lanes


def _path(points: Sequence[Point], *, vertical: bool) -> str:
    """Join points by S-curves that leave and arrive along the layer axis."""
    text = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x0, y0), (x1, y1) in pairwise(points):
        xm, ym = (x0 + x1) / 2, (y0 + y1) / 2
        c0, c1 = ((x0, ym), (x1, ym)) if vertical else ((xm, y0), (xm, y1))
        text += f"C{c0[0]:g} {c0[1]:g} {c1[0]:g} {c1[1]:g} {x1:g} {y1:g}"
    return text


@dataclass(frozen=True)
class Line:
    """One series of a plot."""

    name: str
    path: str
    last: float


@dataclass(frozen=True)
class Plot:
    """A line plot: SVG paths and labelled ticks as (position in px, text)."""

    width: float
    height: float
    left: float
    bottom: float
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def line_plot(
    series: Mapping[str, Sequence[Point]], *, width: float = 420.0, height: float = 220.0
) -> Plot:
    """Scale series of (x, y) into a plot with round ticks; points that are not finite are left out.

    Raises:
        ValueError: no finite point at all.
    """
    kept = {
        name: [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
        for name, points in series.items()
    }
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    if not xs:
        raise ValueError("a plot needs a finite point")
    left, right, top, bottom = 46.0, width - 12.0, 10.0, height - 26.0
    x_axis, y_axis = _Axis.of(xs, left, right), _Axis.of(ys, bottom, top)
    lines = [
        Line(name, "M" + "L".join(f"{x_axis(x):.1f} {y_axis(y):.1f}" for x, y in p), p[-1][1])
        for name, p in kept.items()
        if p
    ]
    return Plot(width, height, left, bottom, tuple(lines), x_axis.ticks(), y_axis.ticks())


_TEXT_PX = 70.0  # chosen: room for `max 0.1448`


@dataclass(frozen=True)
class Mark:
    """One upright line and its text."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Bars:
    """A histogram: one SVG path, marks, and labelled ticks as (position in px, text)."""

    width: float
    height: float
    left: float
    top: float
    bottom: float
    path: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    marks: Sequence[tuple[float, str]] = (),
    *,
    width: float = 420.0,
    height: float = 170.0,
) -> Bars:
    """Scale counts between edges into bars; the axis reaches far enough to show every mark.

    Args:
        edges: rising borders of the bins, one more than counts.
        counts: values per bin.
        marks: (value, text) of upright lines.
        width: of the drawing, px.
        height: of the drawing, px.
    """
    left, right, top, bottom = 46.0, width - 12.0, 22.0, height - 26.0
    x_axis = _Axis.of([edges[0], edges[-1], *(value for value, _ in marks)], left, right)
    y_axis = _Axis.of([0.0, max(counts)], bottom, top)
    path = "".join(
        f"M{x_axis(low):.1f} {bottom:g}V{y_axis(count):.1f}H{x_axis(high):.1f}V{bottom:g}Z"
        for (low, high), count in zip(pairwise(edges), counts, strict=True)
        if count
    )
    middle = sum(value for value, _ in marks) / max(1, len(marks))
    placed = tuple(
        Mark(round(x, 1), text, _side(x, left, right, upper=value > middle))
        for value, text in marks
        for x in [x_axis(value)]
    )
    return Bars(width, height, left, top, bottom, path, placed, x_axis.ticks(), y_axis.ticks())


def _side(x: float, left: float, right: float, *, upper: bool) -> str:
    """Return the SVG anchor of a mark's text: away from the other marks, where there is room."""
    if upper:
        return "start" if right - x > _TEXT_PX else "end"
    return "end" if x - left > _TEXT_PX else "start"


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start_px: float
    end_px: float
    step: float

    @classmethod
    def of(cls, values: Sequence[float], start_px: float, end_px: float) -> "_Axis":
        low, high = min(values), max(values)
        if low == high:
            pad = max(0.5, abs(low) / 2)
            low, high = low - pad, high + pad
        step = _round_step((high - low) / 4)
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        return cls(low, high, start_px, end_px, step)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        count = round((self.high - self.low) / self.step)
        values = [self.low + i * self.step for i in range(count + 1)]
        return tuple((round(self(v), 1), _tick_text(v, self.step)) for v in values)


def _round_step(raw: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below `raw`."""
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _tick_text(value: float, step: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.0e}"
    return f"{value:,.{max(0, -math.floor(math.log10(step)))}f}"
