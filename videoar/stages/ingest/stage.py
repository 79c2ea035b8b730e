"""Ingest raw videos to clips: options, ports and shards; `worker` does the work.

Each source is decoded once, in a child process that can be killed. A source ends either as clips or
as one reject with a typed code, and the worker checks that the two add up.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import ClassVar

from videoar.contracts.names import CLIPS, SOURCES
from videoar.core.ids import digest_json, seed_from
from videoar.core.types import Row
from videoar.media.transcode import tool_versions
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Mapper, MapStage, PackedRows, Port, Shard
from videoar.stages.ingest.config import IngestConfig
from videoar.storage.table_spool import rows_of

_MAX_OVER_MEAN = 4  # chosen: one shard in 55 reaches four times the mean (1/e^4) and is cut there


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
        # by address: a source keeps its neighbours, and so its group, in whatever order it is
        # listed
        sources = inputs[self.primary]
        try:
            return self._grouped(_in_order(rows_of(sources.read())))
        except _NotInOrderError:  # made by a stage; those of a listing are
            return self._grouped(rows_of([sources.table().sort_by("uri")]))

    def _grouped(self, rows: Iterable[Row]) -> list[Shard]:
        by_folder = groupby(rows, _top_folder if self.config.batch_folders else lambda _: "")
        groups = chain.from_iterable(
            group_rows(of_folder, self.config.sources_per_shard, self.config.part_mib << 20)
            for _, of_folder in by_folder
        )
        return [
            Shard(index=i, digest=digest_json(group), rows=PackedRows(group))
            for i, group in enumerate(groups)
        ]

    def scratch_bytes(self, shard: Shard) -> int:
        """Return the size of the largest source that is fetched; one at a time is."""
        remote = (row for row in shard.rows if not row["uri"].startswith("file:"))
        return max((row["size_bytes"] for row in remote), default=0)

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        """Create the worker; its child process starts at the first source."""
        from videoar.stages.ingest.worker import IngestWorker  # loads PyAV: not needed to plan

        return IngestWorker(self.config, context)


class _NotInOrderError(Exception):
    """Rows are not sorted by address."""


def _in_order(rows: Iterable[Row]) -> Iterator[Row]:
    last = ""
    for row in rows:
        if row["uri"] < last:
            raise _NotInOrderError
        last = row["uri"]
        yield row


def _top_folder(row: Row) -> str:
    """Return the first folder of the path inside the input, "" at its top."""
    return str(row["name"].partition("/")[0] if "/" in row["name"] else "")


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
