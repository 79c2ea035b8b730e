"""Worker of `generate`: rows of prompts and seeds in, stored videos out."""

import time

import pyarrow as pa

from videoar.core.errors import ConfigError
from videoar.model.device import device, limit_threads, synchronize
from videoar.model.pretrained.text_encoder import prepare_to_sample
from videoar.pipeline.device_queue import DeviceQueue
from videoar.pipeline.stage import Inputs, Output
from videoar.stages.generate.config import GenerateConfig
from videoar.storage.store import Store
from videoar.training.generation import VideoGenerator, frames_in
from videoar.training.model_store import find_tokenizer, load_tokenizer, load_transformer


class GenerateWorker:
    """Generates one video per row.

    Args:
        config: options of the stage.
        inputs: snapshots of the ports `model` and, if it is given, `tokenizer`.
        store: where models are read and videos are written.
        rate_fps: frame rate of the stored MP4.

    Raises:
        ConfigError: the model was trained on another tokenizer or text encoder, its tokenizer is
            not in the store, or the number of frames or of temperatures does not fit it.
    """

    def __init__(
        self, config: GenerateConfig, inputs: Inputs, store: Store, rate_fps: float
    ) -> None:
        limit_threads(config.resources.cpus)
        self._store = store
        snapshot = inputs["model"]
        model, model_digest = load_transformer(snapshot, store, device())
        (row,) = snapshot.table(["tokenizer_digest", "num_frames"]).to_pylist()
        trained_on = row["tokenizer_digest"]
        given = inputs.get("tokenizer") or find_tokenizer(store, snapshot, trained_on)
        tokenizer, tokenizer_digest = load_tokenizer(given, store, device())
        # another tokenizer of the same shape would decode without an error, to noise
        if trained_on != tokenizer_digest:
            what = f"was trained on tokenizer {trained_on}, not {tokenizer_digest}"
            raise ConfigError(snapshot.id, what)
        prepare_to_sample(model, config.text_encoder)
        num_frames = config.num_frames
        if config.seconds is not None:
            num_frames = frames_in(config.seconds, rate_fps, model.cfg.time_stride)
        columns = {
            "model_digest": model_digest,
            "tokenizer_digest": tokenizer_digest,
            "num_frames": num_frames,
            "rate_fps": rate_fps,
        }
        self._generator = VideoGenerator(
            model,
            tokenizer,
            snapshot.id,
            columns,
            config,
            config.crf,
            trained_frames=row["num_frames"],
        ).checked()
        self._device = DeviceQueue()

    def __call__(self, batch: pa.Table) -> Output:
        """Generate one batch; decode, encode and upload it during the passes of the next one."""
        requested, usage = batch.to_pylist(), self._device.start_shard()
        with usage.acquire(len(requested)):
            latents = self._generator.latents(requested)
            synchronize()
        made = self._generator.files(requested, latents)
        start = time.monotonic()
        keys = [self._store.put_object(video, ".mp4").key for video in made.videos]
        rows = [{**row, "video_key": key} for row, key in zip(made.rows, keys, strict=True)]
        # in metrics, never in rows: equal samples are equal rows
        seconds = {**made.seconds, "upload_s": time.monotonic() - start}
        return Output(pa.Table.from_pylist(rows), metrics={**seconds, **usage.metrics()})

    def stop(self) -> None:
        """Make calls that wait for the device raise."""
        self._device.stop()
