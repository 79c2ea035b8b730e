"""Clips to the same clips with what a pretrained model says of them: captions, embeddings.

Both stages show a few stills of each clip to a model from a local folder and write its answer into
the row; they differ in the model and in the columns. They live in one module, since stages do not
import each other and what decides the output has to be in the reach of the code's fingerprint.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypeVar

import pyarrow as pa
from pydantic import Field

from videoar.contracts.contract import load_contract
from videoar.contracts.names import CLIPS, REJECTS
from videoar.core.types import Row
from videoar.pipeline.context import StageContext
from videoar.pipeline.local_path import LocalPath
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Output, Port, StageConfig, runtime

if TYPE_CHECKING:
    import numpy as np

    from videoar.media.clip_reader import ClipReader

_SOURCE = "model"
Answer: TypeAlias = "Callable[[Sequence[np.ndarray]], list[Row]]"
"""Stills of some clips to the columns that each one gets; none where the model says nothing."""


class AnnotateConfig(StageConfig):
    """Which model sees how much."""

    model: LocalPath = runtime(...)
    """Folder, on every worker, of the model as transformers saves it (config, processor, weights as
    safetensors). Its content counts for the fingerprint, its place does not."""
    num_frames: int = Field(default=4, ge=1)
    """Frames of a clip that the model sees, evenly spread."""
    batch_clips: int = Field(ge=1)
    """Clips that the model sees together: memory against speed. It counts for the fingerprint,
    because padding and other batch sizes may round the last bit differently."""


A = TypeVar("A", bound=AnnotateConfig)


class AnnotateStage(MapStage[A]):
    """One file of clips to the same clips with some columns filled."""

    consumes: ClassVar[Mapping[str, Port]] = {"clips": Port(CLIPS)}
    produces = CLIPS
    primary = "clips"
    makes: ClassVar[str]
    """What is counted as kept, made and empty."""

    @abstractmethod
    def load(self) -> Answer:
        """Load the model."""

    def asks(self, row: Row) -> bool:
        """Say whether the model is asked about this clip."""
        return True

    def tools(self) -> Mapping[str, str]:
        """Return the digest of the model and the version of the library that runs it."""
        from videoar.model.pretrained.model_folder import pretrained_fingerprint

        return pretrained_fingerprint(self.config.model)

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Load the model once for all shards of a worker."""
        import torch

        from videoar.media.clip_reader import ClipReader

        torch.set_num_threads(max(1, int(self.config.resources.cpus)))
        return partial(self._annotate, self.load(), ClipReader(context.store.objects))

    def _annotate(self, answer: Answer, read: "ClipReader", batch: pa.Table) -> Output:
        from videoar.model.pretrained.networks import pick_stills

        cfg = self.config
        rows = batch.to_pylist()
        asked = [row for row in rows if self.asks(row)]
        counts = Counter(kept=len(rows) - len(asked), made=0, empty=0)
        refused: list[Row] = []
        for start in range(0, len(asked), cfg.batch_clips):
            group = list(read.each(asked[start : start + cfg.batch_clips], self.name, refused))
            stills = [pick_stills(frames, cfg.num_frames) for _, frames in group]
            answers = answer(stills) if group else []
            for (row, _), columns in zip(group, answers, strict=True):
                counts["made" if columns else "empty"] += 1
                row.update(columns)
        lost = {row["item_id"] for row in refused}
        kept = [row for row in rows if row["clip_id"] not in lost]
        return Output(
            pa.Table.from_pylist(kept, load_contract(self.produces).arrow_schema),
            pa.Table.from_pylist(refused, load_contract(REJECTS).arrow_schema),
            {f"{self.makes}_{fate}": float(count) for fate, count in counts.items()},
        )


class CaptionConfig(AnnotateConfig):
    """Options of `caption`; its model is a vision-language model."""

    batch_clips: int = Field(default=4, ge=1)
    """Clips that the model sees together: memory against speed. It counts for the fingerprint,
    because padding and other batch sizes may round the last bit differently."""
    prompt: str = "Describe this video in one sentence."
    """What the model is asked; for a model without conversations, how its sentence begins."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Length at which a caption is cut."""
    only_missing: bool = True
    """Leave captions alone that are there; false replaces them all. What people wrote counts more
    than what a model sees; `caption_source` tells the two apart for good."""


class CaptionStage(AnnotateStage[CaptionConfig]):
    """A vision-language model writes where nobody has written."""

    name = "caption"
    config_type = CaptionConfig
    makes = "captions"

    def load(self) -> Answer:
        """Load the captioner; a clip about which it says nothing keeps the caption it has."""
        from videoar.model.pretrained.networks import Captioner

        cfg = self.config
        captioner = Captioner(cfg.model, cfg.prompt, cfg.max_new_tokens)

        def answer(clips: "Sequence[np.ndarray]") -> list[Row]:
            texts = captioner(clips)
            return [{"caption": text, "caption_source": _SOURCE} if text else {} for text in texts]

        return answer

    def asks(self, row: Row) -> bool:
        """Ask where there is no caption, or everywhere."""
        return not (self.config.only_missing and row["caption"])


class EmbedConfig(AnnotateConfig):
    """Options of `embed`; its model is an image encoder: CLIP, SigLIP, DINOv2 and their like."""

    batch_clips: int = Field(default=8, ge=1)
    """Clips that the model sees together: memory against speed. It counts for the fingerprint,
    because padding and other batch sizes may round the last bit differently."""


class EmbedStage(AnnotateStage[EmbedConfig]):
    """One unit vector each, of what the frames show.

    Perceptual hashes find copies; the dot product of two of these vectors finds clips of one thing.
    """

    name = "embed"
    config_type = EmbedConfig
    makes = "embeddings"

    def load(self) -> Answer:
        """Load the encoder; the vectors of a clip's frames are averaged."""
        from videoar.model.pretrained.model_folder import folder_digest
        from videoar.model.pretrained.networks import ImageEncoder

        encoder, digest = ImageEncoder(self.config.model), folder_digest(self.config.model)

        def answer(clips: "Sequence[np.ndarray]") -> list[Row]:
            vectors = encoder(clips).tolist()
            return [{"embedding": vector, "embedding_model": digest} for vector in vectors]

        return answer
