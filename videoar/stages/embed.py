"""Clips to clips with an embedding: one unit vector each, of what their frames show.

Perceptual hashes find copies; the dot product of two of these vectors finds clips of one thing.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
from pydantic import Field

from videoar.contracts.contract import load_contract
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Output, Port, StageConfig, runtime
from videoar.storage.store import Store

if TYPE_CHECKING:
    from videoar.model.pretrained import ImageEncoder


class EmbedConfig(StageConfig):
    """Options of `embed`."""

    model: str = runtime(...)
    """Folder, on every worker, of an image encoder as transformers saves it: CLIP, SigLIP, DINOv2
    and their like, weights as safetensors. Its content counts for the fingerprint, its place does
    not."""
    num_frames: int = Field(default=4, ge=1)
    """Frames of a clip whose vectors are averaged, evenly spread."""
    batch_clips: int = Field(default=8, ge=1)
    """Clips that are encoded together: memory against speed. It counts for the fingerprint, because
    other batch sizes may round the last bit differently."""


class EmbedStage(MapStage[EmbedConfig]):
    """One file of clips to the same clips with embeddings."""

    name = "embed"
    consumes: ClassVar[Mapping[str, Port]] = {"clips": Port("clips@1")}
    produces = "clips@1"
    config_type = EmbedConfig
    primary = "clips"

    def tools(self) -> Mapping[str, str]:
        """Return the digest of the model and the version of the library that runs it."""
        from videoar.model.model_folder import identity

        return identity(self.config.model)

    def open(self, inputs: Inputs, store: Store) -> Mapper:  # noqa: ARG002 - rows come by file
        """Load the model."""
        import torch

        from videoar.model.model_folder import folder_digest
        from videoar.model.pretrained import ImageEncoder

        cfg = self.config
        torch.set_num_threads(max(1, int(cfg.resources.cpus)))
        return _Mapper(ImageEncoder(cfg.model), folder_digest(cfg.model), cfg, store)


class _Mapper:
    def __init__(
        self, encoder: "ImageEncoder", digest: str, config: EmbedConfig, store: Store
    ) -> None:
        self._encoder, self._digest, self._config, self._store = encoder, digest, config, store

    def __call__(self, batch: pa.Table) -> Output:
        from videoar.media.decode import decode_clip
        from videoar.model.pretrained import pick_stills

        rows = batch.to_pylist()
        for start in range(0, len(rows), self._config.batch_clips):
            group = rows[start : start + self._config.batch_clips]
            videos = (self._store.objects.get(row["video_key"]) for row in group)
            stills = [pick_stills(decode_clip(video), self._config.num_frames) for video in videos]
            for row, vector in zip(group, self._encoder(stills), strict=True):
                row |= {"embedding": vector.tolist(), "embedding_model": self._digest}
        return Output(pa.Table.from_pylist(rows, load_contract("clips@1").arrow_schema))
