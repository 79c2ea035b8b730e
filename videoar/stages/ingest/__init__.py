"""Ingest raw videos to clips: options, ports and shards; `worker` does the work.

Each source is decoded once, in a child process that can be killed. A source ends either as clips or
as one reject with a typed code, and the worker checks that the two add up.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from videoar.contracts.names import CLIPS, SOURCES
from videoar.core.ids import digest_json, seed_from
from videoar.core.types import Row
from videoar.media.transcode import tool_versions
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Port, Shard, StageConfig, runtime

_MAX_OVER_MEAN = 4  # chosen: one shard in 55 reaches four times the mean (1/e^4) and is cut there
Side = Annotated[int, Field(ge=16, le=2048, multiple_of=2)]
Sizes = Annotated[tuple[tuple[Side, Side], ...], Field(min_length=1)]


class IngestConfig(StageConfig):
    """What a clip is, and what a source may be."""

    num_frames: int = Field(default=17, ge=5)
    """Frames of a clip: 1 + 4m, as the causal tokenizer compresses time by 4 after the first."""
    rate_fps: float | None = Field(default=8.0, gt=0, le=120)
    """Frame rate of a clip: the frames displayed on a grid in presentation time; null takes every
    frame of the source."""
    size_px: Side | Sizes = 64
    """Side of square clips, or a list of [height, width]: a source takes the one whose aspect ratio
    is nearest to that of its first frame (parts of a long source choose separately). Frames are
    resized to cover the size and cropped at the centre."""
    find_shots: bool = True
    """Detect shot transitions; if false, only gaps in time and changes of size end a shot."""
    max_clips_per_source: int = Field(default=16, ge=1)
    """Clips taken from one source, from its start."""
    max_duration_s: float = Field(default=6 * 3600.0, gt=0)
    """Longer sources are rejected (`TOO_LONG`)."""
    part_mib: int = Field(default=256, ge=1)
    """A larger source is read in parts of about this size, each a separate shard, so that one long
    film keeps many workers busy. Shots end where parts end; counts of sources count parts."""
    max_pixels: int = Field(default=9_437_184, ge=1)
    """Sources with larger frames are rejected (`TOO_LARGE_DIM`)."""
    keep: Literal["clips", "references"] = "clips"
    """What is stored of a clip: a small MP4, or only a reference to its frames in the source. With
    references nothing is encoded, and the sources must stay available."""
    crf: int = Field(default=12, ge=0, le=51)
    """Quality of the stored clips (x264); smaller is better."""
    val_fraction: float = Field(default=0.15, ge=0, lt=1)
    """Share of groups that become `val`, if the input prescribes no split."""
    sources_per_shard: int = Field(default=16, ge=1)
    """Mean number of sources per shard."""
    scan_timeout_s: float = runtime(300.0, gt=0)
    """Wall-clock and CPU seconds for decoding one source, or one part of a long one, and for
    fetching each 64 MiB of it."""
    scan_memory_mib: int = runtime(2048, ge=512)
    """Address space of the decoding process."""

    @field_validator("num_frames")
    @classmethod
    def _check_num_frames(cls, value: int) -> int:
        if value % 4 != 1:
            raise ValueError(f"{value} is not 1 + 4m (5, 9, 13, 17, ...)")
        return value

    @field_validator("size_px", mode="wrap")
    @classmethod
    def _check_size(cls, value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError as error:  # pydantic's own lists one message per member of the union
            what = "an even side of 16 to 2048 px, nor a list of such [height, width]"
            raise ValueError(f"{value!r} is neither {what}") from error

    @property
    def clip_options(self) -> Row:
        """The options that enter the id of a clip, because they decide its frames."""
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
        """Return the versions of decoder and encoder: pixels depend on them."""
        return tool_versions()

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        """Group neighbouring sources, see `group_rows`."""
        rows = sorted(inputs[self.primary].table().to_pylist(), key=lambda row: str(row["uri"]))
        groups = group_rows(rows, self.config.sources_per_shard, self.config.part_mib << 20)
        return [
            Shard(index=i, digest=digest_json(group), rows=tuple(group))
            for i, group in enumerate(groups)
        ]

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Create the worker; its child process starts at the first source."""
        from videoar.stages.ingest.worker import IngestWorker  # loads PyAV: not needed to plan

        return IngestWorker(self.config, context)


def group_rows(rows: Iterable[Row], mean: int, part_bytes: int) -> Iterator[list[Row]]:
    """Split sorted rows into groups of about `mean` whose borders depend on their own rows.

    A group ends at a row whose hashed address is divisible by `mean`. So one new source changes the
    group that it falls into and leaves all others, and their cached results, as they are. Groups of
    a fixed number would all shift by one.

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
