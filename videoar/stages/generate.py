"""Generate clips from prompts: a model to samples."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from videoar.contracts.names import CLIPS, MODELS, SAMPLES
from videoar.core.errors import ConfigError
from videoar.core.ids import canonical_json, digest_json, seed_from, sha256_hex
from videoar.core.types import Row
from videoar.pipeline.context import StageContext
from videoar.pipeline.local_path import path_or
from videoar.pipeline.stage import Inputs, MapStage, Output, Port, Shard, StageConfig, runtime
from videoar.storage.store import Store

if TYPE_CHECKING:
    from videoar.model import VideoAR, VideoTokenizer

CAPTIONS = "captions"


class GenerateConfig(StageConfig):
    """Options of `generate`."""

    prompts: Annotated[str, path_or(CAPTIONS)] = runtime(CAPTIONS)
    """`captions` takes distinct captions of the reference; anything else is a text file's path."""
    num_prompts: int = Field(default=16, ge=1)
    """Prompts, at most."""
    num_per_prompt: int = Field(default=1, ge=1)
    """Samples of each prompt, at least."""
    min_samples: int = Field(default=0, ge=0)
    """Samples in all, at least: fewer prompts are drawn more often, with new seeds."""
    num_frames: int = Field(default=17, ge=1)
    """Pixel frames of a sample, 1 + a multiple of the tokenizer's time stride."""
    guidance: str | float = "t2v"
    """`ucf`, `t2v` or a constant strength."""
    temperature: float = Field(default=1.0, gt=0)
    """Below 1 bits become surer."""
    seed: int = Field(default=0, ge=0)
    """Decides the choice of captions and the seed of every sample."""
    crf: int = Field(default=12, ge=0, le=51)
    """Quality of the stored MP4; smaller is better."""
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
        """Return the digest of the prompt file and the encoder's versions."""
        from videoar.media.transcode import tool_versions

        if self.config.prompts == CAPTIONS:
            return tool_versions()
        return {**tool_versions(), "prompts": sha256_hex(self._file().read_bytes())}

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        """Cut the samples that are wanted into batches."""
        rows = list(self._wanted(inputs))
        size = self.config.shard_samples
        chunks = [tuple(rows[i : i + size]) for i in range(0, len(rows), size)]
        return [Shard(i, digest_json(chunk), rows=chunk) for i, chunk in enumerate(chunks)]

    def open(self, inputs: Inputs, context: StageContext) -> "Generator":
        """Load the model and its tokenizer.

        Raises:
            ContractError: the model was trained on another tokenizer.
        """
        import torch

        from videoar.model.device import device
        from videoar.training.model_store import load_tokenizer, load_transformer

        torch.set_num_threads(max(1, int(self.config.resources.cpus)))
        model, model_digest = load_transformer(inputs["model"], context.store, device())
        tokenizer, tokenizer_digest = load_tokenizer(inputs["tokenizer"], context.store, device())
        (trained_on,) = inputs["model"].table(["tokenizer_digest"])["tokenizer_digest"].to_pylist()
        if trained_on != tokenizer_digest:
            what = f"was trained on tokenizer {trained_on}, not {tokenizer_digest}"
            raise ConfigError(inputs["model"].id, what)
        rate_fps = inputs["reference"].table(["rate_fps"])["rate_fps"][0].as_py()
        constant = {
            "model_digest": model_digest,
            "tokenizer_digest": tokenizer_digest,
            "num_frames": self.config.num_frames,
            "rate_fps": rate_fps,
        }
        return Generator(model, tokenizer, context.store, self.config, constant)

    def _wanted(self, inputs: Inputs) -> Iterator[Row]:
        prompts = self._prompts(inputs)
        each = max(self.config.num_per_prompt, math.ceil(self.config.min_samples / len(prompts)))
        for prompt, label in prompts:
            for index in range(each):
                seed = seed_from("sample", self.config.seed, prompt, index)
                yield {"prompt": prompt, "label": label, "index": index, "seed": seed}

    def _prompts(self, inputs: Inputs) -> Sequence[tuple[str, str | None]]:
        """Return prompts with the label of a clip that has this caption."""
        if self.config.prompts != CAPTIONS:
            lines = self._file().read_text().splitlines()
            texts = dict.fromkeys(line.strip() for line in lines if line.strip())
            if not texts:
                raise ConfigError(self.config.prompts, "holds no prompt", "one prompt a line")
            return [(text, None) for text in texts][: self.config.num_prompts]
        clips = inputs["reference"].table(["caption", "label"]).to_pydict()
        labels = dict(sorted(zip(clips["caption"], clips["label"], strict=True), key=str))
        captions = sorted(
            (caption for caption in labels if caption),
            key=lambda caption: seed_from("prompt", self.config.seed, caption),
        )
        if not captions:
            hint = "give a file with prompts"
            raise ConfigError("generate.prompts", "the reference has no captions", hint)
        return [(caption, labels[caption]) for caption in captions[: self.config.num_prompts]]

    def _file(self) -> Path:
        path = Path(self.config.prompts)
        if not path.is_file():
            hint = f"`{CAPTIONS}` takes those of the reference"
            raise ConfigError(str(path), "no such file with prompts", hint)
        return path


class Generator:
    """The opened stage: rows of prompts and seeds in, stored videos out."""

    def __init__(
        self,
        model: "VideoAR",
        tokenizer: "VideoTokenizer",
        store: Store,
        config: GenerateConfig,
        constant: Row,
    ) -> None:
        self.model, self.tokenizer, self.store = model, tokenizer, store
        self.config, self.constant = config, constant
        self.sampler = {"guidance": config.guidance, "temperature": config.temperature}

    def __call__(self, batch: pa.Table) -> Output:
        """Generate one batch."""
        from videoar.media.transcode import encode_clips
        from videoar.model import sample
        from videoar.model.tokenizer.network import frames_from_video

        rows = batch.to_pylist()
        video_B3THW, steps = sample(
            self.model,
            self.tokenizer,
            [row["prompt"] for row in rows],
            self.config.num_frames,
            guidance=self.config.guidance,
            temperature=self.config.temperature,
            seeds=[row["seed"] for row in rows],
        )
        frames_BTHWC = frames_from_video(video_B3THW).cpu().numpy()
        videos = encode_clips(list(frames_BTHWC), self.constant["rate_fps"], self.config.crf)
        height, width = frames_BTHWC.shape[2:4]
        shape = {"steps": steps, "height_px": height, "width_px": width}
        made = [{**self._row(*pair), **shape} for pair in zip(rows, videos, strict=True)]
        return Output(pa.Table.from_pylist(made))

    def _row(self, row: Row, video: bytes) -> Row:
        ref = self.store.put_object(video, ".mp4")
        identity = [self.constant, self.sampler, row["prompt"], row["seed"]]
        return {
            **row,
            **self.constant,
            "sample_id": digest_json(identity)[:32],
            "sampler_json": canonical_json(self.sampler),
            "video_key": ref.key,
            "video_sha256": ref.sha256,
            "video_size_bytes": ref.size_bytes,
        }
