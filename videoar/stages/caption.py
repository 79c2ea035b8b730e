"""Clips to captioned clips: a vision-language model writes where nobody has written.

What people wrote counts more than what a model sees, so the default leaves every caption alone that
is there; `caption_source` tells the two apart for good.
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from videoar.contracts.contract import load_contract
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Output, Port, StageConfig, runtime
from videoar.storage.store import Store

if TYPE_CHECKING:
    from videoar.model.pretrained import Captioner

_SOURCE = "model"
Row = dict[str, Any]


class CaptionConfig(StageConfig):
    """Options of `caption`."""

    model: str = runtime(...)
    """Folder, on every worker, of a vision-language model as transformers saves it (config,
    processor, weights as safetensors). Its content counts for the fingerprint, its place does not.
    """
    prompt: str = "Describe this video in one sentence."
    """What the model is asked; for a model without conversations, how its sentence begins."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Length at which a caption is cut."""
    num_frames: int = Field(default=4, ge=1)
    """Frames of a clip that the model sees, evenly spread."""
    batch_clips: int = Field(default=4, ge=1)
    """Clips that are captioned together: memory against speed. It counts for the fingerprint,
    because padding and other batch sizes may round the last bit differently."""
    only_missing: bool = True
    """Leave captions alone that are there; false replaces them all."""


class CaptionStage(MapStage[CaptionConfig]):
    """One file of clips to the same clips with captions."""

    name = "caption"
    consumes: ClassVar[Mapping[str, Port]] = {"clips": Port("clips@1")}
    produces = "clips@1"
    config_type = CaptionConfig
    primary = "clips"

    def tools(self) -> Mapping[str, str]:
        """Return the digest of the model and the version of the library that runs it."""
        from videoar.model.model_folder import identity

        return identity(self.config.model)

    def open(self, inputs: Inputs, store: Store) -> Mapper:  # noqa: ARG002 - rows come by file
        """Load the model."""
        import torch

        from videoar.model.pretrained import Captioner

        cfg = self.config
        torch.set_num_threads(max(1, int(cfg.resources.cpus)))
        return _Mapper(Captioner(cfg.model, cfg.prompt, cfg.max_new_tokens), cfg, store)


class _Mapper:
    def __init__(self, captioner: "Captioner", config: CaptionConfig, store: Store) -> None:
        self._captioner, self._config, self._store = captioner, config, store

    def __call__(self, batch: pa.Table) -> Output:
        rows = batch.to_pylist()
        wanted = [row for row in rows if not (self._config.only_missing and row["caption"])]
        counts = Counter(captions_kept=len(rows) - len(wanted), captions_made=0, captions_empty=0)
        for start in range(0, len(wanted), self._config.batch_clips):
            counts.update(self._fill(wanted[start : start + self._config.batch_clips]))
        table = pa.Table.from_pylist(rows, load_contract("clips@1").arrow_schema)
        return Output(table, metrics={name: float(count) for name, count in counts.items()})

    def _fill(self, rows: list[Row]) -> Counter[str]:
        """Write captions into rows; a row about which the model says nothing stays as it is."""
        from videoar.media.decode import decode_clip
        from videoar.model.pretrained import pick_stills

        videos = (self._store.objects.get(row["video_key"]) for row in rows)
        stills = [pick_stills(decode_clip(video), self._config.num_frames) for video in videos]
        counts: Counter[str] = Counter()
        for row, text in zip(rows, self._captioner(stills), strict=True):
            counts["captions_made" if text else "captions_empty"] += 1
            if text:
                row |= {"caption": text, "caption_source": _SOURCE}
        return counts
