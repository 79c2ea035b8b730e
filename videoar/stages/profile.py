"""Profile clips: percentiles and histograms of the scores, committed as a snapshot.

`filter` reads it for bounds that are percentiles. If the profile comes from this stage, the bounds
change with the corpus; if it is an input (`profile: snapshot://...`), they stay until that changes.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import ClassVar

import numpy as np
import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.contracts.names import CLIPS, PROFILES
from videoar.core.errors import GateError
from videoar.curation.policy import score_columns
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig
from videoar.storage.column_profile import describe
from videoar.storage.snapshot import Snapshot


class ProfileConfig(StageConfig):
    """No options of its own."""


class ProfileStage(ReduceStage[ProfileConfig]):
    """Describe each score column."""

    name = "profile"
    consumes: ClassVar[Mapping[str, Port]] = {"clips": Port(CLIPS)}
    produces = PROFILES
    config_type = ProfileConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Yield one row per column.

        Raises:
            GateError: there is no clip at all.
        """
        clips = inputs["clips"]
        if not clips.files:
            raise GateError(self.name, "the input has no clips", "see the rejects of ingest")
        profiles = (
            describe(
                column,
                partial(column_values, clips, column),
                len(clips.files),
                context.dask_scheduler,
            )
            for column in score_columns()
        )
        rows = [profile.model_dump() for profile in profiles]
        yield Output(pa.Table.from_pylist(rows, load_contract(self.produces).arrow_schema))


def column_values(clips: Snapshot, column: str, index: int) -> np.ndarray:
    """Read one column of one file as float64, NaN for null."""
    table = clips.read_file(clips.files[index], [column])
    values: np.ndarray = table[column].cast(pa.float64()).to_numpy()
    return values
