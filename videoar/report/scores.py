"""Collect what the pages show of scores: values, changes, the worst clips, curves over N and time.

Values of single samples are computed from the vectors that the scores were computed from
(`features@1`); no video is decoded.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from videoar.core.errors import (
    ContractError,
    GateError,
    StorageError,
    TransientStorageError,
    WithdrawnError,
)
from videoar.core.ids import canonical_json
from videoar.core.types import Row
from videoar.evaluation.gate import lock_difference, problem_of
from videoar.evaluation.metric_names import (
    FLOOR,
    LIMIT,
    METRICS,
    is_paired,
    suffix_of,
    unit_of,
    with_suffix,
)
from videoar.evaluation.paired import SampleSet, paired_difference
from videoar.evaluation.sample_values import sample_values
from videoar.evaluation.scorecard import not_above_chance, protocol_of
from videoar.evaluation.vbench_constants import DIMENSIONS
from videoar.report.data import Card, Change, Clip, Confusion, Curve, Gallery, Lock, Score, VBench
from videoar.stages.promote import promoted_on
from videoar.storage.object_store import get_content
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

Key = tuple[str, int, int]
"""Prompt, index and seed: what two samples of different models have in common."""
_NUM_WORST = 4  # chosen: one row on a laptop's screen
_MAX_PAIRED = 512
"""chosen: the 400 distances of a paired interval take seconds; a gate pairs any number."""
_VBENCH = "vbench/"
_AGGREGATES = ("total", "quality", "semantic")


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
    def sample_set(self) -> SampleSet | str:
        """What the scores were computed from; a text: it is no longer comparable, and why."""
        try:
            return SampleSet.of(self.snapshot, self.store)
        except GateError as error:  # a takedown has removed a clip of the evaluation set
            return str(error)
        except (ContractError, WithdrawnError):
            return ""
        except TransientStorageError:
            raise
        except StorageError as error:
            return str(error)

    def values(self, metric: str) -> dict[str, float]:
        """Return the value of each sample by its id; empty where a metric has no such values."""
        definition = METRICS.get(metric)
        if isinstance(self.sample_set, str) or definition is None or definition.kind != "mean":
            return {}
        features = self.sample_set.features
        # a sample that could not be decoded has no vector
        missing = set(features.missing(definition.network, definition.preset, self.samples))
        texts = {k: row["prompt"] for k, row in self.samples.items() if k not in missing}
        return sample_values(metric, features, texts) if texts else {}


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
    if scores := decision.commit.provenance.parents.get("champion_scores"):
        return store.snapshot(scores)
    row = next(decision.available_rows(["ref", "champion", "champion_seq"]), None)
    if row is None or row["champion"] is None or row["champion_seq"] is None:
        return None
    return promoted_on(store, row["ref"], row["champion"], row["champion_seq"])


def scores_of(card: ScoreCard) -> Iterator[Score]:
    """Yield the scores of a card, each with its change against the champion's."""
    for metric, row in card.rows.items():
        expected = card.details[metric].get("expected")
        yield Score.model_validate({
            **{name: row[name] for name in Score.model_fields if name in row},
            "protocol": protocol_of(row),
            "table": card.snapshot.dataset,
            "is_chance": not_above_chance(row),
            "note": "" if expected is None else f"expected {expected:g}",
            # a floor compares the same two sets of real clips for both models
            "change": change(card.champion, card, metric)
            if card.champion and suffix_of(metric) != FLOOR
            else None,
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
    for side, its in (("first", before), ("second", after)):
        if problem := problem_of(its):
            return Change(**known, reason=f"the {side}: {problem}")
    if before is None or after is None:  # `problem_of` has a reason
        return Change(**known)
    if fields := lock_difference(before, after):
        return Change(**known, reason=f"the protocols differ in {', '.join(fields)}")
    for card in (old, new):
        if isinstance(card.sample_set, str) and card.sample_set:
            return Change(**known, reason=card.sample_set)
    return Change(**known, delta=after["value"] - before["value"], **_interval(old, new, metric))


def _interval(old: ScoreCard, new: ScoreCard, metric: str) -> Row:
    """Return the 95 % interval of a difference, and how it was computed."""
    a, b = old.rows[metric], new.rows[metric]
    sets = old.sample_set, new.sample_set
    if not isinstance(sets[0], str) and not isinstance(sets[1], str):
        is_small = max(b["num_samples"], b["num_reference"]) <= _MAX_PAIRED
        if is_paired(metric) and (
            is_small or (metric in METRICS and not METRICS[metric].is_distance)
        ):
            try:
                paired = paired_difference(b, sets[1], sets[0])
            except ContractError:  # other prompts or seeds: not pairs
                pass
            else:
                method = f"paired, {b['num_samples']} samples"
                return {"ci_low": paired.low, "ci_high": paired.high, "method": method}
    if None in {a["ci_low"], a["ci_high"], b["ci_low"], b["ci_high"]}:
        return {"method": "no interval of the values"}
    # Source: Newcombe, Statistics in Medicine 17 (1998), method 10: squares of the distances from
    # the values to the ends of their intervals are added.
    delta = b["value"] - a["value"]
    down = math.hypot(b["value"] - b["ci_low"], a["ci_high"] - a["value"])
    up = math.hypot(b["ci_high"] - b["value"], a["value"] - a["ci_low"])
    method = "unpaired, of the two intervals"
    return {"ci_low": delta - down, "ci_high": delta + up, "method": method}


def galleries(card: ScoreCard) -> Iterator[Gallery]:
    """Yield the worst samples of each metric, and those that are nearest to training clips."""
    for metric, row in card.rows.items():
        values = card.values(metric)
        sign = 1 if row["higher_is_better"] else -1
        signed = {sample_id: sign * value for sample_id, value in values.items()}
        best = max(signed.values(), default=0.0)  # as good as any other: not among the worst
        # by id where values are equal, so that a page that is rendered again shows the same
        worst = sorted((v, sample_id) for sample_id, v in signed.items() if v < best)
        labels = {sample_id: f"{values[sample_id]:.4g}" for _, sample_id in worst[:_NUM_WORST]}
        text = f"The worst of {len(values):,} samples."
        nearest = {pair["sample_id"]: pair for pair in card.details[metric].get("nearest", ())}
        if nearest:
            labels = {i: f"sample, distance {pair['distance']:.4g}" for i, pair in nearest.items()}
            text = "The samples that are nearest to training clips, beside these."
        training = _training_clips(card, {i: pair["clip_id"] for i, pair in nearest.items()})
        cards = tuple(
            Card(
                clips=(clip(card.store, label, sample["video_key"]), *training.get(sample_id, ())),
                text=sample["prompt"],
                note=f"seed {sample['seed']}",
            )
            for sample_id, label in labels.items()
            if (sample := card.samples.get(sample_id))
        )
        if cards:
            yield Gallery(metric=metric, protocol=protocol_of(row), text=text, cards=cards)


def _training_clips(card: ScoreCard, ids: Mapping[str, str]) -> dict[str, tuple[Clip]]:
    """Return the training clip of each sample, by the ids of both."""
    features = ids and card.parents.get("train_features")
    parents = card.store.snapshot(features).commit.provenance.parents if features else {}
    clips = card.store.snapshot(parents["clips"]) if "clips" in parents else None
    rows = clips.available_rows(["clip_id", "video_key"]) if clips else ()
    keys = {row["clip_id"]: row["video_key"] for row in rows if row["clip_id"] in ids.values()}
    return {i: (clip(card.store, "training clip", keys.get(other)),) for i, other in ids.items()}


def score_curves(card: ScoreCard) -> Iterator[Curve]:
    """Yield distances against N with their limit, and scores over the time of a clip."""
    for metric, details in card.details.items():
        if suffix_of(metric) == FLOOR:
            continue  # a line in the figure of its distance
        title, unit = f"{metric} ({protocol_of(card.rows[metric])})", axis_unit(metric)
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
            yield Curve(title=title, x_label="N, clips", unit=unit, series=sizes)
        if parts := _over_time(details, floor):
            yield Curve(
                title=title, x_label="number of the part of the clip", unit=unit, series=parts
            )


def _over_time(details: Row, floor: Row) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return values over equal parts of the clips, numbered from 1: of a distance, or of a mean."""
    windows = details.get("windows", ())
    sides = windows if isinstance(windows, dict) else {"distance": windows}
    sides |= {"floor": floor.get("windows", ()), "figure": details.get("found_per_frame", ())}
    return {side: tuple(enumerate(values, 1)) for side, values in sides.items() if values}


def vbench(cards: Iterable[ScoreCard]) -> Iterator[VBench]:
    """Yield the VBench values of the first card that has any row of them."""
    for card in cards:
        rows = {
            metric.removeprefix(_VBENCH): row
            for metric, row in card.rows.items()
            if metric.startswith(_VBENCH)
        }
        values = {name: row["value"] for name, row in rows.items() if row["status"] == "ok"}
        if rows:
            yield VBench(
                dimensions={name: values[name] for name in DIMENSIONS if name in values},
                totals={name: values[name] for name in _AGGREGATES if name in values},
                reason=rows.get("total", {}).get("reason") or "",
            )
            return


def axis_unit(metric: str) -> str:
    """Return the unit of a metric for an axis."""
    return unit_of(metric) or "no unit"


def clip(store: Store, label: str, key: str | None) -> Clip:
    """Return a clip of the store; without a video if it has no key, is withdrawn or damaged."""
    try:
        return Clip(label=label, video=get_content(store.objects, key) if key else None)
    except WithdrawnError:
        return Clip(label=f"{label}: withdrawn")
    except TransientStorageError:
        raise
    except StorageError as error:
        return Clip(label=f"{label}: {error}")


def reconstructions(card: ScoreCard) -> Iterator[Card]:
    """Yield real clips with their stored reconstructions."""
    for example in (e for detail in card.details.values() for e in detail.get("examples", ())):
        keys = (("real", "real_key"), ("reconstruction", "recon_key"))
        clips = tuple(clip(card.store, label, example[key]) for label, key in keys)
        yield Card(clips=clips, note=example["clip_id"])


def scale_series(card: ScoreCard) -> Iterator[Card]:
    """Yield the reconstructions of a clip from the first 1, 2, ... all scales, then the clip."""
    real = {
        e["clip_id"]: e["real_key"] for d in card.details.values() for e in d.get("examples", ())
    }
    steps: dict[str, list[Clip]] = {}
    for entry in (e for detail in card.details.values() for e in detail.get("by_scale", ())):
        step = clip(card.store, f"up to {entry['grid']}", entry["recon_key"])
        steps.setdefault(entry["clip_id"], []).append(step)
    for clip_id, clips in steps.items():
        # `score` stores scales of its first example only, so its real clip is among the examples
        yield Card(clips=(*clips, clip(card.store, "real", real[clip_id])), note=clip_id)


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
