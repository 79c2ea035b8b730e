"""Collect what the page of a whole store shows: runs, refs, schedules and storage.

Costs a few requests per shown run and entry of a ref, one per commit, and a listing of the store.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby, pairwise
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from videoar.contracts.names import MODELS
from videoar.core.errors import DamagedError
from videoar.core.ids import run_time_s
from videoar.core.types import Commit
from videoar.records.run import Run
from videoar.records.run_record import run_ids
from videoar.report.damage import DamageLog
from videoar.report.data import (
    Curve,
    DatasetSize,
    FolderSize,
    Index,
    IndexedRun,
    RefEntry,
    ScheduleState,
    Score,
)
from videoar.report.scores import axis_unit
from videoar.storage.delta_log import iter_commits
from videoar.storage.layout import TABLES_PREFIX, report_key
from videoar.storage.ledger import Record
from videoar.storage.store import Store

_MAX_SERIES = 6  # as many as the page has colours
_MB = 1e6


def collect_index(
    store: Store,
    limit: int | None,
    *,
    runs: Sequence[Run],
    schedules: Mapping[str, Any],
    now: float,
    links: str | None,
) -> Index:
    """Return what the page of a store shows.

    Args:
        store: where everything else is read.
        limit: newest entries of each ref to show; None: all.
        runs: those that are shown, newest first.
        schedules: as `api.schedule_ls` returns them.
        now: seconds since 1970.
        links: what the keys of report pages are appended to; None: nothing is linked.
    """
    damage = DamageLog()
    read = damage.read
    for run in runs:
        if run.status == "DAMAGED":
            damage.add("runs", f"run {run.run_id}: {run.error}")
    for line in schedules["damaged"]:
        damage.add("schedules", line)
    histories: dict[str, list[Record]] = {name: [] for name in store.refs.names()}
    for name, history in histories.items():
        for _, record in store.refs.records(name):
            if isinstance(record, DamagedError):
                damage.add("refs", str(record))
            else:
                history.append(record)
    entries = [
        entry
        for name, history in histories.items()
        if history
        for entry in read("refs", _entries, store, name, history, limit or 0)
    ]
    moved: dict[str, list[str]] = {}
    for name, history in histories.items():
        for record in history:
            moved.setdefault(record["by_run"], []).append(f"{name} {record['seq']}")
    datasets = read("storage", store.objects.folders, TABLES_PREFIX)
    commits = [c for name in datasets for c in read("storage", iter_commits, store.objects, name)]
    files = [(info.key, info.size_bytes) for info in read("storage", store.objects.list, "")]
    pages = {key for key, _ in files if key.endswith("/report.html")}
    return Index(
        url=store.url,
        rendered_at=_time(now),
        runs=tuple(
            _run(run, moved.get(run.run_id, ()), _link(report_key(run.run_id), pages, links))
            for run in runs
        ),
        num_runs=len(run_ids(store)),
        entries=tuple(sorted(entries, key=lambda entry: entry.at, reverse=True)),
        score_curves=tuple(_score_curves(entries, now)),
        schedules=tuple(_schedules(schedules)),
        datasets=tuple(_datasets(commits)),
        growth=tuple(_growth(commits, now)),
        folders=tuple(_folders(files)),
        damage=damage.lines(),
    )


def _link(key: str, pages: set[str], links: str | None) -> str:
    return "" if links is None or key not in pages else links + quote(key)


def _run(run: Run, moved: Sequence[str], page: str) -> IndexedRun:
    running = (f"{s.name}: {s.progress}" for s in run.stages if s.is_in_progress and s.progress)
    is_skipped = all(stage.status == "SKIPPED" for stage in run.stages)
    skipped = (stage.reason for stage in run.stages if is_skipped)
    return IndexedRun(
        name=run.run_id,
        pipeline=run.pipeline,
        status=run.status,
        started_at=_time(run.started_at),
        seconds=run.seconds,
        reason=run.error or next(running, "") or next(skipped, ""),
        made=tuple(
            (stage.name, stage.rows.out)
            for stage in run.stages
            if stage.snapshot and stage.status != "CACHED"
        ),
        num_cached=sum(stage.status == "CACHED" for stage in run.stages),
        moved=tuple(moved),
        page=page,
    )


def _entries(store: Store, ref: str, history: Sequence[Record], limit: int) -> Iterator[RefEntry]:
    """Yield the newest entries of a ref, oldest first; 0: all."""
    newest: dict[str, str] = {}  # of each target, the newest decision that moved the ref to it
    decisions: list[str | None] = []  # of each entry
    for entry in history:
        if decision := entry["evidence"].get("decision"):
            newest[entry["snapshot"]] = decision
        decisions.append(newest.get(entry["snapshot"]))
    rules, cards = zip(*(_scores(store, made) for made in decisions[-limit:]), strict=True)
    metrics = dict.fromkeys(metric for names in rules for metric in names)
    for entry, card in zip(history[-limit:], cards, strict=True):
        target, evidence = entry["snapshot"], entry["evidence"]
        yield RefEntry(
            ref=ref,
            seq=entry["seq"],
            target=target,
            is_model=store.snapshot(target).contract == MODELS,
            at=entry.get("at") or 0.0,
            when=_time(entry["at"]) if entry.get("at") else "not recorded",
            by=entry.get("user") or "",
            run=entry["by_run"],
            why=_why(evidence),
            evidence=evidence.get("decision") or "",
            scores=tuple(card[name] for name in metrics if name in card),
        )


def _why(evidence: Mapping[str, Any]) -> str:
    if earlier := evidence.get("rolled_back_from"):
        return f"rolled back from {earlier}"
    return "passed its gate" if "decision" in evidence else "frozen" * bool(evidence.get("frozen"))


def _scores(store: Store, decision: str | None) -> tuple[list[str], dict[str, Score]]:
    """Return the metrics that a decision has rules on, and all scores of its candidate."""
    if decision is None:
        return [], {}
    snapshot = store.snapshot(decision)
    metrics = [row["metric"] for row in snapshot.available_rows(["metric"])]
    scores = snapshot.commit.provenance.parents.get("scores")
    columns = ["metric", "status", "value", "ci_low", "ci_high"]
    rows = store.snapshot(scores).available_rows(columns) if scores else ()
    return metrics, {row["metric"]: Score.model_validate(row) for row in rows}


def _score_curves(entries: Iterable[RefEntry], now: float) -> Iterator[Curve]:
    """Yield the score of what a ref pointed at against time, a curve for each metric."""
    by_ref: dict[str, list[RefEntry]] = {}
    for entry in entries:
        if entry.is_model and entry.at:
            by_ref.setdefault(entry.ref, []).append(entry)
    for ref, known in by_ref.items():
        for metric in dict.fromkeys(score.metric for entry in known for score in entry.scores):
            values = [
                next((score.value for score in entry.scores if score.metric == metric), None)
                for entry in known
            ]
            points = [(entry.at, value) for entry, value in zip(known, values, strict=True)]
            if any(value is not None for value in values):
                yield _over_time(f"{ref}: {metric}", axis_unit(metric), {ref: points}, now)


def _over_time(
    title: str, unit: str, series: Mapping[str, Sequence[tuple[float, float | None]]], now: float
) -> Curve:
    """Return steps over time: a value holds until the next one, the last one until now.

    None ends a line; what follows is a line of its own.
    """
    start = min(points[0][0] for points in series.values())
    units = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))
    time_unit, seconds = next((u for u in units if now - start >= 2 * u[1]), units[-1])
    lines: dict[str, tuple[tuple[float, float], ...]] = {}
    for name, points in series.items():
        spans = pairwise([*points, (max(now, points[-1][0]), None)])
        parts = [[*part] for known, part in groupby(spans, _has_value) if known]
        for number, part in enumerate(parts, 1):
            lines[name if number == 1 else f"{name} ({number})"] = tuple(
                ((time - start) / seconds, value)
                for (at, value), (until, _) in part
                for time in (at, until)
                if value is not None
            )
    x_label = f"{time_unit} since {_time(start)}"
    return Curve(title=title, x_label=x_label, unit=unit, series=lines)


def _has_value(span: tuple[tuple[float, float | None], object]) -> bool:
    return span[0][1] is not None


def _schedules(document: Mapping[str, Any]) -> Iterator[ScheduleState]:
    fired: dict[str, Any] = {}
    for firing in (*document["fired"], *document["skipped"]):
        newest = fired.setdefault(firing["pipeline"], firing)
        if firing["at"] > newest["at"]:
            fired[firing["pipeline"]] = firing
    for schedule in document["schedules"]:
        trigger, last = schedule["trigger"], fired.get(schedule["pipeline"])
        following = schedule["next"] and datetime.fromisoformat(schedule["next"]).timestamp()
        yield ScheduleState(
            pipeline=schedule["pipeline"],
            trigger=_trigger(trigger),
            concurrency=schedule["concurrency"],
            is_paused=schedule["is_paused"],
            next=_time(following) if following else "",
            missed=schedule["missed"],
            last=f"{_time(last['at'])}: {last['status']}" if last else "",
            last_run=(last["run_id"] or "") if last else "",
        )


def _trigger(trigger: Mapping[str, Any]) -> str:
    if "cron" in trigger:
        return f"{trigger['cron']} {trigger.get('time_zone', 'UTC')}"
    kind, options = next(iter(trigger.items()))
    return f"{kind.replace('_', ' ')}: {', '.join(map(str, options.values()))}"


def _datasets(commits: Iterable[Commit]) -> Iterator[DatasetSize]:
    by_dataset: dict[str, dict[str, Commit]] = {}
    for commit in commits:  # content that is committed again is one snapshot, and the newest one
        known = by_dataset.setdefault(commit.dataset, {})
        known.pop(commit.snapshot, None)
        known[commit.snapshot] = commit
    for dataset, known in sorted(by_dataset.items()):
        *earlier, newest = known.values()
        written = {file.key: file.size_bytes for commit in known.values() for file in commit.files}
        yield DatasetSize(
            name=dataset,
            contract=newest.contract,
            num_snapshots=len(known),
            rows=newest.rows,
            size_bytes=newest.size_bytes,
            num_files=len(newest.files),
            added_rows=newest.rows - earlier[-1].rows if earlier else None,
            added_bytes=newest.size_bytes - earlier[-1].size_bytes if earlier else None,
            written_bytes=sum(written.values()),
        )


def _growth(commits: Iterable[Commit], now: float) -> Iterator[Curve]:
    """Yield the bytes that were written to the largest datasets, against time."""
    totals: dict[str, float] = {}
    points: dict[str, list[tuple[float, float]]] = {}
    seen: set[str] = set()
    for commit in sorted(commits, key=lambda commit: run_time_s(commit.provenance.run_id) or 0.0):
        new = {file.key: file.size_bytes for file in commit.files if file.key not in seen}
        seen |= new.keys()
        total = totals[commit.dataset] = totals.get(commit.dataset, 0.0) + sum(new.values()) / _MB
        if time := run_time_s(commit.provenance.run_id):
            points.setdefault(commit.dataset, []).append((time, total))
    largest = sorted(points, key=lambda name: -totals[name])[:_MAX_SERIES]
    if largest:
        yield _over_time("rows written", "MB", {name: points[name] for name in largest}, now)


def _folders(files: Iterable[tuple[str, int]]) -> Iterator[FolderSize]:
    sizes: dict[str, list[int]] = {}
    for key, size in files:
        sizes.setdefault(PurePosixPath(key).parts[0], []).append(size)
    for name, known in sorted(sizes.items(), key=lambda item: -sum(item[1])):
        yield FolderSize(name=name, num_files=len(known), size_bytes=sum(known))


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
