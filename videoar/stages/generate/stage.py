"""Generate clips from prompts: a model to samples."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from videoar.contracts.names import CLIPS, MODELS, SAMPLES
from videoar.core.errors import ConfigError
from videoar.core.ids import digest_json, seed_from, sha256_hex
from videoar.core.types import Row
from videoar.model.pretrained.model_folder import pretrained_fingerprint
from videoar.model.transformer.config import GuidanceName
from videoar.pipeline.context import StageContext
from videoar.pipeline.local_path import LocalPath, path_or
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Port, Shard, StageConfig, runtime
from videoar.training.prompts import PromptTemplates

CAPTIONS = "captions"


class GenerateConfig(StageConfig, PromptTemplates):
    """Options of `generate`; its templates must be those that the model was trained with."""

    prompts: Annotated[str, path_or(CAPTIONS)] = runtime(CAPTIONS)
    """`captions` uses distinct captions of the reference, or its classes where a clip has no other
    caption; anything else is the path of a text file with one caption per line."""
    num_prompts: int = Field(default=16, ge=1)
    """Maximum number of prompts."""
    num_per_prompt: int = Field(default=1, ge=1)
    """Minimum number of samples of each prompt."""
    min_samples: int = Field(default=0, ge=0)
    """Minimum number of samples in all: fewer prompts get more samples each, with other seeds."""
    num_frames: int = Field(default=17, ge=1)
    """Pixel frames of a sample, 1 + a multiple of the tokenizer's time stride."""
    guidance: GuidanceName | float = "t2v"
    """`ucf`, `t2v` or a constant strength."""
    temperature: float = Field(default=1.0, gt=0)
    """Of every bit; below 1 the likelier value is drawn more often."""
    seed: int = Field(default=0, ge=0)
    """Seed of the choice of captions and of every sample's own seed."""
    text_encoder: LocalPath = runtime("")
    """Folder, on every worker, of the text encoder that the model was trained with; empty for a
    model with the embedded one. Its content enters the fingerprint."""
    crf: int = Field(default=12, ge=0, le=51)
    """Quality of the stored MP4 (H.264 constant rate factor); smaller is better."""
    shard_samples: int = runtime(16, ge=1)
    """Samples of a shard, generated as one batch."""


class GenerateStage(MapStage[GenerateConfig]):
    """Prompts to MP4 files and rows of `samples@1`."""

    name = "generate"
    consumes: ClassVar[Mapping[str, Port]] = {
        "model": Port(MODELS),
        "tokenizer": Port(MODELS),
        "reference": Port(CLIPS),
    }
    produces = SAMPLES
    config_type = GenerateConfig
    placement = "serve"
    primary = "reference"

    def tools(self) -> Mapping[str, str]:
        """Return digests of prompt file and text encoder, and versions of what encodes videos."""
        from videoar.media.transcode import tool_versions

        config, tools = self.config, dict(tool_versions())
        if config.prompts != CAPTIONS:
            tools["prompts"] = sha256_hex(self._file().read_bytes())
        if config.text_encoder:
            found = pretrained_fingerprint(config.text_encoder)
            tools |= {f"text_encoder_{name}": value for name, value in found.items()}
        return tools

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        """Divide the requested samples into batches."""
        rows = list(self._requested(inputs))
        size = self.config.shard_samples
        chunks = [tuple(rows[i : i + size]) for i in range(0, len(rows), size)]
        return [Shard(i, digest_json(chunk), rows=chunk) for i, chunk in enumerate(chunks)]

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Load the model, its tokenizer and its text encoder."""
        from videoar.stages.generate.worker import GenerateWorker

        config = self.config
        return GenerateWorker(
            inputs,
            context.store,
            config.resources.cpus,
            num_frames=config.num_frames,
            sampler={"guidance": config.guidance, "temperature": config.temperature},
            crf=config.crf,
            text_encoder=config.text_encoder,
        )

    def _requested(self, inputs: Inputs) -> Iterator[Row]:
        prompts = self._prompts(inputs)
        per_prompt = math.ceil(self.config.min_samples / len(prompts))
        for prompt, label in prompts:
            for index in range(max(self.config.num_per_prompt, per_prompt)):
                # no number of shard or position: more prompts or other shards leave each sample as
                # it is
                seed = seed_from("sample", self.config.seed, prompt, index)
                yield {"prompt": prompt, "label": label, "index": index, "seed": seed}

    def _prompts(self, inputs: Inputs) -> Sequence[tuple[str, str | None]]:
        """Return prompts, each with the label of a clip that has this prompt."""
        if self.config.prompts != CAPTIONS:
            lines = self._file().read_text().splitlines()
            # distinct: equal prompts have equal seeds, so they would give the same samples again
            texts = dict.fromkeys(line.strip() for line in lines if line.strip())
            if not texts:
                raise ConfigError(
                    self.config.prompts, "holds no prompt", "write one prompt per line"
                )
            return [(self.config.prompt(text), None) for text in texts][: self.config.num_prompts]
        table = inputs["reference"].table(["caption", "label"])
        clips = zip(table["caption"].to_pylist(), table["label"].to_pylist(), strict=True)
        pairs = {(self.config.prompt(caption, label), label) for caption, label in clips}
        # sorted: which clip's label a shared prompt gets must not depend on the order of files
        labels = dict(sorted(pairs, key=str))
        prompts = sorted(
            (prompt for prompt in labels if prompt),
            # A hash per prompt: new clips add prompts without reordering the others.
            key=lambda prompt: seed_from("prompt", self.config.seed, prompt),
        )
        if not prompts:
            hint = "give a file with prompts"
            raise ConfigError("generate.prompts", "the reference has no captions or classes", hint)
        return [(prompt, labels[prompt]) for prompt in prompts[: self.config.num_prompts]]

    def _file(self) -> Path:
        path = Path(self.config.prompts)
        if not path.is_file():
            hint = f"`{CAPTIONS}` uses those of the reference"
            raise ConfigError(str(path), "no such file with prompts", hint)
        return path
