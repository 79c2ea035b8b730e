"""Read the frames of a clip: from its MP4 in the store, or again from its source.

A row of `clips@1` with a `video_key` names an object of the store. A row without one is a
reference: frames of a source, by presentation time. These are decoded again from the source, in the
same sandbox as at ingest, and only if the source still has the SHA-256 that it had then.

References save storing a corpus twice; each read costs a seek in the source.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videoar.core.errors import MediaError, VideoARError
from videoar.core.scratch import Scratch, sweep
from videoar.core.types import Row
from videoar.media.decode import decode_clip
from videoar.media.ffmpeg_program import shown_frames
from videoar.media.frame_resizer import Size
from videoar.media.process import Limits
from videoar.media.reject_codes import reject_row
from videoar.media.sandbox import SandboxedDecoder, second_try
from videoar.media.scan import DecodedClip, ScanPlan
from videoar.media.tone_mapping import GAMUT
from videoar.storage.object_store import ObjectStore, get_content

COLUMNS = (
    "video_key", "source_id", "source_uri", "start_pts", "frame_times_us", "height_px", "width_px",
    "active_box", "deinterlacer", "tone_map", "is_set_back",
)  # fmt: skip
"""Columns of `clips@1` that a reader needs."""
_LIMITS = Limits(wall_s=300.0, cpu_s=300)
# ingest has checked these bounds
_UNBOUNDED = {"max_duration_s": 1e9, "max_pixels": 1 << 40, "allow_animations": True}


class ClipReader:
    """Reads clips one at a time.

    The last source stays fetched: clips of one source usually follow each other, and fetching it
    costs far more than decoding a clip.
    """

    def __init__(self, objects: ObjectStore, limits: Limits = _LIMITS) -> None:
        self._objects = objects
        self._decoder = SandboxedDecoder(ScanPlan(), limits)
        self._folder: Scratch | None = None
        sweep()
        self._source: tuple[str, Path] | None = None

    def __call__(self, row: Mapping[str, Any]) -> np.ndarray:
        """Return frames_THWC, uint8 RGB, of a row of `clips@1` (at least `COLUMNS`).

        Raises:
            MediaError: the clip or its source is damaged, or the source has changed.
            StorageError: the object of the clip does not exist or is damaged, or a disk failed.
            WorkerLostError, OutOfMemoryError: see `SandboxedDecoder.scan`.
        """
        if row["video_key"] is not None:
            return decode_clip(get_content(self._objects, row["video_key"]))
        plan = ScanPlan(
            size_px=((row["height_px"], row["width_px"]),),
            start_pts=row["start_pts"],
            is_set_back=row["is_set_back"],
            take_us=tuple(row["frame_times_us"]),
            active_box=row["active_box"],
            deinterlace="auto" if row["deinterlacer"] else "off",
            # wide gamut is mapped with any curve
            tone_map="clip" if row["tone_map"] == GAMUT else row["tone_map"],
            **_UNBOUNDED,
        )
        (clip,) = second_try(lambda: self._decoded(row, plan))
        if not isinstance(clip, DecodedClip):
            raise TypeError(f"a scan with `take_us` returned {type(clip).__name__}")
        return clip.frames_THWC

    def as_displayed(self, row: Mapping[str, Any], size_px: Size) -> np.ndarray:
        """Return the same frames of the source, whole, as the program ffmpeg shows them.

        Raises as a call does, and:
            ConfigError: ffmpeg is not installed.
        """
        stream = row["stream_index"] or 0
        times_us, start_pts = row["frame_times_us"], row["start_pts"]
        return shown_frames(self._fetched(row), stream, start_pts, times_us, size_px)

    def each(
        self, rows: Iterable[Row], stage: str, rejected: list[Row]
    ) -> Iterator[tuple[Row, np.ndarray]]:
        """Yield the rows that can be read, with their frames.

        Every other row is appended to `rejected`, as a row of `rejects@1`: a source that has
        changed or disappeared costs its own clips, and the stage continues with all others.
        """
        return readable(((row, partial(self, row)) for row in rows), stage, rejected)

    def _decoded(self, row: Mapping[str, Any], plan: ScanPlan) -> list[object]:
        try:
            return list(self._decoder.run(self._fetched(row), plan))
        except VideoARError as error:
            if error.retryable:  # it may have been written to: its digest is taken again
                self._drop_source()
            raise

    def _fetched(self, row: Mapping[str, Any]) -> Path:
        """Return the local path of the source of a clip, verified by its digest."""
        uri, source_id = row["source_uri"], row["source_id"]
        if self._source is None or self._source[0] != uri:
            self._drop_source()
            self._folder = Scratch()
            path, actual = self._decoder.fetch(uri, self._folder.path)
            if actual != source_id:
                what = f"has changed, its SHA-256 was {source_id[:12]}...: ingest it again"
                raise MediaError(uri, "IO_PERMANENT", what)
            self._source = uri, path
        return self._source[1]

    def _drop_source(self) -> None:
        self._source = None
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def close(self) -> None:
        """End the child process and remove the fetched source."""
        self._drop_source()
        self._decoder.close()


def readable(
    reads: Iterable[tuple[Row, Callable[[], np.ndarray]]], stage: str, rejected: list[Row]
) -> Iterator[tuple[Row, np.ndarray]]:
    """Yield rows with their frames, as `ClipReader.each` does, from pending reads."""
    for row, read in reads:
        try:
            frames_THWC = read()
        except MediaError as error:
            rejected.append(
                reject_row(
                    error,
                    item_id=row["clip_id"],
                    kind="clip",
                    stage=stage,
                    source_id=row["source_id"],
                    uri=row["source_uri"],
                )
            )
        else:
            yield row, frames_THWC
