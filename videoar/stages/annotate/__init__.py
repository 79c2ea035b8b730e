"""Annotate clips with a pretrained model: captions, embeddings.

Both stages show a few frames of each clip to a model from a local folder and write its result into
the row; they differ in the model and in the columns. They share a package because stages must not
import each other, and everything that decides the output must be in the code closure of the stage.
"""

from collections.abc import Mapping
from typing import ClassVar, TypeVar

from pydantic import Field

from videoar.contracts.names import CLIPS
from videoar.model.pretrained.model_folder import pretrained_fingerprint
from videoar.pipeline.context import StageContext
from videoar.pipeline.local_path import LocalPath
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Port, StageConfig, runtime


class AnnotateConfig(StageConfig):
    """The model, and how much of a clip it sees."""

    model: LocalPath = runtime(...)
    """Folder, on every worker, of the model as transformers saves it (config, processor, weights as
    safetensors). Its content enters the fingerprint, its path does not."""
    num_frames: int = Field(default=4, ge=1)
    """Frames of a clip that the model sees, evenly spaced."""
    batch_clips: int = Field(ge=1)
    """Clips per batch: memory against speed. It enters the fingerprint, because padding and other
    batch sizes may round the last bit differently."""


C = TypeVar("C", bound=AnnotateConfig)


class AnnotateStage(MapStage[C]):
    """One file of clips to the same clips with some columns filled."""

    consumes: ClassVar[Mapping[str, Port]] = {"clips": Port(CLIPS)}
    produces = CLIPS
    primary = "clips"

    def tools(self) -> Mapping[str, str]:
        """Return the digest of the model and the version of the library that runs it."""
        return pretrained_fingerprint(self.config.model)


class CaptionConfig(AnnotateConfig):
    """Options of `caption`; its model is a vision-language model."""

    batch_clips: int = Field(default=4, ge=1)
    """Clips per batch: memory against speed. It enters the fingerprint, because padding and other
    batch sizes may round the last bit differently."""
    prompt: str = "Describe this video in one sentence."
    """Question to the model; for a model without a chat template, the beginning of its sentence."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Largest number of tokens of a caption."""
    only_missing: bool = True
    """Keep existing captions; false replaces them all. A caption that a person wrote is worth more
    than a generated one; `caption_source` tells the two apart permanently."""


class CaptionStage(AnnotateStage[CaptionConfig]):
    """Write captions with a vision-language model."""

    name = "caption"
    config_type = CaptionConfig

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Load the captioner once for all shards of a worker."""
        from videoar.stages.annotate.worker import CaptionWorker  # loads torch

        return CaptionWorker(self.config, context)


class EmbedConfig(AnnotateConfig):
    """Options of `embed`; its model is an image encoder: CLIP, SigLIP, DINOv2 or similar."""

    batch_clips: int = Field(default=8, ge=1)
    """Clips per batch: memory against speed. It enters the fingerprint, because padding and other
    batch sizes may round the last bit differently."""


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
