"""`videoar evaluate`: the pipeline that scores samples against a reference, and its score card.

The pipeline has the stages of `pipelines/evaluate.yaml` and is run as any other: what an earlier
evaluation has computed of the same reference is found again, and a killed run is resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from videoar.contracts.names import CLIPS, EVALSETS, MODELS, SAMPLES
from videoar.core.errors import ConfigError
from videoar.core.types import Json, Row
from videoar.evaluation.evalset import REFERENCE, clip_rows, protocol_name
from videoar.evaluation.metric_names import (
    FLOOR,
    METRICS,
    Metric,
    requested_metrics,
    suffix_of,
    with_suffix,
)
from videoar.evaluation.protocols import protocol_named
from videoar.evaluation.registry import DOMAIN, NETWORKS
from videoar.evaluation.scorecard import not_above_chance
from videoar.records.names import find_snapshot
from videoar.records.run import Run
from videoar.storage.store import Store
from videoar.training.sample_folder import read_sample_folder

_SCORES = "scores"
_WORKERS = {"workers": 2}
_CHEAPEST = ("pixels", "clip")  # the port of features of samples is not optional


class EvaluationOptions(TypedDict, total=False):
    """Options of `evaluation_pipeline` that have a default."""

    protocol: str | None
    """Default: that of the set, or `default`."""
    num: int | None
    """Clips of the reference, of which there must be as many; default: those of the set, or else
    at most as many as the protocol needs, or as there are samples."""
    domain: str | None
    """Name of `models@1`: the classifier of the metrics of network `domain`."""
    train: str | None
    """Name of `clips@1`: clips of the training, for `memorisation`."""


@dataclass
class _Draft:
    """A pipeline in the making."""

    inputs: dict[str, str] = field(default_factory=dict)
    stages: dict[str, Json] = field(default_factory=dict)

    def stage(self, name: str, kind: str, ports: dict[str, str], **options: Json) -> str:
        self.stages[name] = {"stage": kind, "from": ports, **options}
        return name

    def features(self, name: str, ports: dict[str, str], used: Sequence[Metric]) -> str:
        """Add the vectors of clips that metrics are computed from."""
        spaces = [(metric.network, metric.preset) for metric in used] or [_CHEAPEST]
        if any(network == DOMAIN for network, _ in spaces):
            ports = {**ports, DOMAIN: DOMAIN}
        # presets that cost nothing beside the needed one: other metrics find them again
        networks = [
            name if preset in NETWORKS[name].default else f"{name}:{preset}"
            for name, preset in spaces
        ]
        return self.stage(name, "features", ports, networks=sorted({*networks}), resources=_WORKERS)


def evaluation_pipeline(
    store: Store, samples: str, reference: str, metrics: Sequence[str], options: EvaluationOptions
) -> dict[str, Any]:
    """Return the pipeline as data, see `build_pipeline`.

    Args:
        store: where names are looked up.
        samples: a name of `samples@1`, or a folder that `videoar generate` has written.
        reference: a name of `evalsets@1`, such as that of a frozen set, or of `clips@1`; or a
            folder or URL of videos, of which clips of the form of the samples are made.
        metrics: names of metrics and of groups.
        options: all that have a default.

    Raises:
        ConfigError: a name, metric or option cannot be used.
        ContractError: the folder of samples is damaged.
        GateError: a takedown has removed a source of the set.
        SnapshotNotFoundError: nothing in the store has one of the names.
    """
    requested = [METRICS[name] for name in requested_metrics(metrics)]
    draft = _Draft()
    draft.inputs["evaluated"], rows = _samples(store, samples)
    evalset, protocol = _reference(draft, store, reference, rows, options)
    preset_of = protocol_named(protocol).preset_of
    used = [replace(metric, preset=preset_of(metric)) for metric in requested if metric.network]
    if any(metric.network == DOMAIN for metric in used):
        draft.inputs[DOMAIN] = _option(store, "domain", options.get("domain"), MODELS)
    # of real clips, what samples are compared by, and measures over time that are drawn beside them
    of_both = [m for m in used if m.kind != "mean" or m.network == "pixels"]
    ports = {
        "samples": "evaluated",
        "evalset": evalset,
        "sample_features": draft.features("sample_features", {"samples": "evaluated"}, used),
    }
    if of_both:
        port = "reference_features"
        ports[port] = draft.features(port, {"evalset": evalset}, of_both)
    if near := [metric for metric in used if metric.kind == "memorisation"]:
        draft.inputs["train"] = _option(store, "train", options.get("train"), CLIPS)
        ports["train_features"] = draft.features("train_features", {"clips": "train"}, near)
    if any(metric.kind == "reconstruction" for metric in requested):
        tokenizer = find_snapshot(store, rows[0]["tokenizer_digest"])
        draft.inputs["tokenizer"] = f"snapshot://{tokenizer.id}"
        ports["tokenizer"] = "tokenizer"
    draft.stage(_SCORES, "score", ports, metrics=list(metrics))
    return {"pipeline": "evaluate", "inputs": draft.inputs, "stages": draft.stages}


def _samples(store: Store, name: str) -> tuple[str, list[Row]]:
    """Return the input, and the rows of `samples@1`, at least one."""
    if Path(name).is_dir():
        url, table = name, read_sample_folder(Path(name))[0]
    else:
        snapshot = find_snapshot(store, name)
        if snapshot.contract != SAMPLES:
            hint = "give samples: of a run, or a folder of videoar generate"
            raise ConfigError(f"--samples {name}", f"is {snapshot.contract}, not {SAMPLES}", hint)
        url, table = f"snapshot://{snapshot.id}", snapshot.table()
    if not table.num_rows:
        raise ConfigError(f"--samples {name}", "has no samples")
    return url, table.to_pylist()


def _reference(
    draft: _Draft, store: Store, name: str, samples: Sequence[Row], options: EvaluationOptions
) -> tuple[str, str]:
    """Add the reference; return the input or stage that is the set, and its protocol."""
    protocol, num = options.get("protocol"), options.get("num")
    needed = protocol_named(protocol or "default").num_clips
    stored = name.partition("://")[2] if name.startswith(("ref://", "snapshot://")) else name
    split = "val"
    if "://" in stored or Path(name).is_dir():
        draft.inputs["reference"] = name
        clips, split = _clips_of_videos(draft, samples[0]), "all"
    else:
        snapshot = find_snapshot(store, stored)
        url = f"snapshot://{snapshot.id}"
        if snapshot.contract == EVALSETS:
            draft.inputs["evalset"] = url
            count, own = len(clip_rows(snapshot, REFERENCE)), protocol_name(snapshot)
            for option, given, fixed in (("protocol", protocol, own), ("num", num, count)):
                if given not in {None, fixed}:
                    hint = "leave it out, or make another set: stage evalset"
                    raise ConfigError(f"--{option} {given}", f"{name} has {fixed}", hint)
            return "evalset", own
        if snapshot.contract != CLIPS:
            hint = f"give {EVALSETS}, {CLIPS}, or a folder or URL of videos"
            raise ConfigError(f"--reference {name}", f"is {snapshot.contract}", hint)
        draft.inputs["reference"], clips = url, "reference"
    if num is not None and num > len(samples):
        what = f"there are {len(samples)} samples"
        raise ConfigError(f"--num {num}", what, "generate more, or leave it out")
    count = num or needed or max(2, len(samples))
    set_ = draft.stage(
        "reference_set",
        "evalset",
        {"clips": clips},
        num_reference=count,
        min_reference=num or 2,
        num_prompts=0,
        reference_split=split,
        protocol=protocol or "default",
    )
    return set_, protocol or "default"


def _clips_of_videos(draft: _Draft, form: Row) -> str:
    """Add stages that make clips of the form of a sample of videos; return the last one."""
    height, width = form["height_px"], form["width_px"]
    clips = draft.stage(
        "reference_clips",
        "ingest",
        {"sources": "reference"},
        num_frames=form["num_frames"],
        rate_fps=form["rate_fps"],
        size_px=height if height == width else [[height, width]],
        resources=_WORKERS,
    )
    return draft.stage("reference_good", "filter", {"clips": clips}, policy="permissive")


def _option(store: Store, option: str, name: str | None, contract: str) -> str:
    """Return the input of an option that a metric needs."""
    if name is None:
        hint = f"give a name of {contract}"
        raise ConfigError(f"--{option}", "a requested metric needs it", hint)
    return f"snapshot://{find_snapshot(store, name).id}"


def score_card(store: Store, run: Run) -> dict[str, Any]:
    """Return the scores of a run of the pipeline.

    Returns:
        `{run_id, snapshot, samples, evalset, protocol, scores: [rows of scores@1], floors: {metric:
        value}, not_above_chance: [metrics], not_evaluated: {metric: reason}}`; the last one without
        floors and limits, which nobody requests.
    """
    inputs = run.stage(_SCORES).inputs
    rows = store.snapshot(run.outputs[_SCORES]).table().to_pylist()
    values = {row["metric"]: row["value"] for row in rows}
    floors = {name: values.get(with_suffix(name, FLOOR)) for name in values}
    missing = {row["metric"]: row["reason"] for row in rows if row["status"] != "ok"}
    return {
        "run_id": run.run_id,
        "snapshot": run.outputs[_SCORES],
        "samples": inputs["samples"],
        "evalset": inputs["evalset"],
        "protocol": protocol_name(store.snapshot(inputs["evalset"])),
        "scores": rows,
        "floors": {name: floor for name, floor in floors.items() if floor is not None},
        "not_above_chance": [row["metric"] for row in rows if not_above_chance(row)],
        "not_evaluated": {name: why for name, why in missing.items() if not suffix_of(name)},
    }
