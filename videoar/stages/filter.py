"""Clips to good clips: a policy's verdict on stored scores, then one of each set of duplicates.

Rows only; the media stay where they are and no frame is decoded. Each input file gives one output
file, so that whatever works on single files later keeps its results for those that did not change.
Rows of all files meet only where they share a key (`videoar.storage.partitions`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from videoar.contracts.contract import load_contract
from videoar.contracts.expectations import CheckReport
from videoar.contracts.names import CLIPS, PROFILES, REJECTS
from videoar.core.errors import ConfigError, ContractError, GateError
from videoar.curation.policy import (
    COLUMNS,
    PROFILE_HINT,
    SCORE_MISSING,
    Bounds,
    Policy,
    evaluate,
    parse_policy,
    policy_names,
    read_policy,
)
from videoar.pipeline.context import StageContext
from videoar.pipeline.local_path import path_or
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig
from videoar.storage.partitions import DaskScheduler
from videoar.storage.snapshot import Snapshot

if TYPE_CHECKING:
    import numpy as np

_LONGEST_CLIP = 1025
_ROW_BITS = 32  # number of a row: its file's index above these bits, its own below
Row: TypeAlias = dict[str, Any]
Block: TypeAlias = "tuple[np.ndarray, np.ndarray]"
"""Numbers and embeddings of some rows."""


_POLICY = Annotated[str, path_or(*policy_names())] | Policy


class FilterConfig(StageConfig):
    """Which policy decides."""

    policy: Policy = Field(default="default", validate_default=True)
    """A named policy (`default` for training corpora, `permissive` for anything that moves), the
    path of a policy file, or the bounds themselves."""
    override: Mapping[str, float | str | None] = {}
    """Bounds that differ from the policy; null switches one off."""
    dedup: bool = True
    """Refuse all but the best of clips that look the same."""
    dedup_hamming: int = Field(default=6, ge=0, le=16)
    """Bits in which each of three hashes of near duplicates may differ; fewer for corpora of more
    than 25,000 sources. Source: benchmarks/results/near_duplicates.md."""
    dedup_mirrored: bool = False
    """Refuse copies that are mirrored left to right, too. Off, because a mirrored clip is other
    data wherever left and right mean something: writing, driving, captions that say "left"."""
    dedup_semantic: float | None = Field(default=None, gt=0, le=1)
    """Cosine of embeddings from which on clips show the same; null asks no embeddings."""
    min_keep_fraction: float = Field(default=0.01, ge=0, le=1)
    """Fewer kept clips fail the gate: nothing is published."""

    @field_validator("policy", mode="before", json_schema_input_type=_POLICY)
    @classmethod
    def _is_read_now(cls, value: object) -> object:
        """Turn a name or path into its content: a worker elsewhere has no such file."""
        if not isinstance(value, str):
            return value
        try:
            return read_policy(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _overrides_are_bounds(self) -> "FilterConfig":
        try:
            _ = self.resolved
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def resolved(self) -> Policy:
        """The policy with its overrides."""
        return parse_policy({**dict(self.policy), **self.override}, "override")

    def semantic(self) -> Row:
        """Name the bounds that decide, wherever they were written."""
        values = super().semantic()
        del values["override"]
        return {**values, "policy": self.resolved.model_dump(mode="json")}

    def needs(self) -> Mapping[str, str]:
        """Ask for a profile where a bound is a percentile."""
        asked = self.resolved.percentiles
        if not asked:
            return {}
        bounds = ", ".join(f"{name} is {value}" for name, value in asked.items())
        return {"profile": f"{bounds}; {PROFILE_HINT}"}


class FilterStage(ReduceStage[FilterConfig]):
    """Keep the good ones, say why of the others."""

    name = "filter"
    version = 2
    consumes: ClassVar[Mapping[str, Port]] = {
        "clips": Port(CLIPS),
        "profile": Port(PROFILES, optional=True),
    }
    produces = CLIPS
    config_type = FilterConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Decide on all clips, then write each input file's share.

        Raises:
            ConfigError: a bound is a percentile, and no profile says of what.
            GateError: there is no clip at all.
        """
        clips = inputs["clips"]
        if not clips.files:
            raise GateError("filter", "no clips came in", "see the rejects of ingest")
        bounds = self.config.resolved.resolve(_percentiles(inputs.get("profile")))
        judge = _Judge(clips, bounds, asks_embedding=self.config.dedup_semantic is not None)
        repeats = self._repeats(judge, context.dask_scheduler)
        metrics = {f"bound/{name}": value for name, value in bounds.items() if value is not None}
        for index, file in enumerate(clips.files):
            output = _split(clips.read_file(file), judge(index), repeats.get(index, {}))
            yield Output(output.rows, output.rejects, {**output.metrics, **metrics})
            metrics = {}  # those of outputs are added up

    def check(self, inputs: Inputs, output: pa.Table) -> CheckReport:
        """Gate the kept rows with Great Expectations."""
        from videoar.contracts.expectations import TableChecks, check

        rows_in = inputs["clips"].rows
        checks = TableChecks(
            unique=("clip_id",),
            increasing=(("span_start_us", "span_end_us"),),
            values={"num_frames": tuple(range(5, _LONGEST_CLIP + 1, 4))},
            rows=(max(1, round(self.config.min_keep_fraction * rows_in)), rows_in),
        )
        return check(output, load_contract(self.produces), checks)

    def _repeats(
        self, judge: "_Judge", scheduler: DaskScheduler | None
    ) -> dict[int, dict[int, tuple[str, Row]]]:
        """Return, by file and row, why a clip repeats another one, and the row of that one."""
        from videoar.curation import duplicates
        from videoar.media.clip_scores import MIRROR
        from videoar.storage.partitions import all_pairs, hash_join

        clips, count = judge.clips, len(judge.clips.files)

        def near(mask: int) -> set[tuple[int, int]]:
            link = partial(
                duplicates.near_duplicate_pairs, hamming=self.config.dedup_hamming, mask=mask
            )
            return _pairs(hash_join(partial(_keys, judge, mask), count, link, scheduler))

        linked = near(0) if self.config.dedup else set()
        mirrored = near(MIRROR) if self.config.dedup_mirrored else set()
        alike: set[tuple[int, int]] = set()
        if self.config.dedup_semantic is not None:
            _require_one_model(judge, scheduler)
            compare = partial(duplicates.semantic_pairs, cosine=self.config.dedup_semantic)
            blocks = partial(_embedded, judge)
            alike = _pairs(all_pairs(blocks, count, _merge, compare, scheduler))
        rows = _rows(clips, {number for pair in linked | mirrored | alike for number in pair})
        decided = duplicates.pick_representatives(rows, linked, mirrored, alike)
        found: dict[int, dict[int, tuple[str, Row]]] = {}
        for number, (reason, other) in decided.items():
            file, row = divmod(number, 1 << _ROW_BITS)
            found.setdefault(file, {})[row] = (reason, rows[other])
        return found


def _percentiles(profile: Snapshot | None) -> dict[str, list[float]] | None:
    if profile is None:
        return None
    rows = profile.table(["column", "percentiles"]).to_pylist()
    return {row["column"]: row["percentiles"] for row in rows}


class _Judge:
    """The policy's reasons against the clips of one file; travels to workers."""

    def __init__(self, clips: Snapshot, bounds: Bounds, *, asks_embedding: bool) -> None:
        self.clips, self.bounds, self.asks_embedding = clips, bounds, asks_embedding

    def __call__(self, index: int) -> list[list[str]]:
        file = self.clips.files[index]
        rows = self.clips.read_file(file, list(COLUMNS)).to_pylist()
        reasons = [evaluate(row, self.bounds)[1] for row in rows]
        if self.asks_embedding:
            known = self.clips.read_file(file, ["embedding"])["embedding"].is_valid().to_pylist()
            for against, has_one in zip(reasons, known, strict=True):
                if not has_one and SCORE_MISSING not in against:
                    against.append(SCORE_MISSING)
        return reasons

    def survivors(self, index: int, columns: Iterable[str]) -> list[tuple[int, Row]]:
        """Return number and columns of the rows of one file that nothing speaks against."""
        rows = self.clips.read_file(self.clips.files[index], list(columns)).to_pylist()
        return [
            (index << _ROW_BITS | place, row)
            for place, (row, against) in enumerate(zip(rows, self(index), strict=True))
            if not against
        ]


def _keys(judge: _Judge, mask: int, index: int) -> "np.ndarray":
    from videoar.curation import duplicates

    return duplicates.keys(judge.survivors(index, duplicates.COLUMNS), mask)


def _embedded(judge: _Judge, index: int) -> Block:
    import numpy as np

    rows = judge.survivors(index, ["embedding"])
    numbers = np.array([number for number, _ in rows], dtype=np.int64)
    return numbers, np.array([row["embedding"] for _, row in rows], dtype=np.float32)


def _merge(blocks: list[Block]) -> Block:
    import numpy as np

    filled = [block for block in blocks if len(block[0])] or blocks[:1]
    numbers, vectors = zip(*filled, strict=True)
    return np.concatenate(numbers), np.concatenate(vectors)


def _require_one_model(judge: _Judge, scheduler: DaskScheduler | None) -> None:
    """Refuse to compare embeddings of different models."""
    from videoar.storage.partitions import map_partitions

    def models(index: int) -> set[str | None]:
        rows = judge.survivors(index, ["embedding_model"])
        return {row["embedding_model"] for _, row in rows}

    found = set[str | None]().union(*map_partitions(models, len(judge.clips.files), scheduler))
    if len(found) > 1:
        named = ", ".join(sorted(str(model)[:12] for model in found))
        raise ContractError(judge.clips.id, f"embeddings of {named}", "embed all clips with one")


def _pairs(found: Iterable["np.ndarray"]) -> set[tuple[int, int]]:
    return {(a, b) for pairs in found for a, b in pairs.tolist()}


def _rows(clips: Snapshot, numbers: set[int]) -> dict[int, Row]:
    """Read what ranks the given rows."""
    from videoar.curation import duplicates

    found: dict[int, Row] = {}
    for index in sorted({number >> _ROW_BITS for number in numbers}):
        table = clips.read_file(clips.files[index], list(duplicates.COLUMNS))
        for place, row in enumerate(table.to_pylist()):
            if (number := index << _ROW_BITS | place) in numbers:
                found[number] = row
    return found


def _split(
    table: pa.Table, verdicts: list[list[str]], repeats: Mapping[int, tuple[str, Row]]
) -> Output:
    """Part one file's rows into kept and refused ones."""
    is_refused = [bool(against) or place in repeats for place, against in enumerate(verdicts)]
    kept = table.filter(pa.array([not refused for refused in is_refused], pa.bool_()))
    rows = table.select(["clip_id", "source_id", "source_uri"]).to_pylist()
    refused = [
        _reject(row, verdicts[place], repeats.get(place))
        for place, row in enumerate(rows)
        if is_refused[place]
    ]
    if kept.num_rows + len(refused) != table.num_rows:
        raise ContractError("filter", f"{table.num_rows} clips in, but not out", "report this")
    decisive = Counter(f"reject/{row['reasons'][0]}" for row in refused)
    counts = {"clips_in": table.num_rows, "clips_kept": kept.num_rows, **decisive}
    return Output(kept, _rejects(refused), counts)


def _reject(row: Row, reasons: list[str], repeat: tuple[str, Row] | None) -> Row:
    reason, other = repeat or (None, {})
    return {
        "item_id": row["clip_id"],
        "kind": "clip",
        "stage": FilterStage.name,
        "source_id": row["source_id"],
        "uri": row["source_uri"],
        "reasons": reasons or [reason],
        "detail": f"repeats {other['clip_id']}" if repeat else None,
        "exit_kind": "policy",
        "retryable": False,
    }


def _rejects(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, load_contract(REJECTS).arrow_schema)
