"""Options of `train_domain`, for the stage and its worker."""

from typing import Self

from pydantic import model_validator

from videoar.pipeline.stage import StageConfig, runtime
from videoar.training.config import ClassifierTraining


class TrainDomainConfig(StageConfig, ClassifierTraining):
    """Options of `train_domain`."""

    cache_mib: int = runtime(2048, ge=0)
    """Memory in MiB for decoded clips."""
    checkpoint_every: int = runtime(200, ge=1)
    """Steps between checkpoints."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.resources.max_workers > 1:
            raise ValueError("the network is small: train_domain runs as one worker")
        return self
