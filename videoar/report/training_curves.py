"""Curves of trainings and their numbers per block, of a report page."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from videoar.pipeline.work.progress import read_progress
from videoar.records.run import Run
from videoar.report import scores
from videoar.report.data import BlockTable, Curve
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

# Names of `training.held_out`.
_BLOCK = re.compile(
    r"(?P<variant>\w+)/frame(?P<frame>\d+)/scale(?P<scale>\d+)/block_(?P<quantity>nats|accuracy)"
)
_VARIANTS = {
    "val": "held-out blocks, clean history",
    "val_flipped": "held-out blocks, flipped history",
}
_UNITS = {
    "bit_accuracy": "fraction",
    "bit_entropy": "bits",
    "bits_per_frame": "bits",
    "frame_nats": "nats per bit",
    "psnr_db": "dB",
    "scale_nats": "nats per bit",
}
_SAMPLES = "samples/"  # of `training.sampling`: scores of a few samples during the training


def recorded_curves(models: Iterable[Snapshot]) -> Iterator[tuple[Curve, bool]]:
    """Yield the curves of trainings, and whether they are scores of samples."""
    for model in models:
        for row in model.table(columns=["history_json"]).to_pylist():
            yield from _curves_of(model.dataset, json.loads(row["history_json"]))


def running_curves(store: Store, run: Run) -> Iterator[tuple[Curve, bool]]:
    """Yield the curves so far of a training that runs, or was killed."""
    for stage in run.stages:
        # read again, as the run has it without the curve
        if stage.progress and (found := read_progress(store, run.run_id, stage.name)):
            yield from _curves_of(stage.name, found[1])


def _curves_of(name: str, history: Sequence[Mapping[str, float]]) -> Iterator[tuple[Curve, bool]]:
    panels = _panels(history)
    for quantity, lines in panels.items():
        series = {name: tuple(points) for name, points in lines.items()}
        is_score = quantity.startswith(_SAMPLES)
        title = f"{name}: {quantity.removeprefix(_SAMPLES)}"
        unit = _UNITS.get(quantity) or scores.axis_unit(quantity.removeprefix(_SAMPLES))
        if quantity == "loss" and "bit_accuracy" in panels:  # of a transformer
            unit = _UNITS["scale_nats"]
        yield Curve(title=title, x_label="steps", unit=unit, series=series), is_score


def _panels(
    history: Sequence[Mapping[str, float]],
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Group the training history by quantity: `train/loss` and `val/loss` share a panel."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point in history:
        for name in point.keys() - {"step"}:
            if _BLOCK.fullmatch(name):
                continue  # a line per block could not be told apart: see `block_tables`
            quantity = name if name.startswith(_SAMPLES) else name.rpartition("/")[2]
            panels.setdefault(quantity, {}).setdefault(name, []).append((
                point["step"],
                point[name],
            ))
    return {quantity: dict(sorted(panels[quantity].items())) for quantity in sorted(panels)}


def block_tables(models: Iterable[Snapshot]) -> Iterator[BlockTable]:
    """Yield the last held-out numbers per block of each model, clean and corrupted."""
    for model in models:
        for row in model.table(columns=["history_json"]).to_pylist():
            history = json.loads(row["history_json"])
            measured = [point for point in history if any(map(_BLOCK.fullmatch, point))]
            for variant, what in _VARIANTS.items() if measured else ():
                cells = _cells(measured[-1], variant)
                if cells:
                    title = f"{model.dataset}: {what}"
                    yield BlockTable(title=title, step=measured[-1]["step"], cells=cells)


def _cells(
    point: Mapping[str, float], variant: str
) -> tuple[tuple[tuple[float, float] | None, ...], ...]:
    """Return (nats, accuracy) by frame and scale."""
    values: dict[tuple[int, int, str], float] = {}
    for name, value in point.items():
        match = _BLOCK.fullmatch(name)
        if match and match["variant"] == variant:
            values[int(match["frame"]), int(match["scale"]), match["quantity"]] = value
    frames = 1 + max((frame for frame, _, _ in values), default=-1)
    scales = 1 + max((scale for _, scale, _ in values), default=-1)
    return tuple(
        tuple(
            (values[t, k, "nats"], values[t, k, "accuracy"]) if (t, k, "nats") in values else None
            for k in range(scales)
        )
        for t in range(frames)
    )
