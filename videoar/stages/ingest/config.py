"""Options of `ingest`, for the stage and its worker."""

from typing import Annotated, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from videoar.core.types import Row
from videoar.pipeline.stage import StageConfig, runtime

# even: H.264 in yuv420p halves both sides
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
    crop: Literal["active", "none"] = "active"
    """`active` leaves out bars above, below and beside the picture; `none` keeps them."""
    deinterlace: Literal["auto", "measure", "off"] = "auto"
    """`auto` deinterlaces the frames that are combed, whatever the source announces; `measure`
    only counts them (`combed_frac`), so that a policy can refuse them; `off` does not look."""
    tone_map: Literal["mobius", "hable", "reinhard", "clip"] | None = "mobius"
    """Curve that maps high dynamic range (PQ, HLG, logarithmic) to BT.709: mobius keeps the colours
    of what BT.709 can show, hable and reinhard keep more of the highlights and are darker, clip
    cuts them off. Wide gamut is mapped, too, without a curve. null maps neither."""
    find_shots: bool = True
    """Detect shot transitions; if false, only gaps in time and changes of size end a shot."""
    max_clips_per_source: int = Field(default=16, ge=1)
    """Clips taken from one source, or from one part of a long one."""
    choose: Literal["spread", "first"] = "spread"
    """Which clips to take of a source that has more: some spread evenly over it, or the first ones,
    after which decoding stops. Column `clips_left_out` and the report page tell that there were
    more."""
    max_duration_s: float = Field(default=6 * 3600.0, gt=0)
    """Longer sources are rejected (`TOO_LONG`)."""
    part_mib: int = Field(default=256, ge=1)
    """A larger source is read in parts of about this size, each a separate shard, so that one long
    film keeps many workers busy. Shots end where parts end; counts of sources count parts."""
    # 4096 x 2304
    max_pixels: int = Field(default=9_437_184, ge=1)
    """Sources with larger frames are rejected (`TOO_LARGE_DIM`)."""
    allow_animations: bool = False
    """Read GIF files, too. Their frames have 256 colours and are mostly dithered. Animated WebP is
    rejected in any case (`CONTAINER_DENIED`): FFmpeg cannot decode it."""
    keep: Literal["clips", "references"] = "clips"
    """What is stored of a clip: a small MP4, or only a reference to its frames in the source. With
    references nothing is encoded, and the sources must stay available."""
    crf: int = Field(default=12, ge=0, le=51)
    """Quality of the stored clips (x264); smaller is better."""
    val_fraction: float = Field(default=0.15, ge=0, lt=1)
    """Share of groups that become `val`, if the input prescribes no split."""
    sources_per_shard: int = Field(default=16, ge=1)
    """Mean number of sources per shard."""
    batch_folders: bool = runtime(False)
    """End a shard where the top folder of the input ends: a batch of videos that arrives in a
    folder of its own then leaves all other shards, and so their cached results, as they are. For
    batches of at least `sources_per_shard` sources: smaller ones make smaller files."""
    scan_timeout_s: float = runtime(300.0, gt=0)
    """Wall-clock and CPU seconds for decoding one source, or one part of a long one, and for
    fetching each 64 MiB of it. A source that computes for longer is rejected (`TIMEOUT`)."""
    scan_memory_mib: int = runtime(2048, ge=512)
    """Address space of the decoding process; a source that needs more is rejected (`MEM`)."""
    max_reject_fraction: float = runtime(0.5, ge=0, le=1)
    """Fraction of rejected sources above which the stage fails. Only faults of a file reject it:
    those of a machine are retried and then fail the stage."""

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
        """The options that enter the id of every clip, because they decide its frames.

        Those of a transform enter the ids of the clips that it changed, see `IngestWorker`.
        """
        names = {"num_frames", "rate_fps", "size_px", "find_shots", "crf"}
        return self.model_dump(mode="json", include=names)
