"""Collect what the page of two runs, or of two snapshots, shows.

Snapshots of two runs are compared if they have the same name. Two snapshots that were named are
compared whatever they are called.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from videoar.contracts.names import CLIPS, SAMPLES, SCORES
from videoar.core.types import Row
from videoar.curation.policy import score_columns
from videoar.records.names import find_run_or_snapshot
from videoar.records.run_record import load_run
from videoar.report.collect import funnel, rejects_of, side_of, snapshots_of
from videoar.report.curation import column_unit
from videoar.report.data import Card, Comparison, Counted, Histogram, Side
from videoar.report.scores import ScoreCard, axis_unit, changes, clip, key_of
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

_SHOWN_PAIRS = 24  # chosen: as many as a run's page shows
_NUM_BINS = 24  # chosen: a bin is 15 px wide


@dataclass(frozen=True)
class _Pair:
    """A dataset in both sides; None where one does not have it."""

    name: str
    old: Snapshot | None
    new: Snapshot | None

    def both(self, contract: str) -> tuple[Snapshot, Snapshot] | None:
        """Return the two snapshots if both exist and have this contract."""
        if self.old is None or self.new is None:
            return None
        same = self.old.contract == self.new.contract == contract
        return (self.old, self.new) if same else None


def compare(store: Store, old: str, new: str) -> Comparison:
    """Return the comparison of two runs or snapshots; differences are `new` minus `old`.

    Raises:
        SnapshotNotFoundError: nothing in the store has one of the names.
        ConfigError: a prefix matches several things.
    """
    sides, snapshots = zip(*(_find(store, name) for name in (old, new)), strict=True)
    pairs = list(_pairs(*snapshots))
    cards = [
        (ScoreCard(store, both[0]), ScoreCard(store, both[1]))
        for pair in pairs
        if (both := pair.both(SCORES))
    ]
    samples = list(_paired_samples(pairs, cards))
    return Comparison(
        old=sides[0],
        new=sides[1],
        counts=tuple(map(_counted, pairs)),
        histograms=(*_clip_histograms(pairs), *_score_histograms(cards)),
        # those without a difference last
        changes=tuple(
            sorted((c for card in cards for c in changes(*card)), key=lambda c: c.reason != "")
        ),
        pairs=tuple(_card(store, *pair) for pair in samples[:_SHOWN_PAIRS]),
        num_pairs=len(samples),
    )


def _find(store: Store, name: str) -> tuple[Side, Mapping[str, Snapshot]]:
    """Return what a name means: a run with its inputs and outputs, or one snapshot."""
    match = find_run_or_snapshot(store, name)
    if isinstance(match, Snapshot):
        snapshots = {match.dataset: match}
        rejects = {match.dataset: match.commit.rejects}
        return Side(name=match.id, funnel=tuple(funnel(store, snapshots, rejects))), snapshots
    run = load_run(store, match)
    snapshots = snapshots_of(store, run)
    return side_of(run, funnel(store, snapshots, rejects_of(run))), snapshots


def _pairs(old: Mapping[str, Snapshot], new: Mapping[str, Snapshot]) -> Iterator[_Pair]:
    if len(old) == len(new) == 1:
        ((name, first),), ((other, second),) = old.items(), new.items()
        yield _Pair(name if name == other else f"{name}, {other}", first, second)
        return
    for name in dict.fromkeys((*old, *new)):
        yield _Pair(name, old.get(name), new.get(name))


def _counted(pair: _Pair) -> Counted:
    old, new = ({} if s is None else s.commit.metrics for s in (pair.old, pair.new))
    # scores have a table of their own, with intervals
    is_scores = pair.both(SCORES) is not None
    names = () if is_scores else sorted(k for k in old | new if old.get(k) != new.get(k))
    contracts = dict.fromkeys(s.contract for s in (pair.old, pair.new) if s is not None)
    return Counted(
        dataset=pair.name,
        contract=", ".join(contracts),
        old=pair.old.id if pair.old else "",
        new=pair.new.id if pair.new else "",
        old_rows=pair.old.rows if pair.old else None,
        new_rows=pair.new.rows if pair.new else None,
        metrics={name: (old.get(name), new.get(name)) for name in names},
    )


def _clip_histograms(pairs: list[_Pair]) -> Iterator[Histogram]:
    """Yield the scores of the clips of the last pair: those after all filters."""
    clips = [both for pair in pairs if (both := pair.both(CLIPS))]
    for old, new in clips[-1:]:
        for column in score_columns():
            yield from _histogram(
                column, column_unit(column), _column(old, column), _column(new, column)
            )


def _column(clips: Snapshot, name: str) -> np.ndarray:
    parts = [t[name].cast(pa.float64()).to_numpy() for t in clips.read_available([name])]
    values: np.ndarray = np.concatenate([np.empty(0), *parts])
    finite: np.ndarray = values[np.isfinite(values)]
    return finite


def _score_histograms(cards: list[tuple[ScoreCard, ScoreCard]]) -> Iterator[Histogram]:
    for old, new in cards:
        for metric in (name for name in old.rows if name in new.rows):
            values = (np.array(list(card.values(metric).values())) for card in (old, new))
            yield from _histogram(metric, axis_unit(metric), *values)


def _histogram(score: str, unit: str, old: np.ndarray, new: np.ndarray) -> Iterator[Histogram]:
    """Yield the distributions of two sets in percent, over the same bins; none if one is empty."""
    if len(old) and len(new) and np.ptp(both := np.concatenate([old, new])):
        edges = np.histogram_bin_edges(both, _NUM_BINS)
        shares = (100 * np.histogram(values, edges)[0] / len(values) for values in (old, new))
        counts, other = (tuple(share.tolist()) for share in shares)
        yield Histogram(
            score=score, edges=tuple(edges.tolist()), counts=counts, unit=unit, other=other
        )


def _paired_samples(
    pairs: list[_Pair], cards: list[tuple[ScoreCard, ScoreCard]]
) -> Iterator[tuple[Row, Row]]:
    """Yield samples of one prompt, index and seed: first the first of each prompt."""
    tables = [
        {key_of(row): row for row in snapshot.available_rows()}
        for pair in pairs
        for snapshot in pair.both(SAMPLES) or ()
    ] or [{key_of(row): row for row in card.samples.values()} for both in cards for card in both]
    for old, new in zip(tables[::2], tables[1::2], strict=True):
        for key in sorted(old.keys() & new.keys(), key=lambda key: (key[1], key)):
            yield old[key], new[key]


def _card(store: Store, old: Row, new: Row) -> Card:
    sides = (("first", old), ("second", new))
    return Card(
        clips=tuple(clip(store, side, row["video_key"]) for side, row in sides),
        text=old["prompt"],
        note=f"index {old['index']}, seed {old['seed']}",
    )


def numbers(comparison: Comparison) -> Row:
    """Return the numbers of a comparison as a JSON document, without videos and histograms."""
    sides = {name: getattr(comparison, name).model_dump(mode="json") for name in ("old", "new")}
    changes_ = [
        {**c.model_dump(mode="json"), "outcome": c.outcome, "comparable": not c.reason}
        for c in comparison.changes
    ]
    counts = [counted.model_dump(mode="json") for counted in comparison.counts]
    return {**sides, "counts": counts, "changes": changes_, "num_pairs": comparison.num_pairs}
