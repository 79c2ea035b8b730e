"""Decoded clips by number, kept in memory up to a limit.

A damaged file among thousands must not end a training of days, so an unreadable clip is replaced by
the next one of its size: the same clip on every rank, and the same again in a resumed run. A
missing disk must end it, so the number of replaced clips is limited.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from videoar.core.errors import MediaError, StageError, TransientStorageError
from videoar.core.types import Row

logger = logging.getLogger(__name__)
_MAX_SKIPPED_FRACTION = 0.01  # chosen: a damaged file passes, a missing disk does not


class ClipCache:
    """Clips that are decoded at first access and kept while there is room.

    A clip whose store or source does not respond is not skipped: which clips train would then
    depend on the moment. The error is retryable.

    Args:
        read: returns frames_THWC, uint8, of a row (`media.clip_reader.ClipReader`).
        rows: of the clips; at least `clip_id`, `num_frames`, `height_px`, `width_px` and what
            `read` needs.
        cache_bytes: memory for decoded clips; 0 decodes at every access.

    Raises:
        StageError: on access: too many of the clips, or all of a size, cannot be read.
        TransientStorageError: on access: a source did not respond; a later attempt may succeed.
    """

    def __init__(
        self, read: Callable[[Row], np.ndarray], rows: Sequence[Row], cache_bytes: int = 0
    ) -> None:
        self._read, self._rows, self._free_bytes = read, rows, cache_bytes
        self._cached: dict[int, np.ndarray] = {}
        self._skipped: set[int] = set()
        # One may always be skipped, but never the last one.
        self._max_skipped = min(max(1, int(_MAX_SKIPPED_FRACTION * len(rows))), len(rows) - 1)

    @property
    def sizes_px(self) -> list[tuple[int, int]]:
        """Height and width of each clip."""
        return [size_px(row) for row in self._rows]

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the readable clips, each once."""
        clips = map(self._frames, range(len(self)))
        return (frames_THWC for frames_THWC in clips if frames_THWC is not None)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return frames_THWC of a clip, uint8; of the next one of its size if it is unreadable."""
        size, count = size_px(self._rows[index]), len(self._rows)
        for number in ((index + step) % count for step in range(count)):
            if size_px(self._rows[number]) == size:
                frames_THWC = self._frames(number)
                if frames_THWC is not None:
                    return frames_THWC
        raise self._too_many(f"all of {size} px")

    def _frames(self, index: int) -> np.ndarray | None:
        if index in self._cached:
            return self._cached[index]
        if index in self._skipped:
            return None
        try:
            frames_THWC = self._decode(self._rows[index])
        except MediaError as error:
            if error.retryable:
                what, hint = f"{error.code}: {error.what}", "check that its source is reachable"
                raise TransientStorageError(error.where, what, hint) from error
            self._skip(index, error)
            return None
        if frames_THWC.nbytes <= self._free_bytes:
            self._cached[index] = frames_THWC
            self._free_bytes -= frames_THWC.nbytes
        return frames_THWC

    def _decode(self, row: Row) -> np.ndarray:
        frames_THWC = self._read(row)
        expected, actual = (row["num_frames"], *size_px(row)), frames_THWC.shape[:3]
        if actual != expected:
            what = f"has shape {actual}, but {expected} in its row"
            raise MediaError(row["clip_id"], "CORRUPT", what)
        return frames_THWC

    def _skip(self, index: int, error: MediaError) -> None:
        clip_id = self._rows[index]["clip_id"]
        logger.warning("clip %s cannot be read, the next one replaces it: %s", clip_id, error)
        self._skipped.add(index)
        if len(self._skipped) > self._max_skipped:
            raise self._too_many(f"more than {self._max_skipped} of {len(self)}") from error

    def _too_many(self, what: str) -> StageError:
        ids = ", ".join(self._rows[index]["clip_id"] for index in sorted(self._skipped))
        hint = "ingest their sources again"
        return StageError("train_tokenizer", f"{what} clips cannot be read: {ids}", hint)


def size_px(row: Row) -> tuple[int, int]:
    """Return height and width of a row of `clips@1`."""
    return row["height_px"], row["width_px"]
