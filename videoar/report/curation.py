"""Collect the curation part of the report: scores and bounds, thumbnails, duplicates, data checks.

A filter stage is recognized by the `bound/*` metrics in its commit, not by its name. Thumbnails are
decoded from the clips in the store or, of references, from their sources. A missing or damaged clip
must not fail the report: its thumbnail shows the error instead.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from videoar.contracts.contract import load_contract
from videoar.contracts.expectations import Expectation
from videoar.contracts.names import CLIPS
from videoar.core.errors import MediaError, VideoARError, WithdrawnError
from videoar.core.types import Row
from videoar.curation.duplicates import REASONS as DUPLICATES
from videoar.curation.policy import score_columns, score_of
from videoar.media.clip_reader import COLUMNS, ClipReader
from videoar.media.decode import thumbnail_jpeg
from videoar.media.process import Limits
from videoar.pipeline.work.reduce import find_check
from videoar.records.run import Run
from videoar.report.data import ContactSheet, DataCheck, DuplicatePair, Histogram, Thumbnail
from videoar.stages.profile import column_values
from videoar.storage.column_profile import describe
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

_SHOWN = 8  # chosen: thumbnails per outcome, one row on a laptop's screen, 30 kB
_SHOWN_PAIRS = 6  # chosen: two rows of pairs on a laptop's screen
_LIMITS = Limits(wall_s=20.0, cpu_s=20)  # chosen: per clip, for one frame of a long source
THUMBNAIL_BUDGET_S = 60.0  # chosen: longest time to read thumbnails of one filter stage
_BOUND = "bound/"
_DUPLICATE_OF = re.compile(r"repeats ([0-9a-f]{32})")  # column `detail` of `rejects@1`


def filter_steps(store: Store, outputs: Iterable[Snapshot]) -> list[tuple[Snapshot, Snapshot]]:
    """Return the clips before and after each filter stage of a run."""
    return [
        (store.snapshot(snapshot.commit.provenance.parents["clips"]), snapshot)
        for snapshot in outputs
        if snapshot.contract == CLIPS and any(map(_is_bound, snapshot.commit.metrics))
    ]


def _is_bound(metric: str) -> bool:
    return metric.startswith(_BOUND)


def score_histograms(
    steps: Iterable[tuple[Snapshot, Snapshot]], profiles: Iterable[Snapshot]
) -> Iterator[Histogram]:
    """Yield the histogram of each bounded score, from the profile of the run if it has one."""
    profile_of = {profile.commit.provenance.parents.get("clips"): profile for profile in profiles}
    for before, after in steps:
        rows = _profile_rows(profile_of.get(before.id))
        # `bound/min_motion` is a bound on the score `motion_mean`; `score_of` maps the names.
        bounds: dict[str, list[tuple[float, str]]] = {}
        for metric, value in sorted(after.commit.metrics.items()):
            name = metric.removeprefix(_BOUND)
            if _is_bound(metric) and score_of(name) in score_columns():
                # `min_luma` of 12 -> (12, "min 12")
                bounds.setdefault(score_of(name), []).append((value, f"{name[:3]} {value:.4g}"))
        for score, marks in bounds.items():
            row = rows.get(score) or _describe(before, score)
            edges, counts = row.get("hist_edges"), row.get("hist_counts")
            # a score that is null in every row has no bins
            if edges and counts:
                yield Histogram(
                    score=score,
                    edges=edges,
                    counts=counts,
                    unit=column_unit(score),
                    bounds=tuple(marks),
                )


def column_unit(name: str) -> str:
    """Return the unit of a column of `clips@1`, for an axis."""
    column = next(column for column in load_contract(CLIPS).columns if column.name == name)
    return column.unit or ("fraction" if column.checks.max == 1 else "no unit")


def _profile_rows(profile: Snapshot | None) -> dict[str, Row]:
    return {} if profile is None else {row["column"]: row for row in profile.table().to_pylist()}


def _describe(clips: Snapshot, column: str) -> Row:
    """Compute the profile of a column; empty if a takedown has withdrawn a file of it."""
    read = partial(column_values, clips, column)
    try:
        return describe(column, read, len(clips.files)).model_dump()
    except WithdrawnError:
        return {}


def contact_sheets(
    store: Store, steps: Iterable[tuple[Snapshot, Snapshot]], budget_s: float
) -> Iterator[ContactSheet]:
    """Yield a sheet of kept clips, then one per decisive reason, the most frequent first."""
    for before, after in steps:
        # by id: a page that is rendered again shows the same clips
        kept = sorted(row["clip_id"] for row in after.available_rows(["clip_id"]))
        rejected = _rejected_rows(after)
        counts = Counter(row["reasons"][0] for row in rejected)
        outcomes = {"kept": kept[:_SHOWN]} | {
            reason: [row["item_id"] for row in rejected if row["reasons"][0] == reason][:_SHOWN]
            for reason, _ in counts.most_common()
        }
        shown = _thumbnails(
            store, before, [id_ for ids in outcomes.values() for id_ in ids], budget_s
        )
        for outcome, ids in outcomes.items():
            thumbnails = tuple(shown[clip_id] for clip_id in ids if clip_id in shown)
            count = len(kept) if outcome == "kept" else counts[outcome]
            yield ContactSheet(title=outcome, count=count, thumbnails=thumbnails)


def duplicate_pairs(
    store: Store, steps: Iterable[tuple[Snapshot, Snapshot]], budget_s: float
) -> Iterator[DuplicatePair]:
    """Yield the first rejected duplicates of each filter stage, with the kept clips."""
    for before, after in steps:
        pairs = [
            (row["item_id"], match.group(1), row["reasons"][0])
            for row in _rejected_rows(after)
            if row["reasons"][0] in DUPLICATES
            and (match := _DUPLICATE_OF.match(row["detail"] or ""))
        ][:_SHOWN_PAIRS]
        shown = _thumbnails(
            store, before, [clip_id for pair in pairs for clip_id in pair[:2]], budget_s
        )
        for clip_id, kept_id, reason in pairs:
            if clip_id in shown and kept_id in shown:
                yield DuplicatePair(
                    reason=reason,
                    clip_id=clip_id,
                    kept_id=kept_id,
                    thumbnail=shown[clip_id],
                    kept_thumbnail=shown[kept_id],
                )


def _rejected_rows(after: Snapshot) -> list[Row]:
    rejects = after.rejects()
    if rejects is None:
        return []
    rows = rejects.available_rows(["item_id", "reasons", "detail"])
    return sorted(rows, key=lambda row: str(row["item_id"]))


def _thumbnails(
    store: Store, clips: Snapshot, ids: list[str], budget_s: float
) -> Mapping[str, Thumbnail]:
    """Return a thumbnail of each clip whose row no takedown has withdrawn, by clip id."""
    # Read file by file and filtered at once: a snapshot of clips can have millions of rows.
    requested = pa.array(ids, pa.string())
    rows: list[Row] = []
    for table in clips.read_available(["clip_id", *COLUMNS]):
        rows += table.filter(pc.is_in(table["clip_id"], requested)).to_pylist()
    rows.sort(key=lambda row: str(row["source_uri"]))  # so that each source is fetched once
    read = ClipReader(store.objects, _LIMITS)
    deadline = time.monotonic() + budget_s
    try:
        return {row["clip_id"]: _thumbnail(read, row, deadline) for row in rows}
    finally:
        read.close()


def _thumbnail(read: ClipReader, row: Row, deadline: float) -> Thumbnail:
    times = row["frame_times_us"]
    # Of a reference only the middle frame is decoded; a stored clip is short and decoded whole.
    middle = {"frame_times_us": times[len(times) // 2 :][:1]}
    if time.monotonic() > deadline:
        return Thumbnail(error="not read: time limit for thumbnails exceeded")
    try:
        return Thumbnail(jpeg=thumbnail_jpeg(read({**row, **middle})))
    except VideoARError as error:
        # only errors of media have a reject code
        code = error.code if isinstance(error, MediaError) else "UNAVAILABLE"
        return Thumbnail(error=f"{code}: {error.what}")


def data_checks(store: Store, run: Run) -> Iterator[DataCheck]:
    """Yield the expectation results of the run's stages, failed ones included."""
    for stage in run.stages:
        record = stage.fingerprint and find_check(store, stage.name, stage.fingerprint)
        if record:
            yield DataCheck(
                stage=stage.name,
                success=record["success"],
                expectations=tuple(map(Expectation.model_validate, record["expectations"])),
            )
