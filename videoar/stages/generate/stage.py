"""Generate clips from prompts: a model to samples."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar

from videoar.contracts.names import CLIPS, MODELS, PROMPTS, SAMPLES
from videoar.core.errors import ConfigError
from videoar.core.ids import digest_json, seed_from, sha256_hex
from videoar.core.types import Row
from videoar.model.pretrained.model_folder import pretrained_fingerprint
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Mapper, MapStage, PackedRows, Port, Shard
from videoar.stages.generate.config import CAPTIONS, GenerateConfig
from videoar.storage.snapshot import Snapshot
from videoar.training.prompts import Prompt, read_prompts

_NUM_CAPTIONS = 16  # chosen: enough to look at
_ROWS_AT_ONCE = 4096


class GenerateStage(MapStage[GenerateConfig]):
    """Prompts to MP4 files and rows of `samples@1`."""

    name = "generate"
    consumes: ClassVar[Mapping[str, Port]] = {
        "model": Port(MODELS),
        "tokenizer": Port(MODELS, optional=True),
        "prompts": Port(PROMPTS, optional=True),
        "reference": Port(CLIPS, optional=True),
    }
    produces = SAMPLES
    config_type = GenerateConfig
    placement = "serve"
    overlap = 2  # one batch runs its passes while the other is decoded, encoded and uploaded
    primary = "prompts"

    @property
    def sharded(self) -> Collection[str]:
        """Ports with prompts: their rows are in the shards."""
        return {"prompts", "reference"}

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
            table = inputs["prompts"].table()
            if not table.num_rows:
                raise ConfigError(inputs["prompts"].id, "holds no prompt")
            return (row for batch in table.to_batches(_ROWS_AT_ONCE) for row in batch.to_pylist())
        if "reference" in inputs:
            return self._captions(inputs["reference"])
        hint = "give it a port `prompts` or `reference`, or a file"
        raise ConfigError("generate.prompts", "the stage has no prompts", hint)

    def _captions(self, reference: Snapshot) -> list[Row]:
        """Return a prompt per distinct text of the clips, each with the label of such a clip."""
        table = reference.table(["caption", "label"])
        clips = zip(table["caption"].to_pylist(), table["label"].to_pylist(), strict=True)
        texts = {(self.config.prompt(caption, label), label, caption) for caption, label in clips}
        # sorted: which clip's label a shared prompt gets must not depend on the order of files
        found = {text: (label, caption) for text, label, caption in sorted(texts, key=str) if text}
        if not found:
            hint = "give a file with prompts"
            raise ConfigError("generate.prompts", "the reference has no captions or classes", hint)
        # A hash per prompt: new clips add prompts without reordering the others.
        chosen = sorted(found, key=lambda text: seed_from("prompt", self.config.seed, text))
        pairs = [found[text] for text in chosen[: self.config.num_prompts or _NUM_CAPTIONS]]
        return [
            Prompt(prompt=caption or "", label=label).row("caption") for label, caption in pairs
        ]

    def _file(self) -> Path:
        path = Path(self.config.prompts)
        if not path.is_file():
            hint = f"`{CAPTIONS}` uses those of the reference"
            raise ConfigError(str(path), "no such file with prompts", hint)
        return path


def _rate_fps(inputs: Inputs) -> float:
    """Return the frame rate of the reference, or else that of the model's own clips."""
    port = "reference" if "reference" in inputs else "model"
    if rate := inputs[port].table(["rate_fps"])["rate_fps"][0].as_py():
        return float(rate)
    what = "does not say the frame rate of its clips"
    raise ConfigError(inputs["model"].id, what, "give `generate` a port `reference`")
