"""The clips among which duplicates are sought, and which of two copies is the better one."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from videoar.contracts.names import CHROMA_EVERY
from videoar.core.ids import seed_from

COLUMNS = (
    "clip_id", "source_id", "src_width_px", "src_height_px", "decoded_frames",
    "decode_errors", "num_frames", "phash", "frame_hashes", "chroma",
    "detail", "codec",
)  # fmt: skip
"""Columns of `clips@1` that are needed, beside `embedding` for semantic duplicates."""


@dataclass(frozen=True)
class Candidates:
    """Clips among which duplicates are sought, in columns: N clips, S = 2 scales, T frames."""

    rows: np.ndarray
    """Structured: `number` of the row, ids as numbers, and what ranks a clip."""
    hashes: np.ndarray
    """uint64 [N, S, T]; 0 where there is none."""
    chroma: np.ndarray
    """uint8 [N, F, 8], of every fourth of the T frames; 0 where it is unknown."""

    @classmethod
    def read(cls, numbers: np.ndarray, table: pa.Table) -> "Candidates":
        """Read rows of `clips@1` with at least `COLUMNS`."""
        rows = np.zeros(table.num_rows, RANKED)
        rows["number"] = numbers
        for name in ("clip_id", "source_id"):
            rows[name] = [seed_from(value) for value in table[name].to_pylist()]
        sides = (table[name].to_numpy() for name in ("src_width_px", "src_height_px"))
        rows["pixels"] = np.multiply(*(side.astype(np.int64) for side in sides))
        for name in ("decoded_frames", "decode_errors"):
            rows[name] = table[name].to_numpy()
        # dithering to 256 colours looks like detail; a copy of any other kind is richer
        is_dithered = np.array(table["codec"].to_pylist()) == "gif"
        rows["detail"] = np.where(is_dithered, 0, table["detail"].fill_null(0).to_numpy())
        lists = (table[name].to_pylist() for name in ("frame_hashes", "phash", "num_frames"))
        per_clip = [_by_frame(*of_clip) for of_clip in zip(*lists, strict=True)]
        longest = max((len(of_clip) // 2 for of_clip in per_clip), default=0)
        hashes = np.zeros((len(per_clip), 2, longest), np.int64)
        for into, of_clip in zip(hashes, per_clip, strict=True):
            into[:, : len(of_clip) // 2] = np.reshape(of_clip, (2, -1))
        chroma = np.zeros((len(hashes), frames_with_chroma(longest), 8), np.uint8)
        for colours, of_clip in zip(chroma, table["chroma"].to_pylist(), strict=True):
            if of_clip is not None:
                colours[: len(of_clip) // 8] = np.reshape(of_clip, (-1, 8))
        return cls(rows, hashes.view(np.uint64), chroma)

    @classmethod
    def concatenate(cls, parts: list["Candidates"]) -> "Candidates":
        """Join the parts and empty the list: their memory is freed as it is copied."""
        rows = np.concatenate([part.rows for part in parts])
        longest = max(part.hashes.shape[2] for part in parts)
        hashes = np.zeros((len(rows), 2, longest), np.uint64)
        chroma = np.zeros((len(rows), frames_with_chroma(longest), 8), np.uint8)
        start = 0
        while parts:
            part = parts.pop(0)
            end = start + len(part.rows)
            hashes[start:end, :, : part.hashes.shape[2]] = part.hashes
            chroma[start:end, : part.chroma.shape[1]] = part.chroma
            start = end
        return cls(rows, hashes, chroma)

    def order(self, preferred: Collection[int] = ()) -> np.ndarray:
        """Return the positions of the clips from the best to the worst.

        First `preferred` ones; then by the mean detail of the source, because of two copies of a
        film all clips of one must be kept; pixels, decoded frames, errors; then ids, and of equal
        clips the first row.

        Args:
            preferred: `clip_id`s, as numbers.
        """
        rows = self.rows
        _, source, clips = np.unique(rows["source_id"], return_inverse=True, return_counts=True)
        detail = (np.bincount(source, rows["detail"]) / clips)[source]
        is_other = ~np.isin(rows["clip_id"], np.fromiter(preferred, np.uint64))
        ids = (rows["number"], rows["clip_id"], rows["source_id"])
        quality = (rows["decode_errors"], -rows["decoded_frames"], -rows["pixels"], -detail)
        return np.lexsort((*ids, *quality, is_other))


RANKED = np.dtype([
    ("number", np.int64),
    ("clip_id", np.uint64),
    ("source_id", np.uint64),
    ("detail", np.float32),
    ("pixels", np.int64),
    ("decoded_frames", np.int64),
    ("decode_errors", np.int32),
])
"""A clip by its row number, its ids as numbers, and what ranks it."""


def frames_with_chroma(hashed: int) -> int:
    """Return how many of the hashed frames have colours."""
    return -(-hashed // CHROMA_EVERY)


def _by_frame(hashes: list[int] | None, phash: list[int], num_frames: int) -> list[int]:
    """Return the hashes of a clip; for one of an earlier version its three, at their frames."""
    if hashes is not None:
        return hashes
    places = [0] * (2 * min(num_frames, 32))
    last = len(places) // 2 - 1
    for place, value in zip((0, (last + 1) // 2, last), phash, strict=True):
        places[place] = value
    return places
