"""Worker of `train_domain`: reads labelled clips, trains the classifier, publishes it."""

from collections.abc import Sequence

import pyarrow.compute as pc

from videoar.core.types import Row
from videoar.media.clip_reader import COLUMNS, ClipReader
from videoar.model.device import device, limit_threads
from videoar.pipeline.stage import Output
from videoar.stages.train_domain.config import TrainDomainConfig
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.training.classifier import ClassifierTrainer
from videoar.training.data.clip_cache import ClipCache
from videoar.training.model_store import publish_model

_HISTORY_POINTS = 100  # chosen: enough for a curve


def clip_rows(clips: Snapshot) -> tuple[list[Row], list[Row]]:
    """Return the labelled rows of the train split and of the val split, sorted by id."""
    table = clips.table(["clip_id", "split", "label", "num_frames", *COLUMNS])
    rows = table.filter(pc.field("label").is_valid()).sort_by("clip_id").to_pylist()
    train, val = ([row for row in rows if row["split"] == name] for name in ("train", "val"))
    return train, val


class TrainDomainWorker:
    """Trains and publishes one classifier.

    Args:
        config: options of the stage.
        store: where clips are read and the model is published.
        train: rows of the clips to train on.
        val: rows of the clips to measure on.
        classes: labels, sorted.
    """

    def __init__(
        self,
        config: TrainDomainConfig,
        store: Store,
        train: Sequence[Row],
        val: Sequence[Row],
        classes: tuple[str, ...],
    ) -> None:
        limit_threads(config.resources.cpus)
        self._store, self._every = store, max(1, config.steps // _HISTORY_POINTS)
        self._val = ClipCache(ClipReader(store.objects), val)
        self._val_labels = [classes.index(row["label"]) for row in val]
        self.trainer = ClassifierTrainer(
            config,
            classes,
            ClipCache(ClipReader(store.objects), train, config.cache_mib << 20),
            [classes.index(row["label"]) for row in train],
            device(),
        )

    def train_step(self) -> dict[str, float]:
        """Take one step; return its metrics, and keep some of them for the curve."""
        step, metrics = self.trainer.step, self.trainer.train_step()
        if step % self._every == 0:
            self.trainer.history.append({"step": step, **metrics})
        return metrics

    def accuracy(self) -> float:
        """Return the accuracy on the val split."""
        return self.trainer.accuracy(self._val, self._val_labels)

    def publish(self, accuracy: float, chance: float) -> Output:
        """Store the weights; return the row of `models@1`."""
        trainer = self.trainer
        metrics = {"val/accuracy": accuracy, "val/chance": chance}
        rows = publish_model(
            trainer.net,
            self._store,
            weights=trainer.net.state_dict(),
            step=trainer.step,
            metrics=metrics,
            history=[*trainer.history, {"step": trainer.step - 1, **metrics}],
        )
        return Output(rows, metrics=metrics)
