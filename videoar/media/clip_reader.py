"""Frames of a clip, wherever they are: in the store as a small MP4, or still in their source.

A row with a `video_key` names an object of the store. A row without one is a reference: which
frames of which source, by presentation time. Those are read again from the source, in the same
killable child that first read it, and only while the source still has the SHA-256 that it had.
References keep a corpus from being stored twice; clips read them at the price of a seek.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videoar.core.errors import MediaError
from videoar.core.scratch import Scratch, sweep
from videoar.core.types import Row
from videoar.media.decode import decode_clip
from videoar.media.process import Limits
from videoar.media.reject_codes import RETRYABLE, exit_kind
from videoar.media.sandbox import SandboxedDecoder
from videoar.media.scan import ScanPlan
from videoar.storage.object_store import ObjectStore

COLUMNS = (
    "video_key",
    "source_id",
    "source_uri",
    "start_pts",
    "frame_times_us",
    "height_px",
    "width_px",
)
"""Columns of `clips@1` that reading takes."""
_LIMITS = Limits(wall_s=300.0, cpu_s=300)
_NO_LIMIT = {"max_duration_s": 1e9, "max_pixels": 1 << 40}  # ingest has let it in


class ClipReader:
    """Reads clips one by one; keeps the last source at hand, since its clips come together."""

    def __init__(self, objects: ObjectStore, limits: Limits = _LIMITS) -> None:
        self._objects = objects
        self._scanner = SandboxedDecoder(ScanPlan(), limits)
        self._folder: Scratch | None = None
        sweep()
        self._source: tuple[str, Path] | None = None

    def __call__(self, row: Mapping[str, Any]) -> np.ndarray:
        """Return frames_THWC, uint8 RGB, of a row of `clips@1` (at least `COLUMNS`).

        Raises:
            MediaError: the clip or its source is damaged, or the source is another one by now.
            StorageError: the clip's object is gone.
        """
        if row["video_key"] is not None:
            return decode_clip(self._objects.get(row["video_key"]))
        plan = ScanPlan(
            size_px=((row["height_px"], row["width_px"]),),
            start_pts=row["start_pts"],
            take_us=tuple(row["frame_times_us"]),
            **_NO_LIMIT,
        )
        (excerpt,) = self._scanner.run(self._path(row["source_uri"], row["source_id"]), plan)
        return excerpt.frames_THWC  # type: ignore[union-attr] # with `take_us` nothing else comes

    def each(
        self, rows: Iterable[Row], stage: str, refused: list[Row]
    ) -> Iterator[tuple[Row, np.ndarray]]:
        """Yield the rows that can be read, with their frames.

        Every other row goes to `refused`, as a row of `rejects@1`: a source that has changed or
        gone costs its own clips, not the work on all others.
        """
        return sort_out(((row, partial(self, row)) for row in rows), stage, refused)

    def _path(self, uri: str, source_id: str) -> Path:
        if self._source is None or self._source[0] != uri:
            self._forget_source()
            self._folder = Scratch()
            path, found = self._scanner.fetch(uri, self._folder.path)
            if found != source_id:
                what = f"is not the source with SHA-256 {source_id[:12]}... any more"
                raise MediaError(uri, "IO_PERMANENT", f"{what}: ingest it again")
            self._source = uri, path
        return self._source[1]

    def _forget_source(self) -> None:
        self._source = None
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def close(self) -> None:
        """End the child process and give the source back."""
        self._forget_source()
        self._scanner.close()


def sort_out(
    reads: Iterable[tuple[Row, Callable[[], np.ndarray]]], stage: str, refused: list[Row]
) -> Iterator[tuple[Row, np.ndarray]]:
    """Yield rows with their frames, as `ClipReader.each` does, from whatever reads them."""
    for row, read in reads:
        try:
            frames = read()
        except MediaError as error:
            refused.append({
                "item_id": row["clip_id"],
                "kind": "clip",
                "stage": stage,
                "source_id": row["source_id"],
                "uri": row["source_uri"],
                "reasons": [error.code],
                "detail": error.what,
                "exit_kind": exit_kind(error.code),
                "retryable": error.code in RETRYABLE,
            })
        else:
            yield row, frames
