"""Generate clips from prompts: a model to samples."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar

from videoar.contracts.names import CLIPS, EVALSETS, MODELS, PROMPTS, SAMPLES
from videoar.core.errors import ConfigError
from videoar.core.ids import digest_json, sha256_hex
from videoar.core.types import Row
from videoar.evaluation.evalset import clip_rows, prompt_rows
from videoar.model.pretrained.model_folder import pretrained_fingerprint
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Mapper, MapStage, PackedRows, Port, Shard
from videoar.stages.generate.config import CAPTIONS, GenerateConfig
from videoar.training.prompts import read_prompts, stored_prompts


class GenerateStage(MapStage[GenerateConfig]):
    """Prompts to MP4 files and rows of `samples@1`."""

    name = "generate"
    consumes: ClassVar[Mapping[str, Port]] = {
        "model": Port(MODELS),
        "tokenizer": Port(MODELS, optional=True),
        "prompts": Port(PROMPTS, optional=True),
        "reference": Port(CLIPS, optional=True),
        "evalset": Port(EVALSETS, optional=True),
    }
    produces = SAMPLES
    config_type = GenerateConfig
    placement = "serve"
    overlap = 2  # one batch runs its passes while the other is decoded, encoded and uploaded
    primary = "prompts"

    @property
    def sharded(self) -> Collection[str]:
        """Ports with prompts: their rows are in the shards."""
        return {"prompts", "reference", "evalset"}

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
        rate_fps, rows = _rate_fps(inputs), self._requested(inputs)
        chunks = iter(lambda: list(islice(rows, self.config.shard_samples)), [])
        return [
            Shard(i, digest_json([rate_fps, chunk]), rows=PackedRows(chunk))
            for i, chunk in enumerate(chunks)
        ]

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Load the model, its tokenizer and its text encoder."""
        from videoar.stages.generate.worker import GenerateWorker

        return GenerateWorker(self.config, inputs, context.store, _rate_fps(inputs))

    def _requested(self, inputs: Inputs) -> Iterator[Row]:
        if "evalset" in inputs:
            return self.config.samples(self._fixed_prompts(inputs), self.config.seed, 1)
        prompts = islice(self._prompts(inputs), self.config.num_prompts)
        # so many prompts need no second sample each
        first = list(islice(prompts, max(1, self.config.min_samples)))
        per_prompt = math.ceil(self.config.min_samples / len(first))
        return self.config.samples(
            chain(first, prompts), self.config.seed, max(self.config.num_per_prompt, per_prompt)
        )

    def _prompts(self, inputs: Inputs) -> Iterable[Row]:
        """Return rows of `prompts@1`, at least one."""
        if self.config.prompts != CAPTIONS:
            if "prompts" in inputs:
                what = "the stage has a port and a file of prompts"
                raise ConfigError("generate.prompts", what, "leave one out")
            return read_prompts(self._file().read_bytes(), self.config.prompts)
        if "prompts" in inputs:
            return stored_prompts(inputs["prompts"])
        if "reference" in inputs:
            config = self.config
            return config.prompts_of(inputs["reference"], config.seed, config.num_prompts)
        hint = "give it a port `evalset`, `prompts` or `reference`, or a file"
        raise ConfigError("generate.prompts", "the stage has no prompts", hint)

    def _fixed_prompts(self, inputs: Inputs) -> list[Row]:
        """Return the prompts of the evaluation set, at least one.

        Raises:
            ConfigError: there are other prompts as well, or the options would change the set.
        """
        others = [port for port in ("prompts", "reference") if port in inputs]
        options = [] if self.config.prompts == CAPTIONS else ["prompts"]
        options += [] if self.config.num_prompts is None else ["num_prompts"]
        if others or options:
            what = f"the evaluation set fixes the prompts, but there is {(others + options)[0]}"
            raise ConfigError("generate", what, "leave it out")
        rows = prompt_rows(inputs["evalset"])
        if not rows:
            raise ConfigError(inputs["evalset"].id, "holds no prompt", "make a set with prompts")
        return rows

    def _file(self) -> Path:
        path = Path(self.config.prompts)
        if not path.is_file():
            hint = f"`{CAPTIONS}` uses those of the reference"
            raise ConfigError(str(path), "no such file with prompts", hint)
        return path


def _rate_fps(inputs: Inputs) -> float:
    """Return the frame rate of the real clips, or else that of the model's own clips."""
    if "evalset" in inputs and (clips := clip_rows(inputs["evalset"])):
        return float(clips[0]["rate_fps"])
    port = "reference" if "reference" in inputs else "model"
    if rate := inputs[port].table(["rate_fps"])["rate_fps"][0].as_py():
        return float(rate)
    what = "does not say the frame rate of its clips"
    raise ConfigError(inputs["model"].id, what, "give `generate` a port `reference`")
