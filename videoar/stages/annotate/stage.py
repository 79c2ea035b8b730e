"""Annotate clips with a pretrained model: captions, embeddings.

Both stages show a few frames of each clip to a model from a local folder and write its result into
the row; they differ in the model and in the columns. They share a package because stages must not
import each other, and everything that decides the output must be in the code closure of the stage.
"""

from collections.abc import Mapping
from typing import ClassVar

from videoar.contracts.names import CLIPS
from videoar.model.pretrained.model_folder import pretrained_fingerprint
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Port
from videoar.stages.annotate.config import C, CaptionConfig, EmbedConfig


class AnnotateStage(MapStage[C]):
    """One file of clips to the same clips with some columns filled."""

    consumes: ClassVar[Mapping[str, Port]] = {"clips": Port(CLIPS)}
    produces = CLIPS
    primary = "clips"

    def tools(self) -> Mapping[str, str]:
        """Return the digest of the model and the version of the library that runs it."""
        return pretrained_fingerprint(self.config.model)


class CaptionStage(AnnotateStage[CaptionConfig]):
    """Write captions with a vision-language model."""

    name = "caption"
    config_type = CaptionConfig

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Load the captioner once for all shards of a worker."""
        from videoar.stages.annotate.worker import CaptionWorker  # loads torch

        return CaptionWorker(self.config, context)


class EmbedStage(AnnotateStage[EmbedConfig]):
    """Write one unit vector per clip that describes its content.

    Perceptual hashes find copies; the dot product of two of these vectors finds clips of the same
    thing.
    """

    name = "embed"
    config_type = EmbedConfig

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Load the encoder once for all shards of a worker."""
        from videoar.stages.annotate.worker import EmbedWorker  # loads torch

        return EmbedWorker(self.config, context)
