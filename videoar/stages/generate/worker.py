"""Worker of `generate`: rows of prompts and seeds in, stored videos out."""

from typing import Any

import pyarrow as pa

from videoar.core.errors import ConfigError
from videoar.core.ids import canonical_json, digest_json
from videoar.core.types import Row
from videoar.media.transcode import encode_clips
from videoar.model.device import device, limit_threads
from videoar.model.pretrained.text_encoder import attach_text_encoder
from videoar.model.tokenizer.network import frames_from_video
from videoar.model.transformer.sampling import sample
from videoar.pipeline.stage import Inputs, Output
from videoar.storage.store import Store
from videoar.training.model_store import load_tokenizer, load_transformer


class GenerateWorker:
    """Generates one video per row.

    Args:
        inputs: snapshots of the ports `model`, `tokenizer` and `reference`.
        store: where models are read and videos are written.
        cpus: cores of this worker.
        num_frames: pixel frames of a sample.
        sampler: `guidance` and `temperature` of `sample`.
        crf: H.264 constant rate factor of the stored MP4.
        text_encoder: folder of the model's text encoder; empty for the embedded one.

    Raises:
        ConfigError: the model was trained on another tokenizer or text encoder, or `num_frames`
            does not fit it.
    """

    def __init__(  # noqa: PLR0913 - options of the stage; all are keyword-only
        self,
        inputs: Inputs,
        store: Store,
        cpus: float,
        *,
        num_frames: int,
        sampler: dict[str, Any],
        crf: int,
        text_encoder: str,
    ) -> None:
        limit_threads(cpus)
        self._store, self._sampler, self._crf = store, sampler, crf
        self._model, model_digest = load_transformer(inputs["model"], store, device())
        self._tokenizer, tokenizer_digest = load_tokenizer(inputs["tokenizer"], store, device())
        # another tokenizer of the same shape would decode without an error, to noise
        (trained_on,) = inputs["model"].table(["tokenizer_digest"])["tokenizer_digest"].to_pylist()
        if trained_on != tokenizer_digest:
            what = f"was trained on tokenizer {trained_on}, not {tokenizer_digest}"
            raise ConfigError(inputs["model"].id, what)
        attach_text_encoder(self._model, text_encoder)
        try:
            self._model.layout(num_frames)
        except ValueError as error:
            raise ConfigError("generate.num_frames", str(error)) from error
        self._columns = {
            "model_digest": model_digest,
            "tokenizer_digest": tokenizer_digest,
            "num_frames": num_frames,
            "rate_fps": inputs["reference"].table(["rate_fps"])["rate_fps"][0].as_py(),
        }
        """Columns that have the same value in every row."""

    def __call__(self, batch: pa.Table) -> Output:
        """Generate one batch."""
        rows = batch.to_pylist()
        result = sample(
            self._model,
            self._tokenizer,
            [row["prompt"] for row in rows],
            self._columns["num_frames"],
            seeds=[row["seed"] for row in rows],
            **self._sampler,
        )
        frames_BTHWC = frames_from_video(result.video_B3THW).cpu().numpy()
        videos = encode_clips(list(frames_BTHWC), self._columns["rate_fps"], self._crf)
        height, width = frames_BTHWC.shape[2:4]
        shape = {"steps": result.steps, "height_px": height, "width_px": width}
        samples = [
            {**self._row(row, video), **shape} for row, video in zip(rows, videos, strict=True)
        ]
        return Output(pa.Table.from_pylist(samples))

    def _row(self, row: Row, video: bytes) -> Row:
        ref = self._store.put_object(video, ".mp4")
        # What the sample follows from, not its bytes: a shard that runs twice has the same ids even
        # if the device rounds differently.
        identity = [self._columns, self._sampler, row["prompt"], row["seed"]]
        return {
            **row,
            **self._columns,
            "sample_id": digest_json(identity)[:32],
            "sampler_json": canonical_json(self._sampler),
            "video_key": ref.key,
            "video_sha256": ref.sha256,
            "video_size_bytes": ref.size_bytes,
        }
