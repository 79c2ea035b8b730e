"""Score generated clips against real ones: one row per metric, each with its protocol lock."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from videoar.contracts.names import CLIPS, MODELS, SAMPLES, SCORES
from videoar.core.errors import ContractError
from videoar.core.ids import digest_json, sha256_hex
from videoar.core.settings import settings
from videoar.core.types import Row
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig


class ScoreConfig(StageConfig):
    """Options of `score`."""

    num_clips: int = Field(default=12, ge=2)
    """Clips per side of a Frechet distance. Costs 1 to 2 CPU-seconds per clip, for three sets."""
    num_reconstructions: int = Field(default=24, ge=1)
    """Real clips to reconstruct with the tokenizer."""
    num_examples: int = Field(default=4, ge=0)
    """Reconstructions to store as videos; of the first one also each scale."""
    reference_split: Literal["train", "val"] = "val"
    """Split of the real clips. Against `train`, a model that memorizes its data scores best."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random feature network and of the bootstrap."""


class ScoreStage(ReduceStage[ScoreConfig]):
    """Compute scores from generated samples and real clips."""

    name = "score"
    consumes: ClassVar[Mapping[str, Port]] = {
        "samples": Port(SAMPLES),
        "reference": Port(CLIPS),
        "tokenizer": Port(MODELS, optional=True),
    }
    produces = SCORES
    config_type = ScoreConfig

    def tools(self) -> Mapping[str, str]:
        """Return the digest of the I3D weights: without them the row of FVD has no value."""
        # if it is not set, Path("") is the working directory, which is no file
        path = Path(settings().i3d_weights)
        return {"i3d_weights": sha256_hex(path.read_bytes()) if path.is_file() else "none"}

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Yield one table with a row per metric."""
        from videoar.stages.score.worker import ScoreWorker

        # Sorted by id, so that the selected clips do not depend on the order of files and rows.
        samples = sorted(inputs["samples"].table().to_pylist(), key=lambda row: row["sample_id"])
        if not samples:
            raise ContractError("score", "the snapshot of samples is empty")
        clips = sorted(inputs["reference"].table().to_pylist(), key=lambda row: row["clip_id"])
        reference = [row for row in clips if row["split"] == self.config.reference_split]
        others = [row for row in clips if row["split"] != self.config.reference_split]
        # equal numbers on both sides: the bias of a Frechet distance is proportional to 1/N
        num = min(self.config.num_clips, len(samples), len(reference))
        # real clips that are not in the reference: the distance that perfect samples would have
        floor = [*reference[num:], *others][:num]
        lock = _sample_lock(samples)
        with closing(ScoreWorker(context.store, self.config.seed)) as worker:
            rows = [
                *worker.sample_rows(samples, lock),
                *worker.distance_rows(samples[:num], reference[:num], floor, lock),
                *worker.reconstruction_rows(
                    inputs.get("tokenizer"),
                    reference[: self.config.num_reconstructions],
                    self.config.num_examples,
                ),
                *worker.vbench_rows(lock),
            ]
        # a score that was not evaluated is missing here: no number could stand for it
        metrics = {row["metric"]: row["value"] for row in rows if row["status"] == "ok"}
        yield Output(pa.Table.from_pylist(rows), metrics=metrics)


def _sample_lock(samples: list[Row]) -> Row:
    """Return the part of the protocol lock that all metrics of these samples share."""
    first = samples[0]
    prompts = sorted([row["prompt"], row["index"], row["seed"]] for row in samples)
    return {
        "num_samples": len(samples),
        "prompts": digest_json(prompts),
        "sampler": first["sampler_json"],
        "num_frames": first["num_frames"],
        "rate_fps": first["rate_fps"],
        "size_px": [first["width_px"], first["height_px"]],
        "form": "decoded H.264",  # frames before encoding have other scores
    }
