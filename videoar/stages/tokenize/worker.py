"""Worker of `tokenize`: reads clips ahead, encodes batches of equal shape, packs tokens.

Latents are rounded to fp16 first and the bits are computed from the rounded values, so that a
reader who computes bits from stored latents gets the stored bits, exactly.

Clips of several sizes and lengths are grouped by their rows: those of one shape are encoded
together and fill a file of their own, whose footer holds the scales of its grid.

Shape suffixes: N clips of a batch, T frames, H W height and width, C channels, K bits.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch

from videoar.contracts.contract import load_contract
from videoar.contracts.names import REJECTS, TOKENS
from videoar.core.crash_points import crash_point
from videoar.core.errors import ContractError
from videoar.core.types import Row
from videoar.evaluation.reconstruction import for_clip_shape, require_finite, require_min_psnr
from videoar.media.clip_prefetch import ClipPrefetcher
from videoar.model.device import device, limit_threads
from videoar.model.tokenizer.network import video_from_frames
from videoar.pipeline.context import StageContext
from videoar.pipeline.device_queue import DeviceQueue, DeviceUsage
from videoar.pipeline.stage import Output
from videoar.storage.layout import LAYOUT_VERSION
from videoar.storage.snapshot import Snapshot
from videoar.storage.token_codec import checksum, pack_bits
from videoar.training.model_store import load_tokenizer

_TESTED_CLIPS = 4  # chosen: enough to detect a wrong tokenizer, cheap beside a shard
_COPIED = ("clip_id", "source_id", "split", "label", "caption", "rate_fps")
Shape = tuple[int, int, int]
"""Frames, height and width of a clip."""


class TokenizeWorker:
    """Encodes shards; concurrent calls share the network and the clip readers.

    Args:
        tokenizer: snapshot of the model.
        context: store, and clip readers of the engine.
        cpus: cores of this worker; all but one read clips.
        batch_clips: clips that are encoded together.
        min_psnr_db: minimum mean PSNR of the first clips of each shape.
    """

    def __init__(
        self,
        tokenizer: Snapshot,
        context: StageContext,
        cpus: float,
        *,
        batch_clips: int,
        min_psnr_db: float,
    ) -> None:
        limit_threads(cpus)
        self._net, self._digest = load_tokenizer(tokenizer, context.store, device())
        self._batch_clips, self._min_psnr_db = batch_clips, min_psnr_db
        self._clips = ClipPrefetcher(
            context.store.objects,
            threads=max(1, int(cpus) - 1),
            open_slots=context.open_reader_slots,
        )
        self._device = DeviceQueue()
        self._tested: set[Shape] = set()

    def __call__(self, batch: pa.Table) -> Sequence[Output]:
        """Return the tokens of a shard's clips, one output per shape."""
        usage = self._device.start_shard()
        by_shape: dict[Shape, list[Row]] = {}
        for row in batch.to_pylist():
            by_shape.setdefault(_shape(row), []).append(row)
        tokens: dict[Shape, list[Row]] = {shape: [] for shape in by_shape}
        rejected: list[Row] = []
        batch_of = self._batches(by_shape)
        rows = itertools.chain.from_iterable(by_shape.values())
        # Two batches ahead: one is complete when the device becomes free, the next is being read.
        pairs = self._clips.each(rows, "tokenize", rejected, 2 * self._batch_clips)
        # groupby joins neighbours: pairs come in the order of the rows, and batches are ranges of
        # it
        for _, group in itertools.groupby(pairs, lambda pair: batch_of[pair[0]["clip_id"]]):
            group_rows, clips = zip(*map(_require_row_shape, group), strict=True)
            self._require_min_psnr(group_rows, clips, usage)
            tokens[_shape(group_rows[0])] += self._encode(np.stack(clips), group_rows, usage)
        rejects = pa.Table.from_pylist(rejected, load_contract(REJECTS).arrow_schema)
        # rejects and use of the device belong to the shard: with one output, because outputs are
        # summed
        first, *others = (self._table(shape, of_shape) for shape, of_shape in tokens.items())
        return [Output(first, rejects, usage.metrics()), *map(Output, others)]

    def stop(self) -> None:
        """Make calls that wait for the device raise."""
        self._device.stop()

    def _batches(self, by_shape: Mapping[Shape, list[Row]]) -> dict[str, int]:
        """Return the batch of each clip.

        It is decided before any clip is read: a rejected clip leaves its batch smaller and moves no
        other clip, so the rounding of the others does not depend on it.
        """
        numbers = itertools.count()
        return {
            row["clip_id"]: number
            for rows in by_shape.values()
            for start, number in zip(range(0, len(rows), self._batch_clips), numbers, strict=False)
            for row in rows[start : start + self._batch_clips]
        }

    def _require_min_psnr(
        self, rows: Sequence[Row], clips: Sequence[np.ndarray], usage: DeviceUsage
    ) -> None:
        """Test the first clips of a shape by a round trip before any token of it is written.

        Raises:
            GateError: their PSNR is below the minimum.
            ContractError: the shape does not fit, latents or pixels are not finite, or the bits do
                not rebuild what the stored latents are quantized to.
        """
        shape = _shape(rows[0])
        if shape in self._tested:
            return
        where, tested = "tokenize.min_psnr_db", clips[:_TESTED_CLIPS]
        # work of the device, but not yet a clip of the output
        with usage.acquire(items=0):
            require_min_psnr(self._net, tested, self._min_psnr_db, where, map(_name, rows))
        self._tested.add(shape)

    def _encode(
        self, frames_NTHWC: np.ndarray, rows: Sequence[Row], usage: DeviceUsage
    ) -> Iterator[Row]:
        """Yield the rows of `tokens@1` of some clips of one shape."""
        net = self._net.for_size(*frames_NTHWC.shape[2:4])
        with usage.acquire(len(rows)), torch.no_grad():
            # moved as uint8: a quarter of the bytes of float32
            frames = torch.from_numpy(frames_NTHWC).to(next(net.parameters()).device)
            latent_NKTHW = net.encode(video_from_frames(frames)).half().cpu()
        for row, latent_KTHW in zip(rows, latent_NKTHW, strict=True):
            require_finite(latent_KTHW, "latents", _name(row))
        # Always on the CPU: another device may round a residual near 0 to the other side, and a
        # reader who computes the bits from stored latents must get the same ones.
        scale_bits = [bits.numpy() for bits in net.quantizer.encode(latent_NKTHW)]
        latent_NTKHW = latent_NKTHW.transpose(1, 2).contiguous().numpy()
        crash_point("batch-encoded")
        t, k, h, w = latent_NTKHW.shape[1:]
        for i, row in enumerate(rows):
            bits = pack_bits([of_scale[i] for of_scale in scale_bits])
            latent = latent_NTKHW[i].astype("<f2").tobytes()
            yield {
                **{name: row[name] for name in _COPIED},
                "start_s": row["span_start_us"] / 1e6,
                # from the first to the last frame
                "duration_s": (row["num_frames"] - 1) / row["rate_fps"],
                "t": t, "h": h, "w": w, "k": k,
                "bits": bits, "latent": latent,
                "bits_xxh3": checksum(bits), "latent_xxh3": checksum(latent),
            }  # fmt: skip

    def _table(self, shape: Shape, tokens: list[Row]) -> pa.Table:
        """Return the rows of one shape; the footer of the file holds what reading them requires."""
        table = pa.Table.from_pylist(tokens, schema=load_contract(TOKENS).arrow_schema)
        return table.replace_schema_metadata({
            "tokenizer_digest": self._digest,
            "scales": json.dumps(for_clip_shape(self._net, *shape).cfg.scales),
            "interpolation": "area down, bilinear up",
            "layout_version": LAYOUT_VERSION,
        })


def _shape(row: Row) -> Shape:
    return row["num_frames"], row["height_px"], row["width_px"]


def _name(row: Row) -> str:
    return f"clip {row['clip_id']}"


def _require_row_shape(pair: tuple[Row, np.ndarray]) -> tuple[Row, np.ndarray]:
    row, frames = pair
    if frames.shape != (*_shape(row), 3):
        what = f"has frames of shape {frames.shape}, but {_shape(row)} in its row"
        raise ContractError(_name(row), what, "ingest its source again")
    return pair
