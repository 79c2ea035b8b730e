"""Score generated clips against real ones: one row per metric, each with its protocol lock."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from videoar.contracts.names import CLIPS, MODELS, SAMPLES, SCORES
from videoar.core.errors import ConfigError, ContractError
from videoar.core.ids import digest_json, sha256_hex
from videoar.core.settings import settings
from videoar.core.types import Row
from videoar.evaluation.scorecard import not_evaluated
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

if TYPE_CHECKING:
    from videoar.evaluation.measure import Clip
    from videoar.media.clip_reader import ClipReader


class ScoreConfig(StageConfig):
    """Options of `score`."""

    num_clips: int = Field(default=12, ge=2)
    """Clips per side of a distance. Three sets pass through I3D, 1 to 2 CPU-seconds a clip."""
    num_reconstructions: int = Field(default=24, ge=1)
    """Real clips that make a round trip through the tokenizer."""
    num_examples: int = Field(default=4, ge=0)
    """Round trips that are stored as videos, the first of them also scale by scale."""
    reference_split: Literal["train", "val"] = "val"
    """Split that real clips come from; the other one rewards or hides memorizing."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random network and of the bootstrap."""


class ScoreStage(ReduceStage[ScoreConfig]):
    """Samples and real clips to scores."""

    name = "score"
    consumes: ClassVar[Mapping[str, Port]] = {
        "samples": Port(SAMPLES),
        "reference": Port(CLIPS),
        "tokenizer": Port(MODELS, optional=True),
    }
    produces = SCORES
    config_type = ScoreConfig

    def tools(self) -> Mapping[str, str]:
        """Return which I3D weights the operator offers: FVD comes and goes with them."""
        path = Path(settings().i3d_weights)
        return {"i3d_weights": sha256_hex(path.read_bytes()) if path.is_file() else "none"}

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Yield one table with a row per metric."""
        from videoar.evaluation import measure
        from videoar.media.clip_reader import ClipReader

        store = context.store
        read = ClipReader(store.objects)
        samples = sorted(inputs["samples"].table().to_pylist(), key=lambda row: row["sample_id"])
        if not samples:
            raise ContractError("score", "the snapshot of samples is empty")
        clips = sorted(inputs["reference"].table().to_pylist(), key=lambda row: row["clip_id"])
        inside = [row for row in clips if row["split"] == self.config.reference_split]
        outside = [row for row in clips if row["split"] != self.config.reference_split]
        lock = _sample_lock(samples)
        streamed = measure.SampleScores()
        for row in samples:
            streamed.add(_clip(read, row))
        rows = [
            *streamed.rows("rendered", lock, self.config.seed),
            *self._distances(read, samples, inside, outside, lock),
            *self._reconstructions(store, read, inputs.get("tokenizer"), inside),
            *measure.vbench_rows(lock),
        ]
        read.close()
        yield Output(pa.Table.from_pylist(rows), metrics=_metrics(rows))

    def _distances(
        self,
        read: "ClipReader",
        samples: list[Row],
        inside: list[Row],
        outside: list[Row],
        lock: Row,
    ) -> list[Row]:
        """Return the Frechet rows at equal N; the floor is taken from real clips not used yet."""
        from videoar.evaluation import i3d, measure
        from videoar.model.device import device

        num = min(self.config.num_clips, len(samples), len(inside))
        sets = (samples[:num], inside[:num], [*inside[num:], *outside][:num])
        lock = {
            **lock,
            "reference": _identity(inside[:num]),
            "device": device(),
        }
        problem = measure.no_distance_reason([[row["num_frames"] for row in rows] for rows in sets])
        networks = {
            "frechet_random_i3d": partial(i3d.random_i3d, self.config.seed),
            "fvd": partial(i3d.load_i3d, settings().i3d_weights),
        }
        found = []
        for metric, load in networks.items():
            reason = problem
            try:
                network = None if reason else load()
            except ConfigError as error:
                network, reason = None, str(error)
            if network is None:
                found.append(not_evaluated(metric, reason, lock=lock, higher_is_better=False))
                continue
            features = [
                measure.features_ND(network, (_clip(read, row) for row in rows)) for rows in sets
            ]
            full = {**lock, "network": network.digest()}
            found += measure.distance_rows(metric, *features, lock=full, seed=self.config.seed)
        return found

    def _reconstructions(
        self, store: Store, read: "ClipReader", tokenizer: Snapshot | None, inside: list[Row]
    ) -> list[Row]:
        """Return the scores of round trips through the tokenizer."""
        from videoar.evaluation import measure, reconstruction
        from videoar.model.device import device
        from videoar.training.model_store import load_tokenizer

        chosen = inside[: self.config.num_reconstructions]
        lock = {"reference": _identity(chosen)}
        if tokenizer is None or not chosen:
            missing = "tokenizer" if tokenizer is None else f"{self.config.reference_split} clips"
            return measure.reconstruction_not_evaluated(f"no {missing} given", lock)
        network, _ = load_tokenizer(tokenizer, store, device())
        scores = measure.ReconstructionScores()
        for i, row in enumerate(chosen):
            real = _clip(read, row)
            name = f"clip {real.id}"
            frames_THWC, _ = reconstruction.round_trip(network, real.frames, name)
            scores.add(real, frames_THWC)
            if i == 0 and self.config.num_examples:
                steps = reconstruction.per_scale_reconstructions(network, real.frames, name)
                sized = network.for_size(*real.frames.shape[1:3])
                for (height, width), step in zip(sized.cfg.scales, steps, strict=True):
                    key = _stored(store, replace(real, frames=step))
                    scores.add_scale(real.id, f"{height} x {width}", key)
            if i < self.config.num_examples:
                key = _stored(store, replace(real, frames=frames_THWC))
                scores.add_example(real.id, row["video_key"] or _stored(store, real), key)
        return scores.rows(lock, self.config.seed)


def _clip(read: "ClipReader", row: Row) -> "Clip":
    """Read the video of a row of `samples@1` or `clips@1`."""
    from videoar.evaluation.measure import Clip

    is_sample = "sample_id" in row
    return Clip(
        id=row["sample_id" if is_sample else "clip_id"],
        frames=read(row),
        rate_fps=row["rate_fps"],
        text=row["prompt" if is_sample else "caption"] or "",
    )


def _identity(clips: list[Row]) -> str:
    """Digest what these clips show: the stored videos, or the ids of references."""
    return digest_json([row["video_sha256"] or row["clip_id"] for row in clips])


def _stored(store: Store, clip: "Clip") -> str:
    """Keep the video of a clip that was a reference; return its key."""
    from videoar.media.transcode import encode_clips

    (video,) = encode_clips([clip.frames], clip.rate_fps, crf=12)
    return store.put_object(video, ".mp4").key


def _sample_lock(samples: list[Row]) -> Row:
    """Return what all metrics of these samples depend on, apart from the model itself."""
    first = samples[0]
    return {
        "num_samples": len(samples),
        "prompts": digest_json(
            sorted([row["prompt"], row["index"], row["seed"]] for row in samples)
        ),
        "sampler": first["sampler_json"],
        "num_frames": first["num_frames"],
        "rate_fps": first["rate_fps"],
        "size_px": [first["width_px"], first["height_px"]],
        "form": "decoded H.264",
    }


def _metrics(rows: list[Row]) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in rows if row["status"] == "ok"}
