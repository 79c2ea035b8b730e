"""Options of `caption` and `embed`, for the stages and their workers."""

from typing import Annotated, TypeVar

from pydantic import Field

from videoar.model.pretrained.model_folder import LITE0
from videoar.pipeline.local_path import LocalPath, path_or
from videoar.pipeline.stage import StageConfig, runtime


class AnnotateConfig(StageConfig):
    """The model, and the frames of a clip that it receives."""

    model: LocalPath = runtime(...)
    """Folder, on every worker, of the model as transformers saves it (config, processor, weights as
    safetensors). Its content enters the fingerprint, its path does not."""
    num_frames: int = Field(default=4, ge=1)
    """Frames of a clip passed to the model, evenly spaced."""
    batch_clips: int = Field(ge=1)
    """Clips per batch: memory against speed. It enters the fingerprint, because padding and other
    batch sizes may round the last bit differently."""


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
    than a generated one; `caption_source` records which one a caption is."""


class EmbedConfig(AnnotateConfig):
    """Options of `embed`; its model is an image encoder: CLIP, SigLIP, DINOv2 or similar."""

    model: Annotated[str, path_or(LITE0)] = runtime(LITE0)
    """`lite0`, EfficientNet-Lite0, which every installation has, or the folder, on every worker, of
    a model as transformers saves it. Its content enters the fingerprint, its path does not."""

    batch_clips: int = Field(default=8, ge=1)
    """Clips per batch: memory against speed. It enters the fingerprint, because padding and other
    batch sizes may round the last bit differently."""


C = TypeVar("C", bound=AnnotateConfig)
