"""Options of `generate`, for the stage and its worker."""

from typing import Annotated

from pydantic import Field

from videoar.pipeline.local_path import LocalPath, path_or
from videoar.pipeline.stage import StageConfig, runtime
from videoar.training.prompts import PromptTemplates
from videoar.training.sampler_options import SamplerOptions

CAPTIONS = "captions"


class GenerateConfig(StageConfig, PromptTemplates, SamplerOptions):
    """Options of `generate`; its templates must be those that the model was trained with."""

    prompts: Annotated[str, path_or(CAPTIONS)] = runtime(CAPTIONS)
    """`captions` uses the port `prompts`, or else distinct captions of the reference, or its
    classes where a clip has no other caption; anything else is the path of a file: a prompt per
    line, or JSON (`.jsonl`) with the columns of `prompts@1`."""
    num_prompts: int | None = Field(default=None, ge=1)
    """Maximum number of prompts; by default 16 of a reference, and all of others."""
    num_per_prompt: int = Field(default=1, ge=1)
    """Minimum number of samples of each prompt."""
    min_samples: int = Field(default=0, ge=0)
    """Minimum number of samples in all: fewer prompts get more samples each, with other seeds."""
    num_frames: int = Field(default=17, ge=1, le=100_000)
    """Pixel frames of a sample, 1 + a multiple of the tokenizer's time stride. Samples that are
    longer than the clips of the training have a sliding window of that length."""
    seconds: float | None = Field(default=None, gt=0, le=600)
    """Duration in place of `num_frames`, rounded to the next possible number of frames."""
    seed: int = Field(default=0, ge=0)
    """Seed of the choice of captions and of every sample's own seed."""
    text_encoder: LocalPath = runtime("")
    """Folder, on every worker, of the text encoder that the model was trained with; empty for a
    model with the embedded one. Its content enters the fingerprint."""
    crf: int = Field(default=12, ge=0, le=51)
    """Quality of the stored MP4 (H.264 constant rate factor); smaller is better."""
    shard_samples: int = runtime(16, ge=1)
    """Samples of a shard, generated as one batch."""
