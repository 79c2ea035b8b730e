"""Collects what the report page of a run shows, from the run record and the snapshots it names.

Works for any pipeline: snapshots are recognized by their contracts, not by the names of stages, and
a run that ended early has fewer of them.
"""

import json
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
from videoar.report.curation import checks, filters, histograms, repeats, sheets
from videoar.report.page import (
    ByScale,
    Confusion,
    Curve,
    FunnelStep,
    GateRule,
    Generated,
    Licence,
    LineageNode,
    Lock,
    Reconstruction,
    ReportData,
    Score,
    StageReport,
)
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

_SHOWN_SAMPLES = 24  # chosen: about 1 MB of demo clips; a page of them reads in a minute


def collect(store: Store, run: Run) -> ReportData:
    """Gather the page of a run in whatever state it is."""
    events = events_of(store, run.run_id)
    inputs = _inputs(store, run)
    made = [store.snapshot(snapshot_id) for snapshot_id in run.outputs.values()]
    by_contract: dict[str, list[Snapshot]] = {}
    for snapshot in [*inputs.values(), *made]:
        by_contract.setdefault(snapshot.contract, []).append(snapshot)
    clips = by_contract.get(CLIPS, [])
    curated = filters(store, made)
    scores = _rows(by_contract.get(SCORES, []))
    samples = _rows(by_contract.get(SAMPLES, []))
    return ReportData(
        run_id=run.run_id,
        pipeline=run.pipeline,
        status=run.status,
        started_at=f"{datetime.fromtimestamp(run.started_at, UTC):%Y-%m-%d %H:%M:%S} UTC",
        seconds=run.seconds,
        hardware=next((e["hardware"] for e in reversed(events) if "hardware" in e), "not recorded"),
        code_version=run.code_version,
        stages=(*_input_boxes(run, inputs), *_stage_boxes(run)),
        funnel=_funnel(store, run, [*inputs.items(), *((s.dataset, s) for s in made)]),
        histograms=tuple(histograms(curated, by_contract.get(PROFILES, []))),
        sheets=tuple(sheets(store, curated)),
        repeats=tuple(repeats(store, curated)),
        checks=tuple(checks(store, run)),
        curves=tuple(_curves(by_contract.get(MODELS, []))),
        generated=_generated(store, samples, clips),
        num_generated=len(samples),
        reconstructions=_reconstructions(store, scores),
        by_scale=tuple(_by_scale(store, scores)),
        scores=tuple(_score(row) for row in scores),
        confusions=tuple(_confusions(scores)),
        gate=tuple(_rule(row) for row in _rows(by_contract.get(RELEASES, []))),
        licences=_licences(clips[-1:] or by_contract.get(SOURCES, [])),
        lineage=_lineage(store, made),
        config=_config(run, events),
        locks=_locks(scores),
    )


def _rows(snapshots: Iterable[Snapshot]) -> list[Row]:
    return [row for snapshot in snapshots for row in snapshot.table().to_pylist()]


def _inputs(store: Store, run: Run) -> dict[str, Snapshot]:
    """Return the snapshots of the pipeline's raw inputs, as far as a stage has begun on them."""
    named = run.document["inputs"]
    found = {}
    for stage in run.stages:
        for port, source in _ports(run, stage.name).items():
            if source in named and port in stage.inputs:
                found[source] = store.snapshot(stage.inputs[port])
    return found


def _ports(run: Run, stage: str) -> Mapping[str, str]:
    ports: Mapping[str, str] = run.document["stages"][stage].get("from", {})
    return ports


def _input_boxes(run: Run, inputs: Mapping[str, Snapshot]) -> Iterator[StageReport]:
    for name in run.document["inputs"]:
        known = inputs.get(name)
        yield StageReport(
            name=name,
            kind="input",
            status="SUCCEEDED" if known else "PENDING",
            snapshot=known.id if known else "",
            rows_out=known.rows if known else None,
        )


def _stage_boxes(run: Run) -> Iterator[StageReport]:
    for stage in run.stages:
        yield StageReport(
            name=stage.name,
            kind=stage.type,
            status=stage.status,
            parents=tuple(dict.fromkeys(_ports(run, stage.name).values())),
            snapshot=stage.snapshot or "",
            rows_in=stage.rows.in_ or None,
            rows_out=stage.rows.out if stage.snapshot else None,
            seconds=stage.seconds,
            metrics=stage.metrics,
        )


def _funnel(
    store: Store, run: Run, snapshots: Iterable[tuple[str, Snapshot]]
) -> tuple[FunnelStep, ...]:
    refused = {stage.name: stage.rejects for stage in run.stages}
    units = {SOURCES: "videos", CLIPS: "clips"}
    return tuple(
        FunnelStep(
            name=name,
            unit=units[snapshot.contract],
            count=snapshot.rows,
            reasons=_reasons(store, refused.get(name)),
        )
        for name, snapshot in snapshots
        if snapshot.contract in units
    )


def _reasons(store: Store, rejects: str | None) -> tuple[tuple[str, int], ...]:
    """Count refused items by their decisive reason, as far as they are still there."""
    tables = store.snapshot(rejects).remaining(columns=["reasons"]) if rejects else ()
    reasons = (reason for table in tables for reason in table["reasons"].to_pylist())
    return tuple(Counter(first for first, *_ in reasons).most_common())


def _curves(models: Iterable[Snapshot]) -> Iterator[Curve]:
    for model in models:
        for row in model.table(columns=["history_json"]).to_pylist():
            for quantity, lines in _panels(json.loads(row["history_json"])).items():
                series = {name: tuple(points) for name, points in lines.items()}
                yield Curve(title=f"{model.dataset}: {quantity}", x_label="steps", series=series)


def _panels(history: list[dict[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Group a loss history by quantity: `train/loss` and `val/loss` share a panel."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point in history:
        for name in point.keys() - {"step"}:
            series = panels.setdefault(name.rpartition("/")[2], {})
            series.setdefault(name, []).append((point["step"], point[name]))
    return {quantity: dict(sorted(panels[quantity].items())) for quantity in sorted(panels)}


def _generated(store: Store, samples: list[Row], clips: list[Snapshot]) -> tuple[Generated, ...]:
    shown = sorted(samples, key=lambda row: row["index"])[:_SHOWN_SAMPLES]  # stable: prompt order
    real = _clips_by_caption(clips)
    return tuple(
        Generated(
            prompt=row["prompt"],
            seed=row["seed"],
            video=store.objects.get(row["video_key"]),
            real=_video(store, real.get(row["prompt"])),
        )
        for row in shown
    )


def _clips_by_caption(clips: Iterable[Snapshot]) -> dict[str, str]:
    """Return a video key for each caption, from the last snapshot that has it: the kept clips."""
    found: dict[str, str] = {}
    for snapshot in clips:
        for table in snapshot.remaining(columns=["caption", "video_key"]):
            for row in table.to_pylist():
                if row["video_key"]:  # a reference has no video to show
                    found[row["caption"]] = row["video_key"]
    return found


def _video(store: Store, key: str | None) -> bytes | None:
    """Return a clip, None if there is none or a take-down has withdrawn it."""
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


def _by_scale(store: Store, scores: list[Row]) -> Iterator[ByScale]:
    """Yield the clips whose videos are all still there."""
    details = [json.loads(row["details_json"]) for row in scores]
    real_key = {e["clip_id"]: e["real_key"] for d in details for e in d.get("examples", ())}
    steps: dict[str, list[tuple[str, bytes | None]]] = {}
    for shown in (shown for found in details for shown in found.get("by_scale", ())):
        step = (f"up to {shown['grid']}", _video(store, shown["recon_key"]))
        steps.setdefault(shown["clip_id"], []).append(step)
    for clip_id, found in steps.items():
        real = _video(store, real_key[clip_id])
        videos = tuple((grid, video) for grid, video in found if video is not None)
        if real is not None and len(videos) == len(found):
            yield ByScale(name=clip_id, real=real, steps=videos)


def _score(row: Row) -> Score:
    return Score.model_validate({name: row[name] for name in Score.model_fields})


def _confusions(scores: list[Row]) -> Iterator[Confusion]:
    for row in scores:
        table = json.loads(row["details_json"]).get("confusion")
        if table:
            found = tuple(dict.fromkeys(name for line in table.values() for name in line))
            yield Confusion(
                title=row["metric"],
                asked=tuple(table),
                found=found,
                counts=tuple(tuple(line.get(name, 0) for name in found) for line in table.values()),
            )


def _rule(row: Row) -> GateRule:
    return GateRule.model_validate({name: row[name] for name in GateRule.model_fields})


def _licences(snapshots: Iterable[Snapshot]) -> tuple[Licence, ...]:
    """Count distinct source videos by licence and origin: of the kept clips, if there are clips."""
    stated: dict[str, tuple[str, str]] = {}
    for snapshot in snapshots:
        is_clips = snapshot.contract == CLIPS
        for row in sources_of(snapshot) if is_clips else _rows([snapshot]):
            facts = (row["licence"] or "not stated", row["origin"] or "not stated")
            stated[row["sha256" if is_clips else "uri"]] = facts
    return tuple(
        Licence(name=name, origin=origin, num_videos=count)
        for (name, origin), count in Counter(stated.values()).most_common()
    )


def _lineage(store: Store, made: list[Snapshot]) -> tuple[LineageNode, ...]:
    """Return every snapshot that the run made or used, the newest first, then their ancestors."""
    nodes: dict[str, LineageNode] = {}
    queue = made[::-1]
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
    """Return the pipeline with overrides, and with defaults for the stages that have begun."""
    defaults = {e["stage"]["name"]: e["parts"]["config"] for e in events if "parts" in e}
    stages = {
        name: {"stage": given["stage"], "from": given.get("from", {})}
        | defaults.get(name, {})
        | {key: value for key, value in given.items() if key not in ("stage", "from")}
        for name, given in run.document["stages"].items()
    }
    return yaml.safe_dump({**run.document, "stages": stages}, sort_keys=False, width=100)


def _locks(scores: list[Row]) -> tuple[Lock, ...]:
    """Group metrics whose locks differ in nothing but the metric's name."""
    groups: dict[str, dict[str, str]] = {}
    for row in scores:
        lock = json.loads(row["lock_json"])
        lock.pop("metric", None)
        groups.setdefault(canonical_json(lock), {})[row["metric"]] = row["lock_digest"]
    return tuple(
        Lock(metrics=metrics, text=json.dumps(json.loads(text), indent=2))
        for text, metrics in groups.items()
    )
