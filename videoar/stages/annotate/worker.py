"""The workers of `caption` and `embed`: read clips, run the model in batches, fill columns."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Generic

import numpy as np
import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.contracts.names import CLIPS, REJECTS
from videoar.core.types import Row
from videoar.media.clip_reader import ClipReader
from videoar.model.device import limit_threads
from videoar.model.pretrained.model_folder import model_digest
from videoar.model.pretrained.networks import Captioner, load_encoder, pick_stills
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Output
from videoar.stages.annotate.config import C, CaptionConfig, EmbedConfig

_SOURCE = "model"  # value of `caption_source`


class AnnotateWorker(ABC, Generic[C]):
    """Runs a model on the clips of a shard."""

    stage_name: ClassVar[str]
    metric: ClassVar[str]
    """Prefix of the counters `_kept`, `_made` and `_empty`."""

    def __init__(self, config: C, context: StageContext) -> None:
        # by default torch takes all cores, and a machine runs several workers
        limit_threads(config.resources.cpus)
        self.config = config
        self._read = ClipReader(context.store.objects)

    def __call__(self, batch: pa.Table) -> Output:
        """Return the rows with their new columns, and rejects of clips that cannot be read."""
        cfg = self.config
        rows = batch.to_pylist()
        selected = [row for row in rows if self.selects(row)]
        counts = Counter(kept=len(rows) - len(selected), made=0, empty=0)
        rejected: list[Row] = []
        for start in range(0, len(selected), cfg.batch_clips):
            candidates = selected[start : start + cfg.batch_clips]
            readable = list(self._read.each(candidates, self.stage_name, rejected))
            stills = [pick_stills(frames, cfg.num_frames) for _, frames in readable]
            annotations = self.annotate(stills) if readable else []
            # an empty annotation keeps the row as it is, and is counted
            for (row, _), columns in zip(readable, annotations, strict=True):
                counts["made" if columns else "empty"] += 1
                row.update(columns)
        # rows whose clip cannot be read leave the output: a later stage could not read them either
        unreadable = {row["item_id"] for row in rejected}
        kept = [row for row in rows if row["clip_id"] not in unreadable]
        return Output(
            pa.Table.from_pylist(kept, load_contract(CLIPS).arrow_schema),
            pa.Table.from_pylist(rejected, load_contract(REJECTS).arrow_schema),
            {f"{self.metric}_{outcome}": float(count) for outcome, count in counts.items()},
        )

    def selects(self, row: Row) -> bool:
        """Return whether the model runs on this clip."""
        return True

    @abstractmethod
    def annotate(self, clips: Sequence[np.ndarray]) -> list[Row]:
        """Return the new columns of each clip, given its stills; none leaves the row unchanged."""


class CaptionWorker(AnnotateWorker[CaptionConfig]):
    """Writes captions; a clip for which the model returns no text keeps the caption it has."""

    stage_name = "caption"
    metric = "captions"

    def __init__(self, config: CaptionConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self._captioner = Captioner(config.model, config.prompt, config.max_new_tokens)

    def selects(self, row: Row) -> bool:
        """Select clips without a caption, or all clips."""
        return not (self.config.only_missing and row["caption"])

    def annotate(self, clips: Sequence[np.ndarray]) -> list[Row]:
        """Return caption and source of each clip."""
        captions = self._captioner(clips)
        return [{"caption": text, "caption_source": _SOURCE} if text else {} for text in captions]


class EmbedWorker(AnnotateWorker[EmbedConfig]):
    """Writes embeddings; the vectors of a clip's frames are averaged."""

    stage_name = "embed"
    metric = "embeddings"

    def __init__(self, config: EmbedConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self._encoder, self._digest = load_encoder(config.model), model_digest(config.model)

    def annotate(self, clips: Sequence[np.ndarray]) -> list[Row]:
        """Return the unit vector of each clip and the digest of the model."""
        # the digest beside each vector: `filter` refuses to compare vectors of several models
        vectors = self._encoder(clips).tolist()
        return [{"embedding": vector, "embedding_model": self._digest} for vector in vectors]
