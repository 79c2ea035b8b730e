"""Collect the data of a run's report page from the run record and the snapshots that it names.

Works for any pipeline: snapshots are selected by their contracts, not by the names of stages. A run
that ended early has fewer snapshots, and its page fewer sections.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

import yaml

from videoar.contracts.names import CLIPS, MODELS, PROFILES, RELEASES, SAMPLES, SCORES, SOURCES
from videoar.core.errors import WithdrawnError
from videoar.core.ids import canonical_json
from videoar.core.types import Row
from videoar.records.lineage import sources_of
from videoar.records.run_record import Run, events_of
from videoar.report.curation import (
    THUMBNAIL_BUDGET_S,
    contact_sheets,
    data_checks,
    duplicate_pairs,
    filter_steps,
    score_histograms,
)
from videoar.report.data import (
    BlockTable,
    Confusion,
    Curve,
    FunnelStep,
    GateRule,
    GeneratedSample,
    Licence,
    LineageNode,
    Lock,
    Reconstruction,
    ReportData,
    ScaleSeries,
    Score,
    StageReport,
)
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
_SHOWN_SAMPLES = 24  # chosen: about 1 MB of demo clips; a page of them reads in a minute


def collect(
    store: Store, run: Run, *, thumbnail_budget_s: float = THUMBNAIL_BUDGET_S
) -> ReportData:
    """Return the report data of a run of any status, finished or not.

    Args:
        store: where the run is recorded.
        run: its state.
        thumbnail_budget_s: longest time to read the thumbnails of one filter stage, seconds.
    """
    events = events_of(store, run.run_id)
    inputs = _inputs(store, run)
    outputs = [store.snapshot(snapshot_id) for snapshot_id in run.outputs.values()]
    by_contract: dict[str, list[Snapshot]] = {}
    for snapshot in [*inputs.values(), *outputs]:
        by_contract.setdefault(snapshot.contract, []).append(snapshot)
    clips = by_contract.get(CLIPS, [])
    steps = filter_steps(store, outputs)
    scores = _rows(by_contract.get(SCORES, []))
    samples = _rows(by_contract.get(SAMPLES, []))
    return ReportData(
        run_id=run.run_id,
        pipeline=run.pipeline,
        status=run.status,
        started_at=f"{datetime.fromtimestamp(run.started_at, UTC):%Y-%m-%d %H:%M:%S} UTC",
        seconds=run.seconds,
        # A resumed run can have several drivers: the newest one counts.
        hardware=next((e["hardware"] for e in reversed(events) if "hardware" in e), "not recorded"),
        code_version=run.code_version,
        error=run.error or "",
        stages=(*_input_nodes(run, inputs), *_stage_nodes(run)),
        funnel=_funnel(store, run, [*inputs.items(), *((s.dataset, s) for s in outputs)]),
        histograms=tuple(score_histograms(steps, by_contract.get(PROFILES, []))),
        contact_sheets=tuple(contact_sheets(store, steps, thumbnail_budget_s)),
        duplicates=tuple(duplicate_pairs(store, steps, thumbnail_budget_s)),
        checks=tuple(data_checks(store, run)),
        curves=tuple(_curves(by_contract.get(MODELS, []))),
        blocks=tuple(_blocks(by_contract.get(MODELS, []))),
        generated=_generated(store, samples, clips),
        num_generated=len(samples),
        reconstructions=_reconstructions(store, scores),
        scale_series=tuple(_scale_series(store, scores)),
        scores=tuple(_score(row) for row in scores),
        confusions=tuple(_confusions(scores)),
        gate=tuple(_rule(row) for row in _rows(by_contract.get(RELEASES, []))),
        # The last clips are those after all filters: what the model was trained on.
        licences=_licences(clips[-1:] or by_contract.get(SOURCES, [])),
        lineage=_lineage(store, outputs),
        config=_config(run, events),
        locks=_locks(scores),
    )


def _rows(snapshots: Iterable[Snapshot]) -> list[Row]:
    return [row for snapshot in snapshots for row in snapshot.table().to_pylist()]


def _inputs(store: Store, run: Run) -> dict[str, Snapshot]:
    """Return the snapshots of the pipeline's inputs that a started stage reads, by input name."""
    names = run.document["inputs"]
    result = {}
    for stage in run.stages:
        for port, source in _ports(run, stage.name).items():
            if source in names and port in stage.inputs:
                result[source] = store.snapshot(stage.inputs[port])
    return result


def _ports(run: Run, stage: str) -> Mapping[str, str]:
    ports: Mapping[str, str] = run.document["stages"][stage].get("from", {})
    return ports


def _input_nodes(run: Run, inputs: Mapping[str, Snapshot]) -> Iterator[StageReport]:
    for name in run.document["inputs"]:
        snapshot = inputs.get(name)
        yield StageReport(
            name=name,
            kind="input",
            status="SUCCEEDED" if snapshot else "PENDING",
            snapshot=snapshot.id if snapshot else "",
            rows_out=snapshot.rows if snapshot else None,
        )


def _stage_nodes(run: Run) -> Iterator[StageReport]:
    for stage in run.stages:
        yield StageReport(
            name=stage.name,
            kind=stage.type,
            status=stage.status,
            parents=tuple(dict.fromkeys(_ports(run, stage.name).values())),
            snapshot=stage.snapshot or "",
            # 0: not counted, e.g. because the stage was cached
            rows_in=stage.rows.in_ or None,
            rows_out=stage.rows.out if stage.snapshot else None,
            seconds=stage.seconds,
            metrics=stage.metrics,
        )


def _funnel(
    store: Store, run: Run, snapshots: Iterable[tuple[str, Snapshot]]
) -> tuple[FunnelStep, ...]:
    rejects = {stage.name: stage.rejects for stage in run.stages}
    units = {SOURCES: "videos", CLIPS: "clips"}
    return tuple(
        FunnelStep(
            name=name,
            unit=units[snapshot.contract],
            count=snapshot.rows,
            reasons=_reasons(store, rejects.get(name)),
        )
        for name, snapshot in snapshots
        if snapshot.contract in units
    )


def _reasons(store: Store, rejects: str | None) -> tuple[tuple[str, int], ...]:
    """Count rejected items by decisive (first) reason, without those removed by a takedown."""
    rows = store.snapshot(rejects).available_rows(["reasons"]) if rejects else ()
    return tuple(Counter(row["reasons"][0] for row in rows).most_common())


def _curves(models: Iterable[Snapshot]) -> Iterator[Curve]:
    for model in models:
        for row in model.table(columns=["history_json"]).to_pylist():
            for quantity, lines in _panels(json.loads(row["history_json"])).items():
                series = {name: tuple(points) for name, points in lines.items()}
                yield Curve(title=f"{model.dataset}: {quantity}", x_label="steps", series=series)


def _panels(history: list[dict[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Group the training history by quantity: `train/loss` and `val/loss` share a panel."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point in history:
        for name in point.keys() - {"step"}:
            if _BLOCK.fullmatch(name):
                continue  # a line per block could not be told apart: see `_blocks`
            series = panels.setdefault(name.rpartition("/")[2], {})
            series.setdefault(name, []).append((point["step"], point[name]))
    return {quantity: dict(sorted(panels[quantity].items())) for quantity in sorted(panels)}


def _blocks(models: Iterable[Snapshot]) -> Iterator[BlockTable]:
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


def _generated(
    store: Store, samples: list[Row], clips: list[Snapshot]
) -> tuple[GeneratedSample, ...]:
    # A stable sort by the index within the prompt: the first sample of each prompt in order of the
    # prompts, then the second ones.
    shown = sorted(samples, key=lambda row: row["index"])[:_SHOWN_SAMPLES]
    real = _clips_by_text(clips)
    return tuple(
        GeneratedSample(
            prompt=row["prompt"],
            seed=row["seed"],
            video=store.objects.get(row["video_key"]),
            # a prompt is a caption, or made of a class
            real=_video(store, real.get(row["prompt"], real.get(row["label"]))),
        )
        for row in shown
    )


def _clips_by_text(clips: Iterable[Snapshot]) -> dict[str, str]:
    """Return a video key per caption and per class; of several snapshots the last one wins."""
    result: dict[str, str] = {}
    for snapshot in clips:
        for row in snapshot.available_rows(["caption", "label", "video_key"]):
            if row["video_key"]:  # None: the clip is a reference to a part of its source
                texts = filter(None, (row["label"], row["caption"]))
                result |= dict.fromkeys(texts, row["video_key"])
    return result


def _video(store: Store, key: str | None) -> bytes | None:
    """Return the MP4 of a clip; None without a key, or if a takedown has withdrawn the object."""
    try:
        return store.objects.get(key) if key else None
    except WithdrawnError:
        return None


def _reconstructions(store: Store, scores: list[Row]) -> tuple[Reconstruction, ...]:
    examples = (
        example for row in scores for example in json.loads(row["details_json"]).get("examples", ())
    )
    return tuple(
        Reconstruction(name=example["clip_id"], real=real, reconstruction=reconstruction)
        for example in examples
        if (real := _video(store, example["real_key"])) is not None
        and (reconstruction := _video(store, example["recon_key"])) is not None
    )


def _scale_series(store: Store, scores: list[Row]) -> Iterator[ScaleSeries]:
    """Yield the series of each clip of which no video was withdrawn."""
    details = [json.loads(row["details_json"]) for row in scores]
    real_key = {e["clip_id"]: e["real_key"] for d in details for e in d.get("examples", ())}
    steps: dict[str, list[tuple[str, bytes | None]]] = {}
    for entry in (entry for detail in details for entry in detail.get("by_scale", ())):
        step = (f"up to {entry['grid']}", _video(store, entry["recon_key"]))
        steps.setdefault(entry["clip_id"], []).append(step)
    for clip_id, series in steps.items():
        # `score` stores scales of its first example only, so its real clip is among the examples
        real = _video(store, real_key[clip_id])
        videos = tuple((grid, video) for grid, video in series if video is not None)
        if real is not None and len(videos) == len(series):
            yield ScaleSeries(name=clip_id, real=real, steps=videos)


def _score(row: Row) -> Score:
    return Score.model_validate({name: row[name] for name in Score.model_fields})


def _confusions(scores: list[Row]) -> Iterator[Confusion]:
    for row in scores:
        # only metrics that classify samples have one
        table = json.loads(row["details_json"]).get("confusion")
        if table:
            # Keys of canonical JSON are sorted; columns that are no row (`none`) go last.
            names = {name for line in table.values() for name in line}
            predicted = (*(name for name in table if name in names), *sorted(names - table.keys()))
            counts = (tuple(line.get(name, 0) for name in predicted) for line in table.values())
            yield Confusion(
                title=row["metric"],
                prompted=tuple(table),
                predicted=predicted,
                counts=tuple(counts),
            )


def _rule(row: Row) -> GateRule:
    return GateRule.model_validate({name: row[name] for name in GateRule.model_fields})


def _licences(snapshots: Iterable[Snapshot]) -> tuple[Licence, ...]:
    """Count distinct source videos by licence and origin: those of the kept clips, if any."""
    terms: dict[str, tuple[str, str]] = {}
    for snapshot in snapshots:
        is_clips = snapshot.contract == CLIPS
        for row in sources_of(snapshot) if is_clips else _rows([snapshot]):
            # by source: many clips, and several snapshots, come from one video
            stated = (row["licence"] or "not stated", row["origin"] or "not stated")
            terms[row["sha256" if is_clips else "uri"]] = stated
    return tuple(
        Licence(name=name, origin=origin, num_videos=count)
        for (name, origin), count in Counter(terms.values()).most_common()
    )


def _lineage(store: Store, outputs: list[Snapshot]) -> tuple[LineageNode, ...]:
    """Return the output snapshots of a run, the last first, then their ancestors."""
    nodes: dict[str, LineageNode] = {}
    # breadth first: outputs are listed before what they were made of
    queue = outputs[::-1]
    while queue:
        snapshot = queue.pop(0)
        if snapshot.id in nodes:
            continue
        parents = snapshot.commit.provenance.parents
        nodes[snapshot.id] = LineageNode(
            snapshot=snapshot.id, stage=snapshot.dataset, rows=snapshot.rows, parents=parents
        )
        queue += [store.snapshot(parent) for parent in parents.values() if parent not in nodes]
    return tuple(nodes.values())


def _config(run: Run, events: list[Row]) -> str:
    """Return the pipeline as YAML with overrides, and with defaults for the stages that started."""
    # The document holds only the keys of the file; the recorded fingerprint parts hold defaults.
    defaults = {e["stage"]["name"]: e["parts"]["config"] for e in events if "parts" in e}
    stages = {
        # the keys of the file win: a named policy stays a name instead of all of its bounds
        name: {"stage": options["stage"], "from": options.get("from", {})}
        | defaults.get(name, {})
        | {key: value for key, value in options.items() if key not in ("stage", "from")}
        for name, options in run.document["stages"].items()
    }
    document = {**run.document, "stages": stages}
    return yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)


def _locks(scores: list[Row]) -> tuple[Lock, ...]:
    """Group metrics by their lock without the name of the metric."""
    groups: dict[str, dict[str, str]] = {}
    for row in scores:
        lock = json.loads(row["lock_json"])
        # metrics that were computed alike differ in their name only
        lock.pop("metric", None)
        groups.setdefault(canonical_json(lock), {})[row["metric"]] = row["lock_digest"]
    return tuple(
        Lock(metrics=metrics, text=json.dumps(json.loads(text), indent=2, ensure_ascii=False))
        for text, metrics in groups.items()
    )
