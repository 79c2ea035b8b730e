"""The worker of `ingest`: fetch, decode and store one source after the other.

Rows hold a reference; the clip itself is an MP4 object of the store, named by its content. So a
shard that runs twice writes the same objects again.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.contracts.names import CLIPS, REJECTS
from videoar.core.crash_points import crash_point
from videoar.core.errors import ContractError, MediaError
from videoar.core.ids import digest_json, seed_from
from videoar.core.scratch import sweep
from videoar.core.types import Row
from videoar.media.process import Limits
from videoar.media.reject_codes import reject_row
from videoar.media.sandbox import SandboxedDecoder, second_try
from videoar.media.scan import DecodedClip, ScanPlan
from videoar.media.source_decoder import SourceMetadata
from videoar.media.transcode import encode_clips
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Output
from videoar.stages.ingest.config import IngestConfig
from videoar.storage.takedown import find_tombstone

_STORE_TOGETHER = 8  # chosen: bounds the memory for decoded clips


class IngestWorker:
    """Turns the sources of a shard into rows; one child process decodes many sources."""

    def __init__(self, config: IngestConfig, context: StageContext) -> None:
        sweep()  # a worker that was killed here has left the source that it was reading
        self._config, self._context = config, context
        plan = ScanPlan(
            num_frames=config.num_frames,
            rate_fps=config.rate_fps,
            size_px=config.size_px,
            crop=config.crop,
            deinterlace=config.deinterlace,
            tone_map=config.tone_map,
            find_shots=config.find_shots,
            max_clips=config.max_clips_per_source,
            choose=config.choose,
            max_duration_s=config.max_duration_s,
            max_pixels=config.max_pixels,
            allow_animations=config.allow_animations,
            with_pixels=config.keep == "clips",
        )
        time_s = config.scan_timeout_s
        # RLIMIT_CPU has whole seconds
        limits = Limits(time_s, max(1, round(time_s)), config.scan_memory_mib << 20)
        self._decoder = SandboxedDecoder(plan, limits)
        # a disk takes 8 files in the time of one, as most of it is waiting for `fsync`
        self._puts = ThreadPoolExecutor(_STORE_TOGETHER, "clips")

    def __call__(self, batch: pa.Table) -> Output:
        """Return the clips and rejects of the sources of one shard."""
        clips: list[Row] = []
        rejects: list[Row] = []
        kept: set[str] = set()
        counts: Counter[str] = Counter(sources=batch.num_rows)
        digests: dict[str, str] = {}  # URI to SHA-256, of the sources fetched so far
        for row in batch.to_pylist():
            try:
                of_source = second_try(partial(self._ingest, row, digests))
                clips += of_source
                counts.update(_left_out(of_source))
                kept.add(row["uri"])
            except MediaError as error:
                rejects.append(_reject(row, error, digests.get(row["uri"])))
                counts[f"reject/{error.code}"] += 1
        _check_accounting(batch, kept, rejects)
        counts.update(sources_kept=len(kept), sources_rejected=len(rejects), clips=len(clips))
        return Output(_table(clips, CLIPS), _table(rejects, REJECTS), dict(counts))

    def close(self) -> None:
        """Terminate the child process."""
        self._decoder.close()
        self._puts.shutdown()

    def _ingest(self, row: Row, digests: dict[str, str]) -> list[Row]:
        """Return the clips of one source; add its digest to those of the shard, by URI.

        Duplicates are found within the shard only: across shards, `filter` finds them by clip id.
        """
        with self._context.scratch() as folder:
            path, source_id = self._decoder.fetch(row["uri"], folder)
            # by content: the listing knows withdrawn addresses only, and this may be a copy
            if find_tombstone(self._context.store.ledger, source_id) is not None:
                what = f"the source with SHA-256 {source_id} was taken down"
                raise MediaError(row["name"], "FORGOTTEN", what)
            others = (uri for uri, digest in digests.items() if digest == source_id)
            duplicates = [uri for uri in others if uri != row["uri"]]  # this may be the second try
            digests[row["uri"]] = source_id  # before the next check, which may reject the source
            if duplicates:
                raise MediaError(
                    row["name"], "DUPLICATE_EXACT", f"has the same bytes as {duplicates[0]}"
                )
            inherited = _source_columns(row, source_id, self._config.val_fraction)
            return self._store_all(inherited, self._decoder.scan(path, row["part"], row["parts"]))

    def _store_all(
        self, inherited: Row, items: Iterable[DecodedClip | SourceMetadata]
    ) -> list[Row]:
        """Store clips in small groups while the source is decoded; return their rows."""
        clips: list[Row] = []
        pending: list[DecodedClip] = []
        for item in items:
            # comes after the last clip: it counts what was decoded
            if isinstance(item, SourceMetadata):
                inherited = {**inherited, **vars(item)}
            else:
                pending.append(item)
            if len(pending) == _STORE_TOGETHER:
                clips += self._store(pending)
                pending = []
        clips += self._store(pending)
        crash_point("clips-stored")
        # rows last: the metadata of the source comes after its clips
        return [self._row(clip, inherited) for clip in clips]

    def _store(self, decoded: list[DecodedClip]) -> Iterator[Row]:
        """Store clips as MP4 objects, unless references are kept; yield their own columns."""
        if self._config.keep == "references":
            for clip in decoded:
                yield {**clip.columns, "rate_fps": self._rate_fps(clip)}
            return
        # with a grid all clips have one rate
        for rate_fps, group in itertools.groupby(decoded, key=self._rate_fps):
            clips = list(group)
            videos = encode_clips([clip.frames_THWC for clip in clips], rate_fps, self._config.crf)
            put = partial(self._context.store.put_object, suffix=".mp4")
            for clip, reference in zip(clips, self._puts.map(put, videos), strict=True):
                yield {
                    **clip.columns,
                    "rate_fps": rate_fps,
                    "video_key": reference.key,
                    "video_sha256": reference.sha256,
                    "video_size_bytes": reference.size_bytes,
                }

    def _rate_fps(self, clip: DecodedClip) -> float:
        """Return the rate of the grid, or else the mean rate of the source within the span."""
        span_us = clip.columns["span_end_us"] - clip.columns["span_start_us"]
        mean_fps = 1e6 * (clip.columns["num_frames"] - 1) / span_us
        # rounded: spans are whole microseconds, so clips of one source would differ in the last
        # digits
        return self._config.rate_fps or round(mean_fps, 3)

    def _row(self, clip: Row, inherited: Row) -> Row:
        span = [clip["span_start_us"], clip["span_end_us"]]
        height, width = clip["height_px"], clip["width_px"]
        # the size of this clip, not the list of sizes in the options: adding a size to the
        # list changes the ids of those clips only that get the new size
        size = height if height == width else [height, width]
        transforms = _transforms({**inherited, **clip})
        options = {**self._config.clip_options, "size_px": size, **transforms}
        key = [inherited["source_id"], span, options]
        return {**inherited, **clip, "clip_id": digest_json(key)[:32]}


def _source_columns(row: Row, source_id: str, val_fraction: float) -> Row:
    """Return the columns that a clip inherits from the listing of its source."""
    names = ("label", "caption", "caption_source", "licence", "origin")
    # by group, not by clip: clips of one scene in both splits would leak training data into `val`
    draw = seed_from("split", row["group"] or source_id) / 2**63
    return {
        **{name: row[name] for name in names},
        "source_id": source_id,
        "source_uri": row["uri"],
        "source_name": row["name"],
        "split": row["split"] or ("val" if draw < val_fraction else "train"),
    }


def _left_out(clips: list[Row]) -> dict[str, int]:
    """Return the counts of what one source has beyond its clips."""
    if not clips or clips[0]["clips_left_out"] is None:
        return {}
    num_found = clips[0]["clips_found"]
    # where decoding has stopped (`choose: first`), the number of clips is unknown
    num_left = {} if num_found is None else {"clips_left_out": num_found - len(clips)}
    return {"sources_with_more_clips": 1, **num_left}


def _transforms(clip: Row) -> Row:
    """Return what made the pixels of a clip others than those of its plainly resized source."""
    made = {name: clip[name] for name in ("deinterlacer", "tone_map") if clip[name]}
    whole = [0, 0, clip["src_width_px"], clip["src_height_px"]]
    has_bars = clip["active_box"] is not None and list(clip["active_box"]) != whole
    return {**made, "crop_box": clip["crop_box"]} if has_bars else made


def _reject(row: Row, error: MediaError, source_id: str | None) -> Row:
    part = f" [{row['part'] + 1}/{row['parts']}]" if row["parts"] > 1 else ""
    return reject_row(
        error,
        item_id=row["name"] + part,
        kind="source",
        stage="ingest",
        source_id=source_id,
        uri=row["uri"],
    )


def _check_accounting(batch: pa.Table, kept: set[str], rejects: list[Row]) -> None:
    """Check that every source ended exactly once, as clips or as a reject."""
    # lists, not sets: they also show a source that was counted twice
    ended = sorted([*kept, *(row["uri"] for row in rejects)])
    given = sorted(batch["uri"].to_pylist())
    if ended != given:
        what = f"{len(given)} sources in, {len(kept)} kept + {len(rejects)} rejected out"
        raise ContractError(
            "ingest", what, "a source is missing or was counted twice: report this bug"
        )


def _table(rows: list[Row], contract: str) -> pa.Table:
    return pa.Table.from_pylist(rows, load_contract(contract).arrow_schema)
