"""Many small files of tokens to few of a size that reads well, each a random sample of all clips.

Why a stage and no verb: reuse, resume, kills, lineage and take-downs are those of every stage, and
a pipeline below it reads the large files without being told. What it compacts stays as it is.

Rows are spread by a hash of their clip: clips of one source, which lie side by side where they come
in, lie everywhere afterwards, so that a window of few row groups is a fair shuffle. Shapes and
tokenizers do not mix in a file. Each row is checked against its checksum on the way.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from videoar.core.ids import canonical_json, digest_json
from videoar.pipeline.stage import Inputs, Mapper, MapStage, Output, Port, Shard, StageConfig
from videoar.storage.rows import RowSource
from videoar.storage.store import Store
from videoar.storage.token_codec import checksum


class CompactConfig(StageConfig):
    """Options of `compact`."""

    file_mib: float = Field(default=512, gt=0, le=1024)
    """Payload of a file at most; files of one shape are equal in rows. A worker needs about 3.5
    times as much memory."""


class CompactStage(MapStage[CompactConfig]):
    """Files of tokens to larger files of the same rows."""

    name = "compact"
    consumes: ClassVar[Mapping[str, Port]] = {"tokens": Port("tokens@1")}
    produces = "tokens@1"
    config_type = CompactConfig
    primary = "tokens"

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        """Plan one shard per new file: the rows that it will hold, by file and row."""
        tokens = inputs[self.primary]
        source = RowSource(tokens)
        made: list[Shard] = []
        for rows in _spread(source, int(self.config.file_mib * (1 << 20))):
            file = source.payload.file_N[rows]
            pairs = list(zip(file.tolist(), (rows - source.first[file]).tolist(), strict=True))
            digest = digest_json([[tokens.files[f].sha256, row] for f, row in pairs])
            places = tuple({"file": f, "row": row} for f, row in pairs)
            made.append(Shard(index=len(made), digest=digest, rows=places))
        return made

    def open(self, inputs: Inputs, store: Store) -> Mapper:  # noqa: ARG002 - the snapshot has it
        """Read the small columns of all rows."""
        source = RowSource(inputs[self.primary])

        def mapper(batch: pa.Table) -> Output:
            places = source.first[batch["file"].to_numpy()] + batch["row"].to_numpy()
            return Output(source.take(places))

        return mapper


def _spread(source: RowSource, file_bytes: int) -> list[np.ndarray]:
    """Return the rows of each new file in their order there."""
    if not source.small.num_rows:
        return []
    order = np.lexsort((
        source.small["clip_id"].to_numpy(),
        np.array([checksum(clip.encode()) for clip in source.small["clip_id"].to_pylist()]),
    ))
    row_bytes = source.payload.row_bytes_N
    kinds = np.array([canonical_json(notes) for notes in source.notes])[source.payload.file_N]
    shapes = np.stack([source.small[name].to_numpy() for name in "thwk"], axis=1)
    keys = [f"{kind} {shape}" for kind, shape in zip(kinds, shapes.tolist(), strict=True)]
    _, group = np.unique(keys, return_inverse=True)
    made: list[np.ndarray] = []
    for number in range(int(group.max()) + 1):
        rows = order[group[order] == number]
        made += np.array_split(rows, math.ceil(row_bytes[rows].sum() / file_bytes))
    return made
