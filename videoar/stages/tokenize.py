"""Clips to tokens: latents as a tokenizer gives them, and the bits that follow from them.

Latents are rounded to fp16 first and bits derive from the rounded values, so that whoever reads the
latents later finds the stored bits again, bit by bit.

Clips of several sizes and lengths are told apart by their rows: equal ones are encoded together and
fill a file of their own, whose footer names the scales of its grid. Clips are decoded ahead, and
two shards run at once, so that the accelerator does not wait for a file to be read or written.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
from pydantic import Field

from videoar.contracts.contract import load_contract
from videoar.contracts.names import CLIPS, MODELS, REJECTS, TOKENS
from videoar.core.crash_points import crash_point
from videoar.core.errors import ContractError
from videoar.core.types import Row
from videoar.pipeline.context import StageContext
from videoar.pipeline.device_queue import DeviceQueue, DeviceUsage
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Output, Port, StageConfig
from videoar.storage.layout import LAYOUT_VERSION

if TYPE_CHECKING:
    import numpy as np

    from videoar.model.tokenizer.network import VideoTokenizer

_JUDGED_CLIPS = 4  # chosen: enough to tell a wrong tokenizer, cheap beside a shard
_CARRIED = ("clip_id", "source_id", "split", "label", "caption", "rate_fps")
Shape = tuple[int, int, int]
"""Frames, height and width of a clip."""


class TokenizeConfig(StageConfig):
    """Options of `tokenize`."""

    batch_clips: int = Field(default=8, ge=1)
    """Clips that are encoded together: memory against speed. It counts for the fingerprint, because
    convolutions of other batch sizes may round the last bit differently."""
    min_psnr_db: float = Field(default=0.0, ge=0)
    """Lowest mean PSNR of a round trip of the first clips of each shape that a worker meets: no
    tokens are written by a tokenizer that cannot show them. It counts for the fingerprint, because
    tokens that passed a lower gate have not passed this one: another value encodes again."""


class TokenizeStage(MapStage[TokenizeConfig]):
    """One file of clips to a file of tokens for each shape among them."""

    name = "tokenize"
    consumes: ClassVar[Mapping[str, Port]] = {
        "clips": Port(CLIPS),
        "tokenizer": Port(MODELS),
    }
    produces = TOKENS
    config_type = TokenizeConfig
    primary = "clips"
    overlap = 2

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Load the tokenizer."""
        import torch

        from videoar.model.device import device
        from videoar.training.model_store import load_tokenizer

        torch.set_num_threads(max(1, int(self.config.resources.cpus)))
        net, digest = load_tokenizer(inputs["tokenizer"], context.store, device())
        return _Tokenizer(net, digest, context, self.config)


class _Tokenizer:
    """The opened stage. Calls share the network in turns, and the lanes that read clips."""

    def __init__(
        self, net: "VideoTokenizer", digest: str, context: StageContext, config: TokenizeConfig
    ) -> None:
        from videoar.media.clip_prefetch import ClipPrefetcher

        self._net, self._digest, self._batch_clips = net, digest, config.batch_clips
        self._read = ClipPrefetcher(
            context.store.objects,
            threads=max(1, int(config.resources.cpus) - 1),
            open_slots=context.open_reader_slots,
        )
        self._device = DeviceQueue()
        self._min_psnr_db = config.min_psnr_db
        self._judged: set[Shape] = set()

    def __call__(self, batch: pa.Table) -> Sequence[Output]:
        import numpy as np

        usage = self._device.start_shard()
        by_shape: dict[Shape, list[Row]] = {}
        for row in batch.to_pylist():
            by_shape.setdefault(_shape(row), []).append(row)
        made: dict[Shape, list[Row]] = {shape: [] for shape in by_shape}
        refused: list[Row] = []
        home = self._batches(by_shape)
        rows = itertools.chain.from_iterable(by_shape.values())
        read = self._read.each(rows, TokenizeStage.name, refused, 2 * self._batch_clips)
        for _, pairs in itertools.groupby(read, lambda pair: home[pair[0]["clip_id"]]):
            group, clips = zip(*map(_checked, pairs), strict=True)
            self._judge(group, clips, usage)
            made[_shape(group[0])] += self._tokens(np.stack(clips), group, usage)
        rejects = pa.Table.from_pylist(refused, load_contract(REJECTS).arrow_schema)
        first, *others = (self._table(shape, tokens) for shape, tokens in made.items())
        return [Output(first, rejects, usage.metrics()), *map(Output, others)]

    def stop(self) -> None:
        """End the calls that wait for the network."""
        self._device.stop()

    def _batches(self, by_shape: Mapping[Shape, list[Row]]) -> dict[str, int]:
        """Return clip to batch, decided before any is read: a refused clip moves no other."""
        numbers = itertools.count()
        return {
            row["clip_id"]: number
            for rows in by_shape.values()
            for start, number in zip(range(0, len(rows), self._batch_clips), numbers, strict=False)
            for row in rows[start : start + self._batch_clips]
        }

    def _judge(
        self, rows: Sequence[Row], clips: Sequence["np.ndarray"], usage: DeviceUsage
    ) -> None:
        """Let the first clips of a shape go through tokens and back before any are written.

        Raises:
            GateError: they lose more than they may.
            ContractError: the shape does not fit, latents or pixels are not finite, or the bits do
                not rebuild what the stored latents are quantized to.
        """
        from videoar.evaluation.reconstruction import require_min_psnr

        shape = _shape(rows[0])
        if shape in self._judged:
            return
        where, judged = "tokenize.min_psnr_db", clips[:_JUDGED_CLIPS]
        with usage.acquire(items=0):
            require_min_psnr(self._net, judged, self._min_psnr_db, where, map(_name, rows))
        self._judged.add(shape)

    def _table(self, shape: Shape, tokens: list[Row]) -> pa.Table:
        from videoar.evaluation.reconstruction import for_clip_shape

        table = pa.Table.from_pylist(tokens, schema=load_contract(TOKENS).arrow_schema)
        return table.replace_schema_metadata({
            "tokenizer_digest": self._digest,
            "scales": json.dumps(for_clip_shape(self._net, *shape).cfg.scales),
            "interpolation": "area down, bilinear up",
            "layout_version": LAYOUT_VERSION,
        })

    def _tokens(
        self, frames_NTHWC: "np.ndarray", rows: Sequence[Row], usage: DeviceUsage
    ) -> Iterator[Row]:
        import torch

        from videoar.evaluation.reconstruction import require_finite
        from videoar.model.tokenizer.network import video_from_frames
        from videoar.storage.token_codec import checksum, pack_bits

        net = self._net.for_size(*frames_NTHWC.shape[2:4])
        with usage.acquire(len(rows)), torch.no_grad():
            frames = torch.from_numpy(frames_NTHWC).to(next(net.parameters()).device)
            latent_NKTHW = net.encode(video_from_frames(frames)).half().cpu()
        for row, latent_KTHW in zip(rows, latent_NKTHW, strict=True):
            require_finite(latent_KTHW, "latents", _name(row))
        # always on the CPU: another device may round a residual near 0 to the other side, and
        # whoever derives the bits from stored latents must find them again
        scale_bits = [bits.numpy() for bits in net.quantizer.encode(latent_NKTHW)]
        latent_NTKHW = latent_NKTHW.transpose(1, 2).contiguous().numpy()
        crash_point("batch-encoded")
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


def _shape(row: Row) -> Shape:
    return row["num_frames"], row["height_px"], row["width_px"]


def _name(row: Row) -> str:
    return f"clip {row['clip_id']}"


def _checked(pair: tuple[Row, "np.ndarray"]) -> tuple[Row, "np.ndarray"]:
    row, frames = pair
    if frames.shape != (*_shape(row), 3):
        what = f"has frames of {frames.shape}, its row says {_shape(row)}"
        raise ContractError(_name(row), what, "ingest its source again")
    return pair
