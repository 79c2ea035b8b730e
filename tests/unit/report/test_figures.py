"""Layout of the figures of the report."""

import re

import pytest

from videoar.report.figures import histogram, layered_graph, line_plot, radar

PARENTS = {
    "videos": (),
    "clips": ("videos",),
    "good": ("clips",),
    "tokenizer": ("good",),
    "tokens": ("good", "tokenizer"),
    "model": ("tokens", "tokenizer"),
    "scores": ("model", "good"),
}


def _points(path: str) -> list[tuple[float, float]]:
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_layered_graph_children_follow_parents_within_the_drawing():
    graph = layered_graph(PARENTS)
    at = {box.name: box.x for box in graph.boxes}
    assert all(at[child] > at[parent] for child, names in PARENTS.items() for parent in names)
    for path in graph.edges:
        assert all(0 <= x <= graph.width and 0 <= y <= graph.height for x, y in _points(path))
    for box in graph.boxes:
        assert box.x + graph.box_width <= graph.width
        assert box.y + graph.box_height <= graph.height


def test_layered_graph_boxes_do_not_overlap_and_long_edges_run_below():
    graph = layered_graph({"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c", "a")})
    at = {box.name: box for box in graph.boxes}
    assert at["b"].x == at["c"].x
    assert abs(at["b"].y - at["c"].y) > graph.box_height
    long_edge = max(graph.edges, key=len)
    assert max(y for _, y in _points(long_edge)) > max(b.y for b in graph.boxes) + graph.box_height


def test_layered_graph_overlapping_long_edges_have_two_tracks():
    parents = {"a": (), "b": ("a",), "c": ("b", "a"), "d": ("c", "b"), "e": ("d", "a")}
    graph = layered_graph(parents)
    tracks = {max(y for _, y in _points(path)) for path in graph.edges if path.count("C") == 3}
    assert len(tracks) == 2


def test_layered_graph_without_nodes_is_empty():
    assert layered_graph({}).boxes == ()


def test_line_plot_values_are_mapped_to_round_ticks():
    plot = line_plot({"loss": [(0, 1.0), (50, float("nan")), (100, 0.13)]}, width=400, height=200)
    assert [text for _, text in plot.y_ticks] == ["0.0", "0.5", "1.0"]
    assert [text for _, text in plot.x_ticks] == ["0", "50", "100"]
    (line,) = plot.lines
    assert line.last == 0.13
    (x0, y0), (x1, y1) = _points(line.path)
    assert (x0, y0) == (plot.x_ticks[0][0], plot.y_ticks[-1][0])
    assert x1 == plot.x_ticks[-1][0]
    assert y0 < y1 < plot.bottom


@pytest.mark.parametrize("value", [0.0, 1e-9, -3.5, 4e8])
def test_line_plot_constant_series_has_distinct_ticks(value):
    plot = line_plot({"x": [(1, value), (2, value)]})
    assert len(plot.y_ticks) >= 2
    assert len({text for _, text in plot.y_ticks}) == len(plot.y_ticks)


def test_line_plot_without_finite_point_is_rejected():
    with pytest.raises(ValueError, match="no finite point"):
        line_plot({"x": [(0, float("inf"))]})


def test_histogram_axis_extends_to_marks():
    bars = histogram([0, 1, 2, 3], [[4, 0, 2]], [(10.0, "max 10")], width=400, height=200)
    assert bars.paths[0].count("M") == 2
    tops = [float(part.partition("H")[0]) for part in bars.paths[0].split("V")[1::2]]
    assert tops[0] == bars.y_ticks[-1][0]
    (mark,) = bars.marks
    assert (mark.x, mark.text, mark.anchor) == (bars.x_ticks[-1][0], "max 10", "end")


def test_histogram_axis_leaves_out_empty_bins_at_its_ends():
    bars = histogram([-0.5, 0.0, 0.05, 0.5], [[0, 447, 0]], [(0.1, "max 0.1")])
    assert [text for _, text in bars.x_ticks] == ["0.00", "0.05", "0.10"]


def test_histogram_labels_of_two_marks_point_away_from_each_other():
    bars = histogram([0, 100], [[1]], [(60.0, "max"), (50.0, "min")])
    assert [(mark.text, mark.anchor) for mark in bars.marks] == [("max", "start"), ("min", "end")]


def test_radar_values_are_distances_from_the_centre_and_gaps_are_hollow():
    drawing = radar(["up", "right", "down", "left"], {"a": {"up": 0.5, "right": 2.0}, "b": {}})
    centre, radius = drawing.centre, drawing.rings[-1]
    assert drawing.points == ((centre, centre - radius / 2), (centre + radius, centre))
    assert drawing.hollow == ((centre, centre + radius), (centre - radius, centre))
    outlines = dict(drawing.outlines)
    assert _points(outlines["a"]) == list(drawing.points)
    assert outlines["b"] == ""
    assert [spoke.anchor for spoke in drawing.spokes] == ["middle", "start", "middle", "end"]
    assert all(0 <= x <= drawing.size for spoke in drawing.spokes for x in spoke.label)


def test_histogram_of_two_series_shares_one_axis():
    bars = histogram([0, 1, 2], [[10, 0], [0, 40]])
    assert len(bars.paths) == 2
    assert bars.y_ticks[-1][1] == "40"
