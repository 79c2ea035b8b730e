"""Train a tokenizer on clips: videos to a model."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from videoar.contracts.names import CLIPS, MODELS
from videoar.core.errors import ConfigError, GateError
from videoar.core.ids import sha256_hex
from videoar.core.settings import settings
from videoar.core.types import Row
from videoar.model.tokenizer.config import TOKENIZERS, TokenizerConfig, TokenizerTraining
from videoar.pipeline.checkpoints import Checkpoints, resume
from videoar.pipeline.context import StageContext
from videoar.pipeline.local_path import LocalPath
from videoar.pipeline.presets import preset_name, valid_overrides, with_overrides
from videoar.pipeline.stage import (
    Inputs,
    LoopStage,
    Output,
    Port,
    RankContext,
    StageConfig,
    publish_gate,
    runtime,
)
from videoar.training.data.clip_cache import size_px

if TYPE_CHECKING:
    from videoar.stages.train_tokenizer.worker import TrainTokenizerWorker
    from videoar.training.tokenizer import TokenizerTrainer

logger = logging.getLogger(__name__)


class TrainTokenizerConfig(StageConfig):
    """Options of `train_tokenizer`."""

    preset: Annotated[str, preset_name(TOKENIZERS)] = "ucf"
    """Named size."""
    tokenizer: Annotated[dict[str, Any], valid_overrides(TOKENIZERS)] = Field(default_factory=dict)
    """Fields of the tokenizer that differ from the preset."""
    training: TokenizerTraining = TokenizerTraining()
    """Steps, batch, learning rate, loss weights."""
    lpips_weights: LocalPath = runtime("")
    """Path, on every rank, of a safetensors file with the weights of AlexNet and the heads for
    the perceptual term (see `videoar.model.tokenizer.lpips`); empty uses `perceptual`."""
    perceptual: Literal["random", "lite0"] = "random"
    """Frozen net of the perceptual term: with random weights, or the early blocks of
    EfficientNet-Lite0, trained on ImageNet. The term is off by default:
    `training.weights.perceptual`."""
    image_weights: LocalPath = runtime("")
    """Path, on every rank, of a safetensors file of an image tokenizer of the same shape, which is
    inflated into the new network (see `model.tokenizer.inflation`): one of ours, or one of
    Infinity's where the tokenizer has `infinity_layout`, as `ucf` and `512` have."""
    image_fresh: tuple[str, ...] = ()
    """Prefixes of weights that keep their random start. For an image tokenizer with another number
    of bits: `encoder.conv_out`, `decoder.conv_in`."""
    validations: int = Field(default=5, ge=1)
    """How often the averaged weights are measured on the val clips, evenly over the run and at its
    end."""
    validation_clips: int = Field(default=16, ge=1)
    """Val clips to measure on; 16 give a mean PSNR accurate to about 0.3 dB, in a second."""
    distance: bool = False
    """Also measure a Frechet distance: `fvd` if the operator's weights pass their check, else
    `frechet_random_i3d`. 1 to 2 CPU-seconds per clip, each time."""
    min_psnr_db: float = publish_gate(0.0, ge=0)
    """Gate: minimum mean PSNR in dB of the val clips; a worse tokenizer is not published."""
    max_clips: int = Field(default=4096, ge=1)
    """Maximum number of clips to train on; of more, evenly spaced ones are used."""
    cache_mib: int = runtime(4096, ge=0)
    """Memory in MiB in which a rank keeps decoded clips; the others are decoded again when drawn.
    Chosen: room for `max_clips` of 17 frames at 128 x 128 px."""
    checkpoint_every: int = runtime(500, ge=1)
    """Steps between checkpoints. One more follows the last step: with a changed gate the run
    resumes from it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # called for its ValueError: now, not when the first excerpt is drawn
        self.shape.num_latent_frames(self.training.excerpt_frames)
        if self.training.drop_scales >= len(self.shape.scales):
            raise ValueError(
                f"training.drop_scales leaves none of the {len(self.shape.scales)} scales"
            )
        if self.image_weights:
            self.shape.as_image()
        if self.perceptual == "lite0" and self.lpips_weights:
            raise ValueError("give either perceptual: lite0 or lpips_weights")
        if self.perceptual == "lite0" and not self.training.weights.perceptual:
            raise ValueError("perceptual: lite0 needs training.weights.perceptual above 0")
        parts = self.resources.max_workers * self.training.accumulate
        if self.training.batch_clips % parts:
            raise ValueError(
                f"training.batch_clips={self.training.batch_clips} is not a multiple of {parts}:"
                f" resources.workers={self.resources.max_workers}"
                f" x training.accumulate={self.training.accumulate}"
            )
        return self

    @property
    def shape(self) -> TokenizerConfig:
        """The preset with its overrides."""
        return with_overrides(TOKENIZERS[self.preset], self.tokenizer)


class TrainTokenizerStage(LoopStage[TrainTokenizerConfig]):
    """Clips of the train split to a tokenizer; the val split only measures it.

    Clips may have several sizes, if one of them is the tokenizer's own: see `TokenizerTrainer`.
    """

    name = "train_tokenizer"
    consumes: ClassVar[Mapping[str, Port]] = {"clips": Port(CLIPS)}
    produces = MODELS
    config_type = TrainTokenizerConfig

    def tools(self) -> Mapping[str, str]:
        """Return the digests of the weights that the operator provides."""
        paths = {name: getattr(self.config, name) for name in ("lpips_weights", "image_weights")}
        digests = {name: sha256_hex(_read(name, path)) for name, path in paths.items() if path}
        if self.config.distance:
            path = Path(settings().i3d_weights)
            digests["i3d_weights"] = sha256_hex(path.read_bytes()) if path.is_file() else "none"
        return digests

    def run(self, inputs: Inputs, context: StageContext, rank: RankContext) -> Output | None:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises:
            ConfigError: the tokenizer's size is not among those of the clips, one of them does
                not fit, is too short, or there is none for the gate; or a file of weights holds
                something else.
            GateError: there is no clip to train on, or the tokenizer is not good enough.
            StageError: ranks begin differently, a loss or gradient is not finite, or clips cannot
                be read.
        """
        from videoar.stages.train_tokenizer.worker import (
            TrainTokenizerWorker,
            WeightFiles,
            clip_table,
        )

        config = self.config
        train, val = self.select_clips(clip_table(inputs["clips"]))
        files = WeightFiles(
            config.perceptual, config.lpips_weights, config.image_weights, config.image_fresh
        )
        worker = TrainTokenizerWorker(context.store, train, val, config.cache_mib << 20)
        trainer = worker.new_trainer(
            config.shape, config.training, rank, files, config.resources.cpus
        )
        resume(rank, trainer.load)
        with Checkpoints(rank) as checkpoints:
            self._train(trainer, worker, rank, checkpoints)
        return None if rank.index else worker.publish(trainer, config.min_psnr_db)

    def _train(
        self,
        trainer: "TokenizerTrainer",
        worker: "TrainTokenizerWorker",
        rank: RankContext,
        checkpoints: Checkpoints,
    ) -> None:
        config, steps = self.config, self.config.training.steps
        # Rank 0 measures alone; the others wait for it in the next step's first collective.
        measure = None if rank.index else worker.validation(config.distance, config.training.seed)
        while trainer.step < steps:
            metrics = trainer.train_step()
            if measure is not None and self._is_due(trainer.step):
                values = measure(trainer.averaged())
                trainer.log_metrics({f"val/{name}": value for name, value in values.items()})
            rank.report(trainer.step, steps, metrics, trainer.history)
            is_due = trainer.step % config.checkpoint_every == 0 or trainer.step == steps
            if is_due:
                checkpoints.save(trainer.step, trainer.save)

    def _is_due(self, step: int) -> bool:
        """Return whether one of the evenly spaced measurements follows a step, counted from 1."""
        # 5 times in 12 steps: after steps 3, 5, 8, 10 and 12
        times, steps = self.config.validations, self.config.training.steps
        return step * times // steps > (step - 1) * times // steps

    def select_clips(self, table: pa.Table) -> tuple[list[Row], list[Row]]:
        """Return the rows of the clips to train on and of those to measure on.

        Raises:
            ConfigError: sizes or lengths do not fit.
            GateError: there is no clip to train on.
        """
        self._check_sizes(set(map(size_px, table.select(["height_px", "width_px"]).to_pylist())))
        train, val = (_rows_of_split(table, split) for split in ("train", "val"))
        if not train:
            raise GateError("train_tokenizer", "the input has no clips of the train split")
        if len(train) > self.config.max_clips:
            logger.warning(
                "training on max_clips = %d of %d clips", self.config.max_clips, len(train)
            )
        train = _evenly(train, self.config.max_clips)
        val = _evenly(val, self.config.validation_clips)
        self._check_lengths(train, val)
        return train, val

    def _check_sizes(self, sizes_px: set[tuple[int, int]]) -> None:
        """Reject clips that the tokenizer cannot encode, or none of which has its own size."""
        where, shape = "train_tokenizer.tokenizer", self.config.shape
        what = f"clips of {sorted(sizes_px)} px, tokenizer for {shape.size_px}"
        hint = "change size_px or scales"
        if sizes_px and shape.size_px not in sizes_px:
            raise ConfigError(where, what, hint)
        try:
            for size in sorted(sizes_px):
                shape.for_size(*size)
        except ValueError as error:
            raise ConfigError(where, f"{what}: {error}", hint) from error

    def _check_lengths(self, train: Sequence[Row], val: Sequence[Row]) -> None:
        """Reject now what would fail hours later, when it is drawn or measured."""
        training, shape = self.config.training, self.config.shape
        # steps on images draw single frames
        needed = training.excerpt_frames if training.steps > training.image_steps else 1
        if short := [row for row in train if row["num_frames"] < needed]:
            what = (
                f"{needed} frames are longer than {len(short)} of {len(train)} train clips,"
                f" e.g. {short[0]['clip_id']} of {short[0]['num_frames']}"
            )
            hint = "lower it, or filter the clips"
            raise ConfigError("train_tokenizer.training.excerpt_frames", what, hint)
        for row in val:
            try:
                shape.num_latent_frames(row["num_frames"])
            except ValueError as error:
                what = f"val clip {row['clip_id']} does not fit: {error}"
                hint = "change time_downs, or num_frames where clips are made"
                raise ConfigError("train_tokenizer.tokenizer", what, hint) from error
        if self.config.min_psnr_db and not val:
            what = "there is no clip of the val split to measure it on"
            raise ConfigError("train_tokenizer.min_psnr_db", what, "leave it out, or add val clips")


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror}"
        raise ConfigError(f"train_tokenizer.{option}", what) from error


def _rows_of_split(table: pa.Table, split: str) -> list[Row]:
    """Return the clips of a split, sorted: their order must not depend on the snapshot's files."""
    rows: list[Row] = table.filter(pc.field("split") == split).sort_by("clip_id").to_pylist()
    return rows


def _evenly(rows: Sequence[Row], at_most: int) -> list[Row]:
    # 4 of 10 rows: 0, 2, 5, 7
    count = min(len(rows), at_most)
    return [rows[i * len(rows) // count] for i in range(count)]
