"""Clips to tokens: latents as a tokenizer gives them, and the bits that follow from them.

Latents are rounded to fp16 first and bits derive from the rounded values, so that whoever reads the
latents later finds the stored bits again, bit by bit.
"""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from videoar.contracts.contract import load_contract
from videoar.core.errors import ContractError
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Output, Port, StageConfig
from videoar.storage.store import Store

if TYPE_CHECKING:
    import numpy as np

    from videoar.model.tokenizer import VideoTokenizer

LAYOUT_VERSION = 1
_CARRIED = ("clip_id", "source_id", "split", "label", "caption", "rate_fps")
Row = dict[str, Any]


class TokenizeConfig(StageConfig):
    """Options of `tokenize`."""

    batch_clips: int = Field(default=8, ge=1)
    """Clips that are encoded together: memory against speed. It counts for the fingerprint, because
    convolutions of other batch sizes may round the last bit differently."""


class TokenizeStage(MapStage[TokenizeConfig]):
    """One file of clips to one file of tokens; all clips have the same shape."""

    name = "tokenize"
    consumes: ClassVar[Mapping[str, Port]] = {
        "clips": Port("clips@1"),
        "tokenizer": Port("models@1"),
    }
    produces = "tokens@1"
    config_type = TokenizeConfig
    primary = "clips"

    def open(self, inputs: Inputs, store: Store) -> Mapper:
        """Load the tokenizer."""
        import torch

        from videoar.training.checkpoint import load_tokenizer

        torch.set_num_threads(max(1, int(self.config.resources.cpus)))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        net, digest = load_tokenizer(inputs["tokenizer"], store, device)
        return _Tokenizer(net, digest, store, self.config.batch_clips)


class _Tokenizer:
    def __init__(self, net: "VideoTokenizer", digest: str, store: Store, batch_clips: int) -> None:
        from videoar.media.clips import ClipReader

        self._net, self._batch_clips = net, batch_clips
        self._read = ClipReader(store.objects)
        self._facts = {
            "tokenizer_digest": digest,
            "scales": json.dumps(net.cfg.scales),
            "interpolation": "area down, bilinear up",
            "layout_version": str(LAYOUT_VERSION),
        }

    def __call__(self, batch: pa.Table) -> Output:
        refused: list[Row] = []
        groups = self._decoded(batch.to_pylist(), refused)
        made = [row for frames, group in groups for row in self._tokens(frames, group)]
        table = pa.Table.from_pylist(made, schema=load_contract("tokens@1").arrow_schema)
        rejects = pa.Table.from_pylist(refused, load_contract("rejects@1").arrow_schema)
        return Output(table.replace_schema_metadata(self._facts), rejects)

    def _decoded(
        self, rows: list[Row], refused: list[Row]
    ) -> Iterator[tuple["np.ndarray", list[Row]]]:
        import numpy as np

        for start in range(0, len(rows), self._batch_clips):
            given = rows[start : start + self._batch_clips]
            read = list(self._read.each(given, TokenizeStage.name, refused))
            shapes = sorted({clip.shape for _, clip in read})
            if len(shapes) > 1:
                what = f"clips of {shapes}"
                raise ContractError("tokenize", what, "give all clips one size and length")
            if read:
                yield np.stack([clip for _, clip in read]), [row for row, _ in read]

    def _tokens(self, frames_NTHWC: "np.ndarray", rows: list[Row]) -> Iterator[Row]:
        import torch

        from videoar.model.tokenizer import video_from_frames
        from videoar.storage.token_codec import checksum, pack_bits

        with torch.no_grad():
            frames = torch.from_numpy(frames_NTHWC).to(next(self._net.parameters()).device)
            latent_NKTHW = self._net.encode(video_from_frames(frames)).half()
            scale_bits = [bits.cpu().numpy() for bits in self._net.quantizer.encode(latent_NKTHW)]
        latent_NTKHW = latent_NKTHW.transpose(1, 2).contiguous().cpu().numpy()
        t, k, h, w = latent_NTKHW.shape[1:]
        for i, row in enumerate(rows):
            bits = pack_bits([of_scale[i] for of_scale in scale_bits])
            latent = latent_NTKHW[i].astype("<f2").tobytes()
            yield {
                **{name: row[name] for name in _CARRIED},
                "start_s": row["span_start_us"] / 1e6,
                "duration_s": (row["num_frames"] - 1) / row["rate_fps"],
                "t": t, "h": h, "w": w, "k": k,
                "bits": bits, "latent": latent,
                "bits_xxh3": checksum(bits), "latent_xxh3": checksum(latent),
            }  # fmt: skip
