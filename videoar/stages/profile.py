"""Clips to their profile: percentiles and histograms of the scores, kept as a snapshot.

A filter with percentile bounds reads it. Feed it from this stage, and bounds move with the corpus;
freeze it as an input (`profile: snapshot://...`), and they stay until it is renewed.
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
from videoar.storage.snapshot import Snapshot


class ProfileConfig(StageConfig):
    """Nothing to choose."""


class ProfileStage(ReduceStage[ProfileConfig]):
    """Describe each numeric column."""

    name = "profile"
    consumes: ClassVar[Mapping[str, Port]] = {"clips": Port(CLIPS)}
    produces = PROFILES
    config_type = ProfileConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Yield one row per column.

        Raises:
            GateError: there is no clip at all.
        """
        from videoar.storage.column_profile import describe

        clips = inputs["clips"]
        if not clips.files:
            raise GateError(self.name, "no clips came in", "see the rejects of ingest")
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
