"""Raw videos to clips: each source is read once, in a process that may be killed.

A source ends as clips or as one reject with a typed code; the sum is checked. Shards are groups of
neighbouring sources whose borders depend on the addresses in them, so that one new file renews one
shard and leaves all others as they were. Rows hold a reference; the clip's MP4 is an object of the
store, named by its content.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from videoar.contracts.contract import load_contract
from videoar.contracts.names import CLIPS, REJECTS, SOURCES
from videoar.core.crash_points import crash_point
from videoar.core.errors import ContractError, MediaError
from videoar.core.ids import digest_json, seed_from
from videoar.core.types import Row
from videoar.media.reject_codes import RETRYABLE, exit_kind
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import (
    Inputs,
    MapStage,
    Output,
    Port,
    Shard,
    StageConfig,
    runtime,
)
from videoar.storage.takedown import find_tombstone

if TYPE_CHECKING:
    from videoar.media.scan import DecodedClip
    from videoar.media.source_decoder import SourceMetadata

_ENCODE_TOGETHER = 8  # clips per ffmpeg process: bounds memory, hides its start
_MAX_OVER_MEAN = 4
Side = Annotated[int, Field(ge=16, le=2048, multiple_of=2)]
Sizes = Annotated[tuple[tuple[Side, Side], ...], Field(min_length=1)]


class IngestConfig(StageConfig):
    """What a clip is, and what a source may be."""

    num_frames: int = Field(default=17, ge=5)
    """Frames of a clip: 1 + 4m."""
    rate_fps: float | None = Field(default=8.0, gt=0, le=120)
    """Grid in presentation time that frames are picked on; null takes every frame."""
    size_px: Side | Sizes = 64
    """Side of square clips, or a list of [height, width] of which a source takes the one nearest to
    its first picture in aspect ratio (of a long source each part by itself). Pictures are resized
    to cover the size, then the centre is cut out."""
    find_shots: bool = True
    """Cut at changes of shot; without, only gaps in time and changes of size part a source."""
    max_clips_per_source: int = Field(default=16, ge=1)
    """Clips taken from one source, from its start."""
    max_duration_s: float = Field(default=6 * 3600.0, gt=0)
    """Longer sources are refused (`TOO_LONG`)."""
    part_mib: int = Field(default=256, ge=1)
    """A larger source is read in parts of about this size, each a shard of its own, so that one
    long film keeps many workers busy. Shots end where parts do; counts of sources count parts."""
    max_pixels: int = Field(default=9_437_184, ge=1)
    """Larger pictures are refused (`TOO_LARGE_DIM`)."""
    keep: Literal["clips", "references"] = "clips"
    """What is stored of a clip: a small MP4, or only where its frames are in the source. With
    references nothing is encoded, and the sources must stay where they are."""
    crf: int = Field(default=12, ge=0, le=51)
    """Quality of the stored clips (x264); smaller is better."""
    val_fraction: float = Field(default=0.15, ge=0, lt=1)
    """Share of groups that become `val` where the input prescribes no split."""
    sources_per_shard: int = Field(default=16, ge=1)
    """Sources per shard on average."""
    scan_timeout_s: float = runtime(300.0, gt=0)
    """Wall-clock and CPU seconds that decoding one source, or one part of a long one, may take; and
    that fetching one may take for every 64 MiB."""
    scan_memory_mib: int = runtime(2048, ge=512)
    """Address space of the scanning process."""

    @field_validator("num_frames")
    @classmethod
    def _is_one_and_fours(cls, value: int) -> int:
        if value % 4 != 1:
            raise ValueError(f"{value} is not 1 + 4m (5, 9, 13, 17, ...)")
        return value

    @field_validator("size_px", mode="wrap")
    @classmethod
    def _is_side_or_sizes(cls, value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError as error:  # in place of one message for each kind of value
            what = "an even side of 16 to 2048 px, nor a list of such [height, width]"
            raise ValueError(f"{value!r} is neither {what}") from error

    @property
    def cutting(self) -> Row:
        """The part of the options that decides what a clip of given id holds."""
        names = {"num_frames", "rate_fps", "size_px", "find_shots", "crf"}
        return self.model_dump(mode="json", include=names)


class IngestStage(MapStage[IngestConfig]):
    """Decode, cut, score and store."""

    name = "ingest"
    consumes: ClassVar[Mapping[str, Port]] = {"sources": Port(SOURCES)}
    produces = CLIPS
    config_type = IngestConfig
    primary = "sources"
    allows_empty_output = True

    def tools(self) -> Mapping[str, str]:
        """Name the decoder and the encoder: pixels depend on them."""
        from videoar.media.transcode import tool_versions

        return tool_versions()

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        """Group the sources by content."""
        rows = sorted(inputs[self.primary].table().to_pylist(), key=lambda row: str(row["uri"]))
        groups = group_rows(rows, self.config.sources_per_shard, self.config.part_mib << 20)
        return [
            Shard(index=i, digest=digest_json(group), rows=tuple(group))
            for i, group in enumerate(groups)
        ]

    def open(self, inputs: Inputs, context: StageContext) -> "_Ingest":
        """Start no process yet: the scanner does at the first source."""
        return _Ingest(self.config, context)


def group_rows(rows: Iterable[Row], mean: int, part_bytes: int) -> Iterator[list[Row]]:
    """Cut sorted rows into groups of about `mean`; a group's borders depend on its own rows.

    A source larger than `part_bytes` becomes groups of one row, one for each part of it.
    """
    group: list[Row] = []
    for row in rows:
        parts = max(1, math.ceil(row["size_bytes"] / part_bytes))
        if parts > 1:
            yield from ([{**row, "part": part, "parts": parts}] for part in range(parts))
            continue
        group.append({**row, "part": 0, "parts": 1})
        if seed_from(row["uri"]) % mean == 0 or len(group) >= _MAX_OVER_MEAN * mean:
            yield group
            group = []
    if group:
        yield group


class _Ingest:
    """The opened stage: one scanning child for many sources."""

    def __init__(self, config: IngestConfig, context: StageContext) -> None:
        from videoar.core.scratch import sweep
        from videoar.media.process import Limits
        from videoar.media.sandbox import SandboxedDecoder
        from videoar.media.scan import ScanPlan

        sweep()
        self.config, self.store, self._context = config, context.store, context
        plan = ScanPlan(
            num_frames=config.num_frames,
            rate_fps=config.rate_fps,
            size_px=config.size_px,
            find_shots=config.find_shots,
            max_clips=config.max_clips_per_source,
            max_duration_s=config.max_duration_s,
            max_pixels=config.max_pixels,
        )
        time_s = config.scan_timeout_s
        limits = Limits(time_s, max(1, round(time_s)), config.scan_memory_mib << 20)
        self.scanner = SandboxedDecoder(plan, limits)

    def __call__(self, batch: pa.Table) -> Output:
        clips: list[Row] = []
        rejects: list[Row] = []
        kept: set[str] = set()
        counts: Counter[str] = Counter(sources=batch.num_rows)
        seen: dict[str, str] = {}
        for row in batch.to_pylist():
            try:
                clips += self._ingest(row, seen)
                kept.add(row["uri"])
            except MediaError as error:
                rejects.append(_reject(row, error, seen.get(row["uri"])))
                counts[f"reject/{error.code}"] += 1
        _account(batch, kept, rejects)
        counts.update(sources_kept=len(kept), sources_rejected=len(rejects), clips=len(clips))
        return Output(_table(clips, CLIPS), _table(rejects, REJECTS), dict(counts))

    def close(self) -> None:
        """End the scanning child."""
        self.scanner.close()

    def _ingest(self, row: Row, seen: dict[str, str]) -> list[Row]:
        """Turn one source into rows; `seen` maps addresses to content for the whole shard."""
        with self._context.scratch() as folder:
            path, source_id = self.scanner.fetch(row["uri"], folder)
            if find_tombstone(self.store.ledger, source_id) is not None:
                raise MediaError(row["name"], "FORGOTTEN", f"taken down: sha256 {source_id}")
            twins = [uri for uri, digest in seen.items() if digest == source_id]
            seen[row["uri"]] = source_id
            if twins:
                raise MediaError(row["name"], "DUPLICATE_EXACT", f"same bytes as {twins[0]}")
            common = _described(row, source_id, self.config.val_fraction)
            return self._clips(common, self.scanner.scan(path, row["part"], row["parts"]))

    def _clips(self, common: Row, items: "Iterator[DecodedClip | SourceMetadata]") -> list[Row]:
        """Store clips in small groups as they come."""
        from videoar.media.source_decoder import SourceMetadata

        clips: list[Row] = []
        pending: list[DecodedClip] = []
        for item in items:
            if isinstance(item, SourceMetadata):
                common = {**common, **vars(item)}
            else:
                pending.append(item)
            if len(pending) == _ENCODE_TOGETHER:
                clips += self._store(pending)
                pending = []
        clips += self._store(pending)
        crash_point("clips-stored")
        return [self._row(clip, common) for clip in clips]

    def _store(self, decoded: list["DecodedClip"]) -> Iterator[Row]:
        """Store clips as MP4 objects; yield the columns of their spans."""
        from videoar.media.transcode import encode_clips

        if self.config.keep == "references":
            for clip in decoded:
                yield {**clip.columns, "rate_fps": self._rate_fps(clip)}
            return
        for rate_fps, group in itertools.groupby(decoded, key=self._rate_fps):
            columns, frames = zip(*((e.columns, e.frames_THWC) for e in group), strict=True)
            videos = encode_clips(frames, rate_fps, self.config.crf)
            for of_span, video in zip(columns, videos, strict=True):
                reference = self.store.put_object(video, ".mp4")
                yield {
                    **of_span,
                    "rate_fps": rate_fps,
                    "video_key": reference.key,
                    "video_sha256": reference.sha256,
                    "video_size_bytes": reference.size_bytes,
                }

    def _rate_fps(self, clip: "DecodedClip") -> float:
        """Return the grid's rate, or the mean rate of the source inside the span."""
        span_us = clip.columns["span_end_us"] - clip.columns["span_start_us"]
        own = 1e6 * (clip.columns["num_frames"] - 1) / span_us
        return self.config.rate_fps or round(own, 3)

    def _row(self, clip: Row, common: Row) -> Row:
        span = [clip["span_start_us"], clip["span_end_us"]]
        height, width = clip["height_px"], clip["width_px"]
        # the size itself, not the choice: a longer list renews none but the clips that change
        size = height if height == width else [height, width]
        key = [common["source_id"], span, {**self.config.cutting, "size_px": size}]
        return {**common, **clip, "clip_id": digest_json(key)[:32]}


def _described(row: Row, source_id: str, val_fraction: float) -> Row:
    """Return the columns that a clip inherits from the listing."""
    names = ("label", "caption", "caption_source", "licence", "origin")
    draw = seed_from("split", row["group"] or source_id) / 2**63
    return {
        **{name: row[name] for name in names},
        "source_id": source_id,
        "source_uri": row["uri"],
        "source_name": row["name"],
        "split": row["split"] or ("val" if draw < val_fraction else "train"),
    }


def _reject(row: Row, error: MediaError, source_id: str | None) -> Row:
    part = f" [{row['part'] + 1}/{row['parts']}]" if row["parts"] > 1 else ""
    return {
        "item_id": row["name"] + part,
        "kind": "source",
        "stage": IngestStage.name,
        "source_id": source_id,
        "uri": row["uri"],
        "reasons": [error.code],
        "detail": error.what,
        "exit_kind": exit_kind(error.code),
        "retryable": error.code in RETRYABLE,
    }


def _account(batch: pa.Table, kept: set[str], rejects: list[Row]) -> None:
    """Fail unless every source ended exactly once."""
    ended = sorted([*kept, *(row["uri"] for row in rejects)])
    given = sorted(batch["uri"].to_pylist())
    if ended != given:
        what = f"{len(given)} sources in, {len(kept)} kept + {len(rejects)} refused out"
        raise ContractError("ingest", what, "a source was lost or counted twice")


def _table(rows: list[Row], contract: str) -> pa.Table:
    schema = load_contract(contract).arrow_schema
    return pa.Table.from_pylist(rows, schema)
