"""Score generated samples on an evaluation set: one row per metric, each with its protocol lock."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import ClassVar

import pyarrow as pa
from pydantic import Field, field_validator

from videoar.contracts.names import EVALSETS, FEATURES, MODELS, SAMPLES, SCORES
from videoar.core.errors import ConfigError, ContractError
from videoar.core.ids import digest_json
from videoar.core.types import Row
from videoar.evaluation.evalset import (
    FLOOR,
    REFERENCE,
    clip_rows,
    compared,
    content_digest,
    prompt_rows,
    protocol_name,
)
from videoar.evaluation.measure import ScoreInputs, computable, not_evaluated_rows, rows_of
from videoar.evaluation.metric_names import FVD, METRICS, VBENCH, requested_metrics
from videoar.evaluation.protocols import protocol_named
from videoar.evaluation.sample_values import FeatureTable, listed
from videoar.evaluation.scorecard import form_of, form_problem, sample_lock
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig
from videoar.storage.snapshot import Snapshot

_TIMING, _SIZE = ("num_frames", "rate_fps"), ("width_px", "height_px")
_RECONSTRUCTION = tuple(name for name, m in METRICS.items() if m.kind == "reconstruction")


class ScoreConfig(StageConfig):
    """Options of `score`."""

    metrics: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Metrics, or `rendered`, `recon`, `proxy`, `vbench` for all of a group; default: all whose
    vectors are there, and FVD and VBench, even if without values."""
    num_reconstructions: int = Field(default=24, ge=1)
    """Real clips of the set to reconstruct with the tokenizer."""
    num_examples: int = Field(default=4, ge=0)
    """Reconstructions to store as videos; of the first one also each scale."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        try:
            requested_metrics(names or ())
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return names


class ScoreStage(ReduceStage[ScoreConfig]):
    """Compute scores from the vectors of samples and of an evaluation set."""

    name = "score"
    consumes: ClassVar[Mapping[str, Port]] = {
        "samples": Port(SAMPLES),
        "sample_features": Port(FEATURES),
        "evalset": Port(EVALSETS),
        "reference_features": Port(FEATURES, optional=True),
        "train_features": Port(FEATURES, optional=True),
        "tokenizer": Port(MODELS, optional=True),
        "vbench": Port(SCORES, optional=True),
    }
    produces = SCORES
    config_type = ScoreConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Yield one table with a row per metric."""
        data = score_inputs(inputs, self.config.seed)
        names = self._metrics(inputs, data)
        rows = [
            row
            for name in names
            if METRICS[name].kind not in {"reconstruction", "vbench"}
            for row in rows_of(name, data)
        ]
        if wanted := [name for name in names if name in _RECONSTRUCTION]:
            rows += self._reconstruction_rows(wanted, inputs, context)
        given = inputs["vbench"].table().to_pylist() if "vbench" in inputs else []
        known = {row["metric"] for row in given}
        absent = [name for name in names if METRICS[name].kind == "vbench" and name not in known]
        rows += given + not_evaluated_rows(absent, "no scores of stage vbench", data.lock)
        # a score that was not evaluated is missing here: no number could stand for it
        metrics = {row["metric"]: row["value"] for row in rows if row["status"] == "ok"}
        yield Output(pa.Table.from_pylist(rows), metrics=metrics)

    def _metrics(self, inputs: Inputs, data: ScoreInputs) -> tuple[str, ...]:
        if self.config.metrics is not None:
            return requested_metrics(self.config.metrics)
        found = computable(data.features, has_training=bool(data.training))
        recon = _RECONSTRUCTION if "tokenizer" in inputs else ()
        return tuple(dict.fromkeys((*found, *recon, FVD, *VBENCH)))

    def _reconstruction_rows(
        self, names: Sequence[str], inputs: Inputs, context: StageContext
    ) -> list[Row]:
        """Return the scores of real clips that the tokenizer encodes and decodes."""
        from videoar.stages.score.worker import ReconstructionWorker

        clips = _by_id(clip_rows(inputs["evalset"], REFERENCE))[: self.config.num_reconstructions]
        lock = {"reference": digest_json([row["video_sha256"] or row["clip_id"] for row in clips])}
        if "tokenizer" not in inputs:
            return not_evaluated_rows(names, "no tokenizer", lock)
        with closing(ReconstructionWorker(context.store, inputs["tokenizer"])) as worker:
            scores = worker.scores(clips, self.config.num_examples)
        return [row for row in scores.rows(lock, self.config.seed) if row["metric"] in names]


def score_inputs(inputs: Inputs, seed: int = 0) -> ScoreInputs:
    """Return what scores are computed from.

    Args:
        inputs: ports of `ScoreStage`.
        seed: of the bootstrap.

    Raises:
        ContractError: there are no samples, they have several forms, or they are not those of the
            evaluation set.
        GateError: a takedown has removed a source of the set.
    """
    samples, evalset = inputs["samples"].table().to_pylist(), inputs["evalset"]
    _require_one_form(samples)
    # sorted by id, so that nothing depends on the order of files and rows
    samples = sorted(samples, key=lambda row: row["sample_id"])
    reference, floor = (_by_id(clip_rows(evalset, role)) for role in (REFERENCE, FLOOR))
    protocol = protocol_name(evalset)
    ports = ("sample_features", "reference_features", "train_features")
    features = FeatureTable.read(*(inputs[port] for port in ports if port in inputs))
    real = [row["clip_id"] for row in reference] if "reference_features" in inputs else []
    training = inputs["train_features"].table(["clip_id"]) if "train_features" in inputs else None
    trained = set(training["clip_id"].to_pylist()) if training is not None else set()
    return ScoreInputs(
        texts={row["sample_id"]: row["prompt"] for row in samples},
        compared=[row["sample_id"] for row in compared(samples, len(reference))],
        reference=real,
        floor=[row["clip_id"] for row in floor],
        features=features,
        lock={
            "evalset": content_digest(evalset),
            "protocol": protocol,
            **sample_lock(samples),
        },
        protocol=protocol_named(protocol),
        seed=seed,
        samples_problem=_missing_samples(samples, evalset),
        distance_problem=_distance_problem(samples, reference, inputs),
        training=sorted(trained - set(real)),
    )


def _by_id(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["clip_id"])


def _require_one_form(samples: Sequence[Row]) -> None:
    if not samples:
        raise ContractError("score", "the snapshot of samples is empty")
    if several := form_problem(samples):
        raise ContractError("score", several, "score the samples of each form by themselves")
    if len({row["sampler_json"] for row in samples}) > 1:
        what = "samples have several settings of the sampler"
        raise ContractError("score", what, "score the samples of each by themselves")


def _missing_samples(samples: Sequence[Row], evalset: Snapshot) -> str:
    """Return which prompts of the set have no sample; "" if all have, or if it has no prompts.

    Raises:
        ContractError: samples are of other prompts or seeds.
    """
    wanted = {
        (row["prompt_id"], row["index"], row["seed"]): row["prompt"] or row["label"]
        for row in prompt_rows(evalset)
    }
    found = {(row["prompt_id"], row["index"], row["seed"]) for row in samples}
    if wanted and (others := found - wanted.keys()):
        what = f"{len(others)} of {len(found)} samples are of no prompt and seed of the set"
        raise ContractError(evalset.id, what, "generate them from the set: port evalset")
    missing = [f"{wanted[key]!r} {key[1]}" for key in sorted(wanted.keys() - found)]
    return f"{len(missing)} of {len(wanted)} are missing: {listed(missing)}" if missing else ""


def _distance_problem(samples: Sequence[Row], reference: Sequence[Row], inputs: Inputs) -> str:
    """Return why samples and reference cannot be compared, "" if they can.

    A set may have clips of several sizes, as models are trained on; that of the samples is one.
    """
    if "reference_features" not in inputs:
        return "no vectors of the reference: connect port reference_features"
    if len(samples) < len(reference):
        return f"{len(samples)} samples, {len(reference)} reference clips; equal N is needed"
    first = samples[0]
    other = [row for row in reference if any(row[name] != first[name] for name in _TIMING)]
    if all(any(row[name] != first[name] for name in _SIZE) for row in reference):
        other = [*reference]
    if not other:
        return ""
    forms = form_of(first), form_of(other[0])
    return f"samples have {forms[0]}, {len(other)} reference clips others, such as {forms[1]}"
