"""Train the network of `frechet_domain` on labelled clips: clips to a model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from videoar.contracts.names import CLIPS, MODELS
from videoar.core.errors import ConfigError, GateError
from videoar.core.types import Row
from videoar.pipeline.checkpoints import Checkpoints, resume
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, LoopStage, Output, Port, RankContext
from videoar.stages.train_domain.config import TrainDomainConfig

_MIN_OVER_CHANCE = 2.0
"""Features of a network that hardly tells its classes apart measure nothing."""


class TrainDomainStage(LoopStage[TrainDomainConfig]):
    """Labelled clips of the train split to a classifier; the val split measures its accuracy.

    The split is by source group, as ingest makes it: no group has clips on both sides.
    """

    name = "train_domain"
    consumes: ClassVar[Mapping[str, Port]] = {"clips": Port(CLIPS)}
    produces = MODELS
    config_type = TrainDomainConfig

    def run(self, inputs: Inputs, context: StageContext, rank: RankContext) -> Output | None:
        """Train to the last step, from the newest checkpoint if there is one.

        Raises:
            ConfigError: fewer than two classes, or a split without labelled clips.
            GateError: the accuracy on the val split is below twice that of guessing.
        """
        from videoar.stages.train_domain.worker import TrainDomainWorker, clip_rows

        train, val = clip_rows(inputs["clips"])
        classes = _classes(train, val)
        worker = TrainDomainWorker(self.config, context.store, train, val, classes)
        resume(rank, worker.trainer.load)
        with Checkpoints(rank) as checkpoints:
            while (step := worker.trainer.step) < self.config.steps:
                metrics, curve = worker.train_step(), worker.trainer.history
                rank.report(step + 1, self.config.steps, metrics, curve)
                if (step + 1) % self.config.checkpoint_every == 0:
                    checkpoints.save(step + 1, worker.trainer.save)
        accuracy = worker.accuracy()
        # of always guessing the most frequent class
        chance = Counter(row["label"] for row in val).most_common(1)[0][1] / len(val)
        if accuracy < _MIN_OVER_CHANCE * chance:
            what = f"accuracy {accuracy:.2f} on {len(val)} val clips, guessing has {chance:.2f}"
            hint = f"at least {_MIN_OVER_CHANCE:g} x is needed: more clips or steps"
            raise GateError("train_domain", what, hint)
        return worker.publish(accuracy, chance)


def _classes(train: Sequence[Row], val: Sequence[Row]) -> tuple[str, ...]:
    """Return the classes of the train split.

    Raises:
        ConfigError: there are fewer than two, or no clip of the val split has one of them.
    """
    classes = tuple(sorted({row["label"] for row in train}))
    if len(classes) < 2:
        raise ConfigError("train_domain", f"labels of the train split: {list(classes)}, need two")
    if unknown := sorted({row["label"] for row in val} - set(classes)):
        raise ConfigError("train_domain", f"labels of the val split only: {unknown}")
    if not val:
        raise ConfigError("train_domain", "no labelled clip in the val split")
    return classes
