"""What the report says of curation: scores against bounds, pictures of both fates, duplicates.

A filter is recognized by the bounds in its commit, not by its name. Pictures come from the store's
own clips or, of references, from the sources; for one that is gone or broken the page says why,
since it must never fail for it.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from videoar.contracts.expectations import Expectation
from videoar.contracts.names import CLIPS
from videoar.core.errors import MediaError, StorageError, WithdrawnError
from videoar.core.types import Row
from videoar.curation.duplicates import REASONS as DUPLICATES
from videoar.curation.policy import score_columns, score_of
from videoar.media.clip_reader import COLUMNS, ClipReader
from videoar.media.decode import thumbnail_jpeg
from videoar.media.process import Limits
from videoar.pipeline.work.reduce import find_check
from videoar.records.run_record import Run
from videoar.report.page import DataCheck, Histogram, Picture, Repeat, Sheet
from videoar.stages.profile import column_values
from videoar.storage.column_profile import describe
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

_SHOWN = 8  # per fate: a row on a laptop's screen, 30 kB of pictures
_SHOWN_PAIRS = 6
_LIMITS = Limits(wall_s=20.0, cpu_s=20)
_PATIENCE_S = 60.0  # chosen: a page is worth a minute of reading long sources, not an hour
_FROM_REPORT = "../../"  # the page is kept as runs/<id>/report.html
_BOUND = "bound/"
_REPEATS = re.compile(r"repeats ([0-9a-f]{32})")


def filters(store: Store, made: Iterable[Snapshot]) -> list[tuple[Snapshot, Snapshot]]:
    """Return the clips before and after each filter of a run."""
    return [
        (store.snapshot(found.commit.provenance.parents["clips"]), found)
        for found in made
        if found.contract == CLIPS and any(map(_is_bound, found.commit.metrics))
    ]


def _is_bound(metric: str) -> bool:
    return metric.startswith(_BOUND)


def histograms(
    curated: Iterable[tuple[Snapshot, Snapshot]], profiles: Iterable[Snapshot]
) -> Iterator[Histogram]:
    """Yield the distribution of each bounded score, from the run's own profile if it has one."""
    known = {found.commit.provenance.parents.get("clips"): found for found in profiles}
    for before, after in curated:
        rows = _profile_rows(known.get(before.id))
        bounds: dict[str, list[tuple[float, str]]] = {}
        for metric, value in sorted(after.commit.metrics.items()):
            name = metric.removeprefix(_BOUND)
            if _is_bound(metric) and score_of(name) in score_columns():
                bounds.setdefault(score_of(name), []).append((value, f"{name[:3]} {value:.4g}"))
        for score, marks in bounds.items():
            row = rows.get(score) or _described(before, score)
            edges, counts = row.get("hist_edges"), row.get("hist_counts")
            if edges and counts:
                yield Histogram(score=score, edges=edges, counts=counts, bounds=tuple(marks))


def _profile_rows(profile: Snapshot | None) -> dict[str, Row]:
    return {} if profile is None else {row["column"]: row for row in profile.table().to_pylist()}


def _described(clips: Snapshot, column: str) -> Row:
    """Describe a column now; nothing if a take-down has withdrawn some of it."""
    read = partial(column_values, clips, column)
    try:
        return describe(column, read, len(clips.files)).model_dump()
    except WithdrawnError:
        return {}


def sheets(store: Store, curated: Iterable[tuple[Snapshot, Snapshot]]) -> Iterator[Sheet]:
    """Yield a sheet of kept clips, then one per decisive reason, the most frequent first."""
    for before, after in curated:
        kept = sorted(row["clip_id"] for row in _remaining(after, ["clip_id"]))
        refused = _refused(after)
        counts = Counter(row["reasons"][0] for row in refused)
        fates = {"kept": kept[:_SHOWN]} | {
            reason: [row["item_id"] for row in refused if row["reasons"][0] == reason][:_SHOWN]
            for reason, _ in counts.most_common()
        }
        found = _pictures(store, before, [clip_id for ids in fates.values() for clip_id in ids])
        for fate, ids in fates.items():
            pictures = tuple(found[clip_id] for clip_id in ids if clip_id in found)
            count = len(kept) if fate == "kept" else counts[fate]
            yield Sheet(title=fate, count=count, pictures=pictures)


def repeats(store: Store, curated: Iterable[tuple[Snapshot, Snapshot]]) -> Iterator[Repeat]:
    """Yield duplicates with what they repeat."""
    for before, after in curated:
        pairs = [
            (row["item_id"], match.group(1), row["reasons"][0])
            for row in _refused(after)
            if row["reasons"][0] in DUPLICATES and (match := _REPEATS.match(row["detail"] or ""))
        ][:_SHOWN_PAIRS]
        found = _pictures(store, before, [clip_id for pair in pairs for clip_id in pair[:2]])
        for clip_id, kept_id, reason in pairs:
            if clip_id in found and kept_id in found:
                yield Repeat(
                    reason=reason,
                    clip_id=clip_id,
                    kept_id=kept_id,
                    picture=found[clip_id],
                    kept_picture=found[kept_id],
                )


def _refused(after: Snapshot) -> list[Row]:
    rejects = after.rejects()
    if rejects is None:
        return []
    rows = _remaining(rejects, ["item_id", "reasons", "detail"])
    return sorted(rows, key=lambda row: str(row["item_id"]))


def _remaining(snapshot: Snapshot, columns: list[str]) -> list[Row]:
    """Return the rows that no take-down has withdrawn: an old run's page is made anew after one."""
    return [row for table in snapshot.remaining(columns) for row in table.to_pylist()]


def _pictures(store: Store, clips: Snapshot, ids: list[str]) -> Mapping[str, Picture]:
    """Return a picture of each clip whose row no take-down has withdrawn."""
    wanted = pa.array(ids, pa.string())
    rows: list[Row] = []
    for table in clips.remaining(["clip_id", *COLUMNS]):
        rows += table.filter(pc.is_in(table["clip_id"], wanted)).to_pylist()
    rows.sort(key=lambda row: str(row["source_uri"]))  # so that each source is fetched once
    read = ClipReader(store.objects, _LIMITS)
    until = time.monotonic() + _PATIENCE_S
    try:
        return {row["clip_id"]: _picture(read, row, until) for row in rows}
    finally:
        read.close()


def _picture(read: ClipReader, row: Row, until: float) -> Picture:
    times = row["frame_times_us"]
    middle = {"frame_times_us": times[len(times) // 2 :][:1]}  # a stored clip is decoded whole
    try:
        if time.monotonic() > until:
            return Picture(why="reading the sources took too long")
        return Picture(jpeg=thumbnail_jpeg(read({**row, **middle})))
    except (MediaError, StorageError) as error:
        return Picture(why=f"{getattr(error, 'code', 'GONE')}: {error.what}")


def checks(store: Store, run: Run) -> Iterator[DataCheck]:
    """Yield what the checks of the run's stages found, failed ones included."""
    for stage in run.stages:
        found = stage.fingerprint and find_check(store, stage.name, stage.fingerprint)
        if found:
            yield DataCheck(
                stage=stage.name,
                success=found["success"],
                page=_FROM_REPORT + found["page"],
                expectations=tuple(map(Expectation.model_validate, found["expectations"])),
            )
