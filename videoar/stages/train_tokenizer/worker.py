"""Worker of `train_tokenizer`: clips, networks from weight files, and the trainer of one rank."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from videoar.core.errors import ConfigError, did_you_mean
from videoar.core.settings import settings
from videoar.core.types import Row
from videoar.evaluation.extractor import Extractor
from videoar.evaluation.reconstruction import Validation, require_min_psnr
from videoar.evaluation.registry import open_extractor
from videoar.media.clip_reader import COLUMNS, ClipReader
from videoar.model.device import device, limit_threads
from videoar.model.pretrained.lite0 import load_lite0
from videoar.model.pretrained.lite0_perceptual import Lite0Perceptual
from videoar.model.tokenizer.config import TokenizerConfig, TokenizerTraining
from videoar.model.tokenizer.inflation import inflate, load_image_weights
from videoar.model.tokenizer.losses import FeatureNet
from videoar.model.tokenizer.lpips import load_lpips
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.pipeline.stage import Output, RankContext
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.training.data.clip_cache import ClipCache
from videoar.training.model_store import publish_model
from videoar.training.tokenizer import TokenizerTrainer

_LPIPS, _IMAGE = "train_tokenizer.lpips_weights", "train_tokenizer.image_weights"
_FRESH = "train_tokenizer.image_fresh"


class WeightFiles(NamedTuple):
    """Options of the stage that name weights; empty ones are not used."""

    perceptual: str
    lpips: str
    image: str
    fresh: tuple[str, ...]
    """Prefixes of weights that `image` does not provide."""


def clip_table(clips: Snapshot) -> pa.Table:
    """Read the columns that selecting and decoding clips needs."""
    return clips.table(["clip_id", "split", "num_frames", *COLUMNS])


class TrainTokenizerWorker:
    """One rank of `train_tokenizer`.

    Args:
        store: where clips are read and the model is published.
        train: rows of the clips to train on.
        val: rows of the clips to measure on.
        cache_bytes: memory for decoded train clips.
    """

    def __init__(
        self, store: Store, train: Sequence[Row], val: Sequence[Row], cache_bytes: int
    ) -> None:
        self._store = store
        # A reader each: train clips are read by the loader's thread, val clips by this one.
        self._train = ClipCache(ClipReader(store.objects), train, cache_bytes)
        self._val = ClipCache(ClipReader(store.objects), val)

    def new_trainer(
        self,
        cfg: TokenizerConfig,
        training: TokenizerTraining,
        rank: RankContext,
        files: WeightFiles,
        cpus: float,
    ) -> TokenizerTrainer:
        """Return the trainer of this rank at step 0.

        Raises:
            ConfigError: a file of weights holds something else.
        """
        limit_threads(cpus)
        return TokenizerTrainer(
            cfg,
            training,
            self._train,
            rank.index,
            rank.world_size,
            sizes_px=self._train.sizes_px,
            features=_perceptual_net(files),
            start=partial(_inflate, path=files.image, fresh=files.fresh) if files.image else None,
            device=device(),
        )

    def validation(
        self, distance: bool, seed: int
    ) -> Callable[[VideoTokenizer], Mapping[str, float]]:
        """Decode the val clips; return the function that measures a tokenizer on them."""
        # decoded once for all measurements of the run
        return Validation(list(self._val), _feature_networks(seed) if distance else {}).measure

    def publish(self, trainer: TokenizerTrainer, min_psnr_db: float) -> Output:
        """Store the averaged weights; return the row of `models@1`.

        Raises:
            GateError: there is a minimum, and the PSNR on the val clips is below it.
        """
        if min_psnr_db:
            where = "train_tokenizer.min_psnr_db"
            require_min_psnr(trainer.averaged(), self._val, min_psnr_db, where)
        metrics = {name: value for name, value in trainer.history[-1].items() if name != "step"}
        rows = publish_model(
            trainer.net,
            self._store,
            weights=trainer.average.weights,
            step=trainer.step,
            metrics=metrics,
            history=trainer.history,
        )
        return Output(rows, metrics=metrics)


def _perceptual_net(files: WeightFiles) -> FeatureNet | None:
    """Return the feature net of the perceptual term; None for the trainer's own random one."""
    if files.perceptual == "lite0":
        return Lite0Perceptual(load_lite0())
    try:
        return load_lpips(Path(files.lpips)) if files.lpips else None
    except ConfigError as error:
        raise ConfigError(_LPIPS, f"{files.lpips} {error.what}") from error


def _inflate(net: VideoTokenizer, *, path: str, fresh: tuple[str, ...]) -> None:
    """Inflate the image tokenizer of a file into a new network."""
    names = [name for name, _ in net.named_parameters()]
    for prefix in fresh:
        if not any(name.startswith(prefix) for name in names):
            # layers, not weights: a hint with hundreds of names would not be read
            layers = {".".join(name.split(".")[:2]) for name in names}
            what = f"no weight begins with {prefix!r}"
            raise ConfigError(_FRESH, what, did_you_mean(prefix, layers))
    if all(name.startswith(fresh) for name in names):
        raise ConfigError(_FRESH, f"excludes every weight of {path}", "list fewer layers")
    try:
        inflate(net, load_image_weights(Path(path), net.cfg), fresh=fresh)
    except ConfigError as error:
        raise ConfigError(_IMAGE, f"{path}: {error.what}", error.hint) from error
    except ValueError as error:
        hint = "give the file of the same tokenizer, or list in image_fresh what it lacks"
        raise ConfigError(_IMAGE, f"{path}: {error}", hint) from error


def _feature_networks(seed: int) -> dict[str, Extractor]:
    # two names, because their values are not comparable: a random network gives no FVD
    if settings().i3d_weights:
        return {"fvd": open_extractor("i3d")}
    return {"frechet_random_i3d": open_extractor("random_i3d", seed=seed)}
