"""Collect what the pages show of scores: values, changes, the worst clips, curves over N and time.

Values of single samples are computed from the vectors that the scores were computed from
(`features@1`); no video is decoded. Stores of earlier versions have them in `details_json`, or not.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from videoar.core.errors import WithdrawnError
from videoar.core.ids import canonical_json
from videoar.core.types import Row
from videoar.evaluation.metric_names import FLOOR, LIMIT, metric_of, with_suffix
from videoar.evaluation.sample_values import FeatureTable, sample_values
from videoar.evaluation.scorecard import mean_interval, protocol_of
from videoar.evaluation.vbench_constants import DIMENSIONS
from videoar.report.data import (
    Change,
    Confusion,
    Curve,
    Lock,
    Reconstruction,
    ScaleSeries,
    Score,
    ScoredClip,
    VBench,
    WorstClips,
)
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

Key = tuple[str, int, int]
"""Prompt, index and seed: what two samples of different models have in common."""
_NUM_WORST = 4  # chosen: one row on a laptop's screen
_VBENCH = "vbench/"
_AGGREGATES = ("total", "quality", "semantic")
_BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class ScoreCard:
    """A snapshot of scores, and the samples that it is of."""

    store: Store
    snapshot: Snapshot
    champion: "ScoreCard | None" = None
    """Card that its gate compared it with."""

    @property
    def parents(self) -> Mapping[str, str]:
        """Port to snapshot id of what the scores were computed from."""
        return self.snapshot.commit.provenance.parents

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Rows of `scores@1` by metric."""
        return {row["metric"]: row for row in self.snapshot.table().to_pylist()}

    @cached_property
    def details(self) -> dict[str, Row]:
        """Details by metric."""
        return {metric: json.loads(row["details_json"]) for metric, row in self.rows.items()}

    @cached_property
    def samples(self) -> dict[str, Row]:
        """Rows of `samples@1` by sample id."""
        snapshot = self.parents.get("samples")
        rows = self.store.snapshot(snapshot).available_rows() if snapshot else ()
        return {row["sample_id"]: row for row in rows}

    @cached_property
    def features(self) -> FeatureTable | None:
        """Vectors of the samples; None where scores were computed without."""
        snapshot = self.parents.get("sample_features")
        return FeatureTable.read(self.store.snapshot(snapshot)) if snapshot else None

    def values(self, metric: str) -> dict[str, float]:
        """Return the value of each sample by its id; empty where a metric has no such values."""
        known = self.details.get(metric, {}).get("per_sample", {})
        definition = metric_of(metric)
        if known or self.features is None or definition is None or definition.kind != "mean":
            return dict(known)
        space = definition.network, definition.preset
        # a sample that could not be decoded has no vector
        missing = set(self.features.missing(*space, self.samples))
        texts = {k: row["prompt"] for k, row in self.samples.items() if k not in missing}
        return sample_values(metric, self.features, texts)

    def by_key(self, metric: str) -> dict[Key, float]:
        """Return the value of each sample by prompt, index and seed."""
        return {
            key_of(self.samples[sample_id]): value
            for sample_id, value in self.values(metric).items()
            if sample_id in self.samples
        }


def key_of(sample: Row) -> Key:
    """Return what a sample has in common with that of another model."""
    return sample["prompt"], sample["index"], sample["seed"]


def cards_of(
    store: Store, snapshots: Iterable[Snapshot], decisions: Iterable[Snapshot]
) -> list[ScoreCard]:
    """Return the score cards of a run, each with that of the champion; champions' are left out."""
    champions: dict[str, Snapshot] = {}
    for decision in decisions:
        champion = _champion_scores(store, decision)
        candidate = decision.commit.provenance.parents.get("scores")
        if champion is not None and candidate not in {None, champion.id}:
            champions[str(candidate)] = champion
    own = [s for s in snapshots if s.id not in {champion.id for champion in champions.values()}]
    return [
        ScoreCard(store, s, ScoreCard(store, champions[s.id]) if s.id in champions else None)
        for s in own
    ]


def _champion_scores(store: Store, decision: Snapshot) -> Snapshot | None:
    """Return the scores of the champion that a gate compared with; None if there are none.

    Those that were computed for this decision, or else those that the champion was promoted on.
    """
    scores = decision.commit.provenance.parents.get("champion_scores")
    first = next(decision.available_rows(["ref", "champion_seq"]), None)
    if scores is None and first is not None and first["champion_seq"] is not None:
        entries = {entry["seq"]: entry for entry in store.refs.history(first["ref"])}
        evidence = entries.get(first["champion_seq"], {}).get("evidence", {}).get("decision")
        scores = evidence and store.snapshot(evidence).commit.provenance.parents.get("scores")
    return store.snapshot(scores) if scores else None


def scores_of(card: ScoreCard) -> Iterator[Score]:
    """Yield the scores of a card, each with its change against the champion's."""
    for metric, row in card.rows.items():
        yield Score.model_validate({
            **{name: row[name] for name in Score.model_fields if name in row},
            "protocol": protocol_of(row),
            "table": card.snapshot.dataset,
            "change": change(card.champion, card, metric) if card.champion else None,
        })


def changes(old: ScoreCard, new: ScoreCard) -> Iterator[Change]:
    """Yield the change of every metric that one of two cards has."""
    for metric in dict.fromkeys((*old.rows, *new.rows)):
        yield change(old, new, metric)


def change(old: ScoreCard, new: ScoreCard, metric: str) -> Change:
    """Return the change of one metric; without a delta if the two values are not comparable."""
    before, after = old.rows.get(metric), new.rows.get(metric)
    row = after or before or {}
    known = {
        "metric": metric,
        "old": before and before["value"],
        "new": after and after["value"],
        "higher_is_better": row["higher_is_better"],
        "protocol": protocol_of(row),
    }
    reason = _not_comparable(before, after)
    if before is None or after is None or reason:
        return Change(**known, reason=reason)
    interval, method = _interval(old, new, metric)
    low, high = interval or (None, None)
    delta = after["value"] - before["value"]
    return Change(**known, delta=delta, ci_low=low, ci_high=high, method=method)


def _not_comparable(old: Row | None, new: Row | None) -> str:
    for side, row in (("first", old), ("second", new)):
        if row is None:
            return f"the {side} has no such score"
        if row["status"] != "ok" or row["value"] is None or not math.isfinite(row["value"]):
            return f"the {side} was not evaluated: {row['reason'] or 'no reason recorded'}"
    if old is None or new is None or old["lock_digest"] == new["lock_digest"]:
        return ""
    locks = json.loads(old["lock_json"]), json.loads(new["lock_json"])
    fields = sorted(k for k in locks[0] | locks[1] if locks[0].get(k) != locks[1].get(k))
    return f"the protocols differ in {', '.join(fields)}"


def _interval(
    old: ScoreCard, new: ScoreCard, metric: str
) -> tuple[tuple[float, float] | None, str]:
    """Return the 95 % interval of a difference, and how it was computed."""
    before, after = old.by_key(metric), new.by_key(metric)
    if before and before.keys() == after.keys():
        differences = [after[key] - before[key] for key in sorted(after)]
        return mean_interval(differences, _BOOTSTRAP_SEED), f"paired, {len(differences)} samples"
    a, b = old.rows[metric], new.rows[metric]
    if None in {a["ci_low"], a["ci_high"], b["ci_low"], b["ci_high"]}:
        return None, "no interval of the values"
    # Source: Newcombe, Statistics in Medicine 17 (1998), method 10: squares of the distances from
    # the values to the ends of their intervals are added.
    delta = b["value"] - a["value"]
    down = math.hypot(b["value"] - b["ci_low"], a["ci_high"] - a["value"])
    up = math.hypot(b["ci_high"] - b["value"], a["value"] - a["ci_low"])
    return (delta - down, delta + up), "unpaired, of the two intervals"


def worst_clips(card: ScoreCard) -> Iterator[WorstClips]:
    """Yield the samples with the worst values of each metric that has a value per sample."""
    for metric, row in card.rows.items():
        values = {k: v for k, v in card.values(metric).items() if k in card.samples}
        sign = 1 if row["higher_is_better"] else -1
        # by id where values are equal, so that a page that is rendered again shows the same
        worst = sorted(values, key=lambda sample_id: (sign * values[sample_id], sample_id))
        clips = tuple(
            ScoredClip(
                prompt=card.samples[sample_id]["prompt"],
                seed=card.samples[sample_id]["seed"],
                value=values[sample_id],
                video=video,
            )
            for sample_id in worst[:_NUM_WORST]
            if (video := video_of(card.store, card.samples[sample_id]["video_key"])) is not None
        )
        if clips:
            yield WorstClips(metric=metric, count=len(values), clips=clips)


def score_curves(card: ScoreCard) -> Iterator[Curve]:
    """Yield distances against N with their limit, and scores over the time of a clip."""
    for metric, details in card.details.items():
        if metric.partition("@")[0].endswith(FLOOR):
            continue  # a line in the figure of its distance
        title = f"{metric} ({protocol_of(card.rows[metric])})"
        floor = card.details.get(with_suffix(metric, FLOOR), {})
        sizes = {
            side: tuple((n, value) for n, value in found["by_num_clips"])
            for side, found in (("distance", details), ("floor", floor))
            if "by_num_clips" in found
        }
        limit = card.rows.get(with_suffix(metric, LIMIT), {}).get("value")
        if limit is not None and "distance" in sizes:
            sizes["at infinite N"] = tuple((n, limit) for n, _ in sizes["distance"])
        if sizes:
            yield Curve(title=title, x_label="N", series=sizes)
        if parts := _over_time(details, floor):
            yield Curve(title=title, x_label="part of the clip", series=parts)


def _over_time(details: Row, floor: Row) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return values over equal parts of the clips, numbered from 1: of a distance, or of a mean."""
    windows = details.get("windows", ())
    sides = windows if isinstance(windows, dict) else {"distance": windows}
    sides |= {"floor": floor.get("windows", ()), "figure": details.get("found_per_frame", ())}
    return {side: tuple(enumerate(values, 1)) for side, values in sides.items() if values}


def vbench(cards: Iterable[ScoreCard]) -> VBench | None:
    """Return the VBench values of the first card that has any row of them."""
    for card in cards:
        rows = {
            metric.removeprefix(_VBENCH): row
            for metric, row in card.rows.items()
            if metric.startswith(_VBENCH)
        }
        values = {name: row["value"] for name, row in rows.items() if row["status"] == "ok"}
        if rows:
            return VBench(
                dimensions={name: values[name] for name in DIMENSIONS if name in values},
                totals={name: values[name] for name in _AGGREGATES if name in values},
                reason=rows.get("total", {}).get("reason") or "",
            )
    return None


def video_of(store: Store, key: str | None) -> bytes | None:
    """Return the MP4 of a clip; None without a key, or if a takedown has withdrawn the object."""
    try:
        return store.objects.get(key) if key else None
    except WithdrawnError:
        return None


def reconstructions(card: ScoreCard) -> Iterator[Reconstruction]:
    """Yield the stored reconstructions of which no video was withdrawn."""
    for example in (e for detail in card.details.values() for e in detail.get("examples", ())):
        real = video_of(card.store, example["real_key"])
        reconstruction = video_of(card.store, example["recon_key"])
        if real is not None and reconstruction is not None:
            yield Reconstruction(name=example["clip_id"], real=real, reconstruction=reconstruction)


def scale_series(card: ScoreCard) -> Iterator[ScaleSeries]:
    """Yield the series of each clip of which no video was withdrawn."""
    details = card.details.values()
    real_key = {e["clip_id"]: e["real_key"] for d in details for e in d.get("examples", ())}
    steps: dict[str, list[tuple[str, bytes | None]]] = {}
    for entry in (entry for detail in details for entry in detail.get("by_scale", ())):
        step = (f"up to {entry['grid']}", video_of(card.store, entry["recon_key"]))
        steps.setdefault(entry["clip_id"], []).append(step)
    for clip_id, series in steps.items():
        # `score` stores scales of its first example only, so its real clip is among the examples
        real = video_of(card.store, real_key[clip_id])
        videos = tuple((grid, video) for grid, video in series if video is not None)
        if real is not None and len(videos) == len(series):
            yield ScaleSeries(name=clip_id, real=real, steps=videos)


def confusions(card: ScoreCard) -> Iterator[Confusion]:
    """Yield the confusion matrices of the metrics that classify samples."""
    for metric, details in card.details.items():
        table = details.get("confusion")
        if table:
            # Keys of canonical JSON are sorted; columns that are no row (`none`) go last.
            names = {name for line in table.values() for name in line}
            predicted = (*(name for name in table if name in names), *sorted(names - table.keys()))
            counts = (tuple(line.get(name, 0) for name in predicted) for line in table.values())
            yield Confusion(
                title=metric, prompted=tuple(table), predicted=predicted, counts=tuple(counts)
            )


def locks(cards: Iterable[ScoreCard]) -> tuple[Lock, ...]:
    """Group metrics by their lock without the name of the metric."""
    groups: dict[str, dict[str, str]] = {}
    for row in (row for card in cards for row in card.rows.values()):
        lock = json.loads(row["lock_json"])
        # metrics that were computed alike differ in their name only
        lock.pop("metric", None)
        groups.setdefault(canonical_json(lock), {})[row["metric"]] = row["lock_digest"]
    return tuple(
        Lock(metrics=metrics, text=json.dumps(json.loads(text), indent=2, ensure_ascii=False))
        for text, metrics in groups.items()
    )
