"""Collect the data of a run's report page from the run record and the snapshots that it names.

Works for any pipeline: snapshots are selected by their contracts, not by the names of stages. A run
that ended early has fewer snapshots, and its page fewer sections.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, ParamSpec, TypeVar

import pyarrow.compute as pc
import yaml

from videoar.contracts.names import CLIPS, MODELS, PROFILES, RELEASES, SAMPLES, SCORES, SOURCES
from videoar.core.types import Row
from videoar.records.lineage import sources_of
from videoar.records.run import Run, Software
from videoar.records.run_record import events_of
from videoar.report import scores
from videoar.report.curation import (
    THUMBNAIL_BUDGET_S,
    contact_sheets,
    data_checks,
    duplicate_pairs,
    filter_steps,
    score_histograms,
)
from videoar.report.damage import DamageLog
from videoar.report.data import (
    Card,
    Clip,
    FunnelStep,
    Gate,
    GateRule,
    Licence,
    LineageNode,
    ReportData,
    Side,
    StageReport,
)
from videoar.report.training_curves import block_tables, recorded_curves, running_curves
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

_P = ParamSpec("_P")
_T = TypeVar("_T")
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
    damage = DamageLog()
    read = damage.read
    snapshots: dict[str, Snapshot] = {}
    for name, snapshot_id in _ids(run).items():
        for snapshot in read("pipeline", _found, store, snapshot_id):
            snapshots[name] = snapshot
    outputs = [snapshots[name] for name in run.outputs if name in snapshots]
    by_contract: dict[str, list[Snapshot]] = {}
    # by id: a champion that was scored as a candidate is the output of two stages
    for snapshot in {snapshot.id: snapshot for snapshot in snapshots.values()}.values():
        by_contract.setdefault(snapshot.contract, []).append(snapshot)
    clips, models = by_contract.get(CLIPS, []), by_contract.get(MODELS, [])
    decisions = by_contract.get(RELEASES, [])
    steps = read("curation", filter_steps, store, outputs)
    found = read("scores", scores.cards_of, store, by_contract.get(SCORES, []), decisions)
    # read here, so that damaged rows are one line, not one of each section that shows scores
    cards = [card for card in found if read("scores", lambda card: card.rows, card)]
    of_champion = {card.champion.parents.get("samples") for card in cards if card.champion}
    own = [s for s in by_contract.get(SAMPLES, []) if s.id not in of_champion]
    samples = read("videos", _rows, own)
    curves = [
        *read("training", recorded_curves, models),
        *read("training", running_curves, store, run),
    ]
    of_each = partial(_of_each, cards)
    parts: dict[str, Any] = {
        "histograms": read("curation", score_histograms, steps, by_contract.get(PROFILES, [])),
        "contact_sheets": read("curation", contact_sheets, store, steps, thumbnail_budget_s),
        "duplicates": read("curation", duplicate_pairs, store, steps, thumbnail_budget_s),
        "checks": read("checks", data_checks, store, run),
        "blocks": read("training", block_tables, models),
        "generated": read("videos", _generated, store, samples, clips),
        "reconstructions": read("reconstructions", of_each, scores.reconstructions),
        "scale_series": read("reconstructions", of_each, scores.scale_series),
        "scores": read("scores", of_each, scores.scores_of),
        "vbench": next(iter(read("vbench", scores.vbench, cards)), None),
        "galleries": read("worst", of_each, scores.galleries),
        "score_curves": (
            *read("distance", of_each, scores.score_curves),
            *(curve for curve, is_score in curves if is_score),
        ),
        "confusions": read("confusion", of_each, scores.confusions),
        "gates": read("verdict", _gates, store, decisions),
        # The last clips are those after all filters: what the model was trained on.
        "licences": read("lineage", _licences, clips[-1:] or by_contract.get(SOURCES, [])),
        "lineage": read("lineage", _lineage, store, outputs),
        "locks": read("lock", scores.locks, cards),
    }
    steps_left = read("filtering", funnel, store, snapshots, rejects_of(run))
    return ReportData(
        **side_of(run, steps_left).model_dump(),
        **parts,
        # A resumed run can have several drivers: the newest one counts.
        hardware=next((e["hardware"] for e in reversed(events) if "hardware" in e), "not recorded"),
        made_by=_made_by(run.software) if run.software else "",
        error=run.error or "",
        stages=(*_input_nodes(run, snapshots), *_stage_nodes(run)),
        curves=tuple(curve for curve, is_score in curves if not is_score),
        num_generated=len(samples),
        config=_config(run, events),
        damage=damage.lines(),
    )


def _made_by(software: Software) -> str:
    changed = " with changes" if software.is_clean is False else ""
    commit = f"commit {software.commit}{changed}" if software.commit else ""
    return ", ".join(filter(None, (software.user, commit, software.image)))


def _of_each(
    cards: Iterable[scores.ScoreCard], collected: Callable[[scores.ScoreCard], Iterator[_T]]
) -> Iterator[_T]:
    return (item for card in cards for item in collected(card))


def _rows(snapshots: Iterable[Snapshot]) -> Iterator[Row]:
    return (row for snapshot in snapshots for row in snapshot.table().to_pylist())


def _found(store: Store, snapshot_id: str) -> Iterator[Snapshot]:
    yield store.snapshot(snapshot_id)


def snapshots_of(store: Store, run: Run) -> dict[str, Snapshot]:
    """Return the inputs that a started stage reads, then the outputs, by their names."""
    return {name: store.snapshot(snapshot_id) for name, snapshot_id in _ids(run).items()}


def _ids(run: Run) -> dict[str, str]:
    names = run.document["inputs"]
    ids = {
        source: stage.inputs[port]
        for stage in run.stages
        for port, source in _ports(run, stage.name).items()
        if source in names and port in stage.inputs
    }
    return ids | run.outputs


def rejects_of(run: Run) -> Mapping[str, str | None]:
    """Return the id of the snapshot of rejected rows of each stage."""
    return {stage.name: stage.rejects for stage in run.stages}


def side_of(run: Run, steps: Iterable[FunnelStep]) -> Side:
    """Return what is known of a run, with its `funnel`."""
    return Side(
        name=run.run_id,
        pipeline=run.pipeline,
        status=run.status,
        started_at=f"{datetime.fromtimestamp(run.started_at, UTC):%Y-%m-%d %H:%M:%S} UTC",
        seconds=run.seconds,
        code_version=run.code_version,
        funnel=tuple(steps),
    )


def _ports(run: Run, stage: str) -> Mapping[str, str]:
    ports: Mapping[str, str] = run.document["stages"][stage].get("from", {})
    return ports


def _input_nodes(run: Run, inputs: Mapping[str, Snapshot]) -> Iterator[StageReport]:
    for name in run.document["inputs"]:
        snapshot = inputs.get(name)
        readers = {s.status for s in run.stages if name in _ports(run, s.name).values()}
        yield StageReport(
            name=name,
            kind="input",
            # an optional input that is absent: those that need it are skipped
            status="SUCCEEDED" if snapshot else "SKIPPED" if "SKIPPED" in readers else "PENDING",
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
            reason=stage.reason
            if stage.status == "SKIPPED"
            else stage.waiting or str(stage.progress or ""),
            # 0: not counted, e.g. because the stage was cached
            rows_in=stage.rows.in_ or None,
            rows_out=stage.rows.out if stage.snapshot else None,
            seconds=stage.seconds,
            metrics=stage.metrics,
        )


def funnel(
    store: Store, snapshots: Mapping[str, Snapshot], rejects: Mapping[str, str | None]
) -> Iterator[FunnelStep]:
    """Yield the number of videos and of clips in each snapshot, and why others were rejected.

    A video counts as long as it has a clip. Clips that a run only compares with are left out.

    Args:
        store: of the snapshots.
        snapshots: by name, in order; those of other contracts are left out.
        rejects: id of the snapshot of rejected rows, by name of the stage.
    """
    filtered = {
        snapshot.commit.provenance.parents.get("clips")
        for snapshot in snapshots.values()
        if snapshot.contract == CLIPS
    }
    for name, snapshot in snapshots.items():
        if snapshot.contract == SOURCES:
            yield FunnelStep(name=name, unit="videos", count=snapshot.rows)
        if snapshot.contract == CLIPS and (name in rejects or snapshot.id in filtered):
            reasons = _reasons(store, rejects.get(name))
            videos = {
                uri
                for table in snapshot.read_available(["source_uri"])
                for uri in pc.unique(table["source_uri"]).to_pylist()
            }
            counts = (("videos", "source", len(videos)), ("clips", "clip", snapshot.rows))
            for unit, kind, count in counts:
                yield FunnelStep(
                    name=name,
                    unit=unit,
                    count=count,
                    reasons=reasons[kind],
                    left_out=_left_out(snapshot.commit.metrics) if kind == "clip" else "",
                )


def _left_out(metrics: Mapping[str, float]) -> str:
    """Return what sources had beyond `max_clips_per_source`, as counted by ingest."""
    num_sources = int(metrics.get("sources_with_more_clips", 0))
    if not num_sources:
        return ""
    count = f"{int(metrics['clips_left_out']):,}" if "clips_left_out" in metrics else "further ones"
    return f"left out: {count}, of {num_sources:,} videos with more than max_clips_per_source"


def _reasons(store: Store, rejects: str | None) -> Mapping[str, tuple[tuple[str, int], ...]]:
    """Count rejected items by kind and decisive (first) reason, without those of a takedown."""
    counts = {"source": Counter[str](), "clip": Counter[str]()}
    rows = store.snapshot(rejects).available_rows(["kind", "reasons"]) if rejects else ()
    for row in rows:
        counts[row["kind"]][row["reasons"][0]] += 1
    return {kind: tuple(counted.most_common()) for kind, counted in counts.items()}


def _generated(store: Store, samples: Sequence[Row], clips: list[Snapshot]) -> Iterator[Card]:
    # A stable sort by the index within the prompt: the first sample of each prompt in order of the
    # prompts, then the second ones.
    shown = sorted(samples, key=lambda row: row["index"])[:_SHOWN_SAMPLES]
    real = _clips_by_text(clips)
    none = Clip(label="no real clip with this prompt")

    def card(row: Row) -> Card:
        # a prompt is a caption, or made of a class
        key = real.get(row["prompt"], real.get(row["label"]))
        clips = (
            scores.clip(store, "generated", row["video_key"]),
            scores.clip(store, "real", key) if key else none,
        )
        return Card(clips=clips, text=row["prompt"], note=f"seed {row['seed']}")

    return map(card, shown)


def _clips_by_text(clips: Iterable[Snapshot]) -> dict[str, str]:
    """Return a video key per caption and per class; of several snapshots the last one wins."""
    result: dict[str, str] = {}
    for snapshot in clips:
        for row in snapshot.available_rows(["caption", "label", "video_key"]):
            if row["video_key"]:  # None: the clip is a reference to a part of its source
                texts = filter(None, (row["label"], row["caption"]))
                result |= dict.fromkeys(texts, row["video_key"])
    return result


def _gates(store: Store, decisions: Iterable[Snapshot]) -> Iterator[Gate]:
    for decision in decisions:
        rows = decision.table().to_pylist()
        names = ("ref", "candidate", "champion", "champion_seq")
        common = {name: row[name] for row in rows[:1] for name in names if name in row}
        rules = ({name: row[name] for name in GateRule.model_fields} for row in rows)
        entries = [
            entry["seq"]
            for entry in (store.refs.history(common["ref"]) if rows else ())
            if entry["evidence"].get("decision") == decision.id
        ]
        yield Gate(
            stage=decision.dataset,
            entry=entries[-1] if entries else None,
            rules=tuple(map(GateRule.model_validate, rules)),
            **common,
        )


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


def _lineage(store: Store, outputs: list[Snapshot]) -> Iterator[LineageNode]:
    """Yield the tree of the snapshots of a run: the last outputs, below each its ancestors."""
    inner = {parent for output in outputs for parent in output.commit.provenance.parents.values()}
    # The lineage is a graph; as a tree, a snapshot with two children would be listed with all its
    # ancestors twice, and their number grows exponentially.
    seen: set[str] = set()

    def walk(snapshot: Snapshot, depth: int, port: str) -> Iterator[LineageNode]:
        parents = snapshot.commit.provenance.parents
        yield LineageNode(
            snapshot=snapshot.id,
            stage=snapshot.dataset,
            rows=snapshot.rows,
            depth=depth,
            port=port,
            is_repeated=bool(parents) and snapshot.id in seen,
        )
        if snapshot.id not in seen:
            seen.add(snapshot.id)
            for name, parent in parents.items():
                yield from walk(store.snapshot(parent), depth + 1, name)

    for output in reversed(outputs):
        if output.id not in inner:
            yield from walk(output, 0, "")


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
