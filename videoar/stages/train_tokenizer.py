"""Train a tokenizer on clips: videos to a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from videoar.core.errors import ConfigError, GateError
from videoar.core.ids import sha256_hex
from videoar.model.tokenizer_config import TOKENIZERS, TokenizerConfig, TokenizerTraining
from videoar.pipeline.stage import Inputs, LoopStage, Output, Port, Rank, StageConfig, runtime
from videoar.storage.store import Store
from videoar.storage.tables import Snapshot

if TYPE_CHECKING:
    import numpy as np

    from videoar.model.tokenizer_losses import FeatureNet
    from videoar.training.train_tokenizer import TokenizerTrainer

Row = dict[str, Any]
_VALIDATION_CLIPS = 16  # chosen: a mean PSNR good to about 0.3 dB, for a second of work


class TrainTokenizerConfig(StageConfig):
    """Options of `train_tokenizer`."""

    preset: str = "ucf"
    """Named size."""
    tokenizer: dict[str, Any] = Field(default_factory=dict)
    """Fields of the tokenizer that differ from the preset."""
    training: TokenizerTraining = TokenizerTraining()
    """Steps, batch, learning rate, loss weights."""
    lpips_weights: str = ""
    """Path, on every rank, of a safetensors file with the weights of AlexNet and the heads for
    the perceptual term (see `videoar.model.lpips`); empty takes a frozen random net."""
    max_clips: int = Field(default=4096, ge=1)
    """Clips to train on; evenly spaced ones are taken where there are more."""
    cached_clips: int = runtime(4096, ge=0)
    """Decoded clips that a rank keeps in memory; the others are decoded again when drawn."""
    checkpoint_every: int = runtime(500, ge=1)
    """Steps between checkpoints."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.preset not in TOKENIZERS:
            raise ValueError(f"preset={self.preset!r} is unknown; there are {sorted(TOKENIZERS)}")
        self.shape.num_latent_frames(self.training.excerpt_frames)
        return self

    @property
    def shape(self) -> TokenizerConfig:
        """The preset with its changes."""
        own = TOKENIZERS[self.preset].model_dump()
        return TokenizerConfig.model_validate({**own, **self.tokenizer})


class TrainTokenizerStage(LoopStage[TrainTokenizerConfig]):
    """Clips of the train split to a tokenizer; the val split only measures it."""

    name = "train_tokenizer"
    consumes: ClassVar[Mapping[str, Port]] = {"clips": Port("clips@1")}
    produces = "models@1"
    config_type = TrainTokenizerConfig

    def tools(self) -> Mapping[str, str]:
        """Return the digest of the LPIPS weights, if there are any."""
        path = self.config.lpips_weights
        return {"lpips": sha256_hex(_read(path))} if path else {}

    def run(self, inputs: Inputs, store: Store, rank: Rank) -> Output | None:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises:
            ConfigError: the clips do not have the tokenizer's size.
            GateError: there is no clip to train on.
        """
        import torch

        from videoar.training.train_tokenizer import TokenizerTrainer

        torch.set_num_threads(max(1, int(self.config.resources.cpus)))
        train, val = self._clips(inputs["clips"], store)
        trainer = TokenizerTrainer(
            self.config.shape,
            self.config.training,
            train,
            rank.index,
            rank.world_size,
            features=_lpips(self.config.lpips_weights),
        )
        resume = rank.scratch / "resume"
        resume.mkdir(parents=True)
        if rank.load_checkpoint(resume) is not None:
            trainer.load(resume)
        while trainer.step < self.config.training.steps:
            metrics = trainer.train_step()
            rank.report(trainer.step, self.config.training.steps, metrics)
            if trainer.step % self.config.checkpoint_every == 0 and rank.index == 0:
                _checkpoint(trainer, rank)
        return None if rank.index else _publish(trainer, val, store)

    def _clips(self, clips: Snapshot, store: Store) -> tuple["StoredClips", "StoredClips"]:
        from videoar.media.clips import COLUMNS

        table = clips.table(["clip_id", "split", "height_px", *COLUMNS])
        sizes = set(zip(*table.select(["height_px", "width_px"]).to_pydict().values(), strict=True))
        if sizes - {self.config.shape.size_px}:
            what = f"clips of {sorted(sizes)} px, tokenizer for {self.config.shape.size_px}"
            raise ConfigError("train_tokenizer.tokenizer", what, "change size_px or scales")
        train, val = (_rows(table, split) for split in ("train", "val"))
        if not train:
            raise GateError("train_tokenizer", "no clips of the train split came in")
        cached = self.config.cached_clips
        return (
            StoredClips(store, _evenly(train, self.config.max_clips), cached),
            StoredClips(store, _evenly(val, _VALIDATION_CLIPS), 0),
        )


class StoredClips:
    """Clips by number: decoded when asked for, the first ones then kept.

    Args:
        store: where the clips are.
        rows: of these clips.
        num_cached: how many to keep decoded.
    """

    def __init__(self, store: Store, rows: Sequence[Row], num_cached: int) -> None:
        from videoar.media.clips import ClipReader

        self._read, self._rows, self._num_cached = ClipReader(store.objects), rows, num_cached
        self._cache: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._rows)

    def __getitem__(self, index: int) -> "np.ndarray":
        """Return frames_THWC of one clip, uint8."""
        if index in self._cache:
            return self._cache[index]
        frames_THWC = self._read(self._rows[index])
        if len(self._cache) < self._num_cached:
            self._cache[index] = frames_THWC
        return frames_THWC


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror}"
        raise ConfigError("train_tokenizer.lpips_weights", what) from error


def _lpips(path: str) -> "FeatureNet | None":
    if not path:
        return None
    from safetensors.torch import load

    from videoar.model.lpips import LpipsAlex

    return LpipsAlex(load(_read(path)))


def _rows(table: pa.Table, split: str) -> list[Row]:
    """Return the clips of a split, in an order that the snapshot's files do not decide."""
    rows: list[Row] = table.filter(pc.field("split") == split).sort_by("clip_id").to_pylist()
    return rows


def _evenly(rows: Sequence[Row], at_most: int) -> list[Row]:
    count = min(len(rows), at_most)
    return [rows[i * len(rows) // count] for i in range(count)]


def _checkpoint(trainer: "TokenizerTrainer", rank: Rank) -> None:
    folder = Path(rank.scratch) / f"step-{trainer.step}"
    folder.mkdir()
    trainer.save(folder)
    rank.save_checkpoint(trainer.step, folder)


def _publish(trainer: "TokenizerTrainer", val: StoredClips, store: Store) -> Output:
    from videoar.training.checkpoint import publish_model
    from videoar.training.train_tokenizer import reconstruction_psnr

    metrics = {name: value for name, value in trainer.history[-1].items() if name != "step"}
    if len(val):
        clips = (val[index] for index in range(len(val)))
        metrics["val_psnr_db"] = reconstruction_psnr(trainer.averaged(), clips)
    rows = publish_model(
        trainer.net,
        store,
        weights=trainer.average.weights,
        step=trainer.step,
        metrics=metrics,
        history=trainer.history,
    )
    return Output(rows, metrics=metrics)
