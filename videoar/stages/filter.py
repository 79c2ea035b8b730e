"""Clips to good clips: a policy's verdict on stored scores, then one of each set of duplicates.

Rows only; the media stay where they are and no frame is decoded. Each input file gives one output
file, so that whatever works on single files later keeps its results for those that did not change.
"""

import tempfile
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, ValidationError, field_validator, model_validator

from videoar.contracts.contract import load_contract
from videoar.core.errors import ContractError, GateError
from videoar.media.policy import COLUMNS, POLICIES, Policy, find_duplicates, verdict
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig
from videoar.storage.store import Store
from videoar.storage.tables import Snapshot

_PROFILED = ("luma_mean", "black_frac", "freeze_frac", "blur_p10", "motion_mean", "letterbox_frac")
_REASON = "reason"
_LONGEST_CLIP = 1025
Row = dict[str, Any]


class FilterConfig(StageConfig):
    """Which policy decides."""

    policy: str = "default"
    """A named policy: `default` (for training corpora) or `permissive` (anything that moves)."""
    override: Mapping[str, float | None] = {}
    """Bounds that differ from the named policy; null switches one off."""
    dedup: bool = True
    """Refuse all but the best of clips that look the same."""
    min_keep_fraction: float = Field(default=0.01, ge=0, le=1)
    """Fewer kept clips fail the gate: nothing is published."""

    @field_validator("policy")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in POLICIES:
            raise ValueError(f"no policy {value}; known: {', '.join(POLICIES)}")
        return value

    @model_validator(mode="after")
    def _overrides_are_bounds(self) -> "FilterConfig":
        try:
            _ = self.bounds
        except ValidationError as error:
            first = error.errors()[0]
            known = ", ".join(Policy.model_fields)
            raise ValueError(
                f"override.{first['loc'][0]}: {first['msg']}; known: {known}"
            ) from None
        return self

    @property
    def bounds(self) -> Policy:
        """The named policy with its overrides."""
        return Policy.model_validate({**POLICIES[self.policy].model_dump(), **self.override})


class FilterStage(ReduceStage[FilterConfig]):
    """Keep the good ones, say why of the others."""

    name = "filter"
    consumes: ClassVar[Mapping[str, Port]] = {"clips": Port("clips@1")}
    produces = "clips@1"
    config_type = FilterConfig

    def reduce(self, inputs: Inputs, store: Store) -> Iterator[Output]:  # noqa: ARG002 - rows only
        """Decide on all clips, then write each input file's share.

        Raises:
            GateError: there is no clip at all.
        """
        clips = inputs["clips"]
        if not clips.files:
            raise GateError("filter", "no clips came in", "see the rejects of ingest")
        reasons = self._decide(clips)
        metrics = _profile_metrics(clips, reasons)
        for index, file in enumerate(clips.files):
            output = _split(clips.read_file(file), reasons[index])
            metrics |= output.metrics
            yield Output(output.rows, output.rejects, metrics)
            metrics = {}

    def check(self, inputs: Inputs, output: pa.Table) -> None:
        """Gate the kept rows with Great Expectations.

        Raises:
            GateError: an expectation failed; names it and the page with all of them.
        """
        from videoar.contracts.suites import Gate, check

        rows_in = inputs["clips"].rows
        gate = Gate(
            unique=("clip_id",),
            increasing=(("span_start_us", "span_end_us"),),
            values={"num_frames": tuple(range(5, _LONGEST_CLIP + 1, 4))},
            rows=(max(1, round(self.config.min_keep_fraction * rows_in)), rows_in),
        )
        report = check(output, load_contract(self.produces), gate)
        if not report.success:
            with tempfile.NamedTemporaryFile(
                "w", prefix="videoar-gate-", suffix=".html", delete=False
            ) as page:
                page.write(report.html)
            raise GateError("filter", "; ".join(report.failures), f"details in {page.name}")

    def _decide(self, clips: Snapshot) -> list[list[list[str]]]:
        """Return the reasons against each clip, by file and row; none for those to keep."""
        rows = [clips.read_file(file, list(COLUMNS)).to_pylist() for file in clips.files]
        bounds = self.config.bounds
        reasons = [[verdict(row, bounds)[1] for row in part] for part in rows]
        if self.config.dedup:
            pairs = [*zip(chain(*rows), chain(*reasons), strict=True)]
            repeats = find_duplicates(row for row, against in pairs if not against)
            for row, against in pairs:
                against.extend(repeats.get((row["clip_id"], row["source_uri"]), ()))
        return reasons


def _split(table: pa.Table, reasons: list[list[str]]) -> Output:
    """Part one file's rows into kept and refused ones."""
    kept = table.filter(pa.array([not against for against in reasons], pa.bool_()))
    refused = [
        _reject(row, against)
        for row, against in zip(
            table.select(["clip_id", "source_id", "source_uri"]).to_pylist(), reasons, strict=True
        )
        if against
    ]
    if kept.num_rows + len(refused) != table.num_rows:
        raise ContractError("filter", f"{table.num_rows} clips in, but not out", "report this")
    counts = {"clips_in": table.num_rows, "clips_kept": kept.num_rows}
    return Output(kept, _rejects(refused), counts)


def _reject(row: Row, reasons: list[str]) -> Row:
    return {
        "item_id": row["clip_id"],
        "kind": "clip",
        "stage": FilterStage.name,
        "source_id": row["source_id"],
        "uri": row["source_uri"],
        "reasons": reasons,
        "exit_kind": "policy",
        "retryable": False,
    }


def _rejects(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, load_contract("rejects@1").arrow_schema)


def _profile_metrics(clips: Snapshot, reasons: list[list[list[str]]]) -> dict[str, float]:
    """Return the funnel, and the percentiles of all clips, kept or not, as flat metrics."""
    from videoar.contracts.profile import profile

    def read(index: int) -> pa.Table:
        table = clips.read_file(clips.files[index], list(_PROFILED))
        decisive = [against[0] if against else None for against in reasons[index]]
        return table.append_column(_REASON, pa.array(decisive, pa.string()))

    found = profile(read, len(clips.files), _PROFILED, _REASON)
    funnel = {f"reject/{reason}": float(count) for reason, count in found.reasons.items()}
    return funnel | {
        f"profile/{name}_{key}": value
        for name, column in found.columns.items()
        for key, value in column.model_dump().items()
        if value is not None
    }
