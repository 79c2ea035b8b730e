"""Filter clips: apply a policy to stored scores, then keep one of each set of duplicates.

Works on rows; no frame is decoded. Each input file gives one output file, so that later stages keep
their cached results for files that did not change. Duplicates are found across all files, by joins
on keys (`videoar.storage.partitions`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from videoar.contracts.contract import load_contract
from videoar.contracts.expectations import CheckReport, TableChecks, check, prepare
from videoar.contracts.names import CLIPS, PROFILES, REJECTS
from videoar.core.errors import ConfigError, ContractError, GateError
from videoar.core.ids import seed_from
from videoar.core.types import Row
from videoar.curation import candidates, duplicates, semantic_duplicates
from videoar.curation.policy import (
    COLUMNS,
    PROFILE_HINT,
    SCORE_MISSING,
    Allowed,
    Bounds,
    Policy,
    evaluate,
    parse_policy,
    policy_names,
    read_policy,
)
from videoar.media.clip_scores import MIRROR
from videoar.pipeline.context import StageContext
from videoar.pipeline.local_path import path_or
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig
from videoar.storage.partitions import DaskScheduler, all_pairs, map_partitions
from videoar.storage.snapshot import Snapshot

_LONGEST_CLIP = 1025  # chosen: frames; above any model's context
_ROW_BITS = 32  # number of a row: index of its file above these bits, its own index below
_SPAN = ("span_start_us", "span_end_us")
Block = tuple[np.ndarray, np.ndarray]
"""Numbers and embeddings of some rows."""
_POLICY = Annotated[str, path_or(*policy_names())] | Policy


class FilterConfig(StageConfig):
    """The policy, and which duplicates are rejected."""

    policy: Policy = Field(default="default", validate_default=True)
    """A named policy (`default` for training corpora, `permissive` for anything that moves), the
    path of a policy file, or the bounds themselves."""
    override: Mapping[str, float | str | tuple[str | None, ...] | None] = {}
    """Bounds that replace those of the policy; null disables one."""
    dedup: bool = True
    """Reject all but the best of clips that look the same."""
    dedup_hamming: int = Field(default=11, ge=1, le=16)
    """Number of differing bits, of 64, from which on two frames do not match at all, of clips of
    usual motion; up to twice as many where all moves, fewer where nothing does. A clip is rejected
    if its frames differ in less than 0.4 of it on average; fewer find less and err less.
    Source: benchmarks/results/near_duplicates.md."""
    dedup_mirrored: bool = False
    """Reject mirrored copies too. Off, because a mirrored clip is different data wherever left and
    right have a meaning: writing, driving, captions that say "left"."""
    dedup_semantic: float | None = Field(default=None, gt=0, le=1)
    """Smallest cosine of embeddings of clips that count as duplicates; null needs no embeddings."""
    min_keep_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of clips that must be kept; with fewer the check fails and nothing is committed."""

    @field_validator("policy", mode="before", json_schema_input_type=_POLICY)
    @classmethod
    def _read_policy(cls, value: object) -> object:
        """Replace a name or path by its content: a worker on another machine has no such file."""
        if not isinstance(value, str):
            return value
        try:
            return read_policy(value)
        # pydantic collects ValueErrors with their keys; a ConfigError would hide all other mistakes
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _check_overrides(self) -> "FilterConfig":
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
        """Return the options with one policy: equal bounds give equal options."""
        values = super().semantic()
        del values["override"]  # already merged into `policy`
        return {**values, "policy": self.resolved.model_dump(mode="json")}

    def needs(self) -> Mapping[str, str]:
        """Require a profile if a bound is a percentile."""
        percentiles = self.resolved.percentiles
        if not percentiles:
            return {}
        bounds = ", ".join(f"{name} is {value}" for name, value in percentiles.items())
        return {"profile": f"{bounds}; {PROFILE_HINT}"}


class FilterStage(ReduceStage[FilterConfig]):
    """Keep the good clips; reject the others with their reasons.

    With `kept`, the clips of an earlier training, a new clip never displaces one of those as the
    better duplicate: their files, and what was made of them, stay as they are. Clips in `accepted`
    are kept whatever the policy says (`videoar quarantine accept`).
    """

    name = "filter"
    version = 2
    consumes: ClassVar[Mapping[str, Port]] = {
        "clips": Port(CLIPS),
        "profile": Port(PROFILES, optional=True),
        "kept": Port(CLIPS, optional=True),
        "accepted": Port(REJECTS, optional=True),
    }
    produces = CLIPS
    config_type = FilterConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Decide on all clips, then yield one output per input file.

        Raises:
            ConfigError: a bound is a percentile, and there is no profile of its score.
            GateError: there is no clip at all.
        """
        clips = inputs["clips"]
        prepare()
        if not clips.files:
            raise GateError("filter", "the input has no clips", "see the rejects of ingest")
        policy = self.config.resolved
        bounds = policy.resolve_percentiles(_percentiles(inputs.get("profile")))
        needs_embedding = self.config.dedup_semantic is not None
        rules = _PolicyOnFiles(clips, bounds, policy.allowed, needs_embedding=needs_embedding)
        # before the loop: a clip may repeat one of a later file
        repeats = self._repeats(rules, inputs.get("kept"), context.dask_scheduler)
        accepted = {row["item_id"] for row in _available(inputs.get("accepted"), "item_id")}
        metrics = {f"bound/{name}": value for name, value in bounds.items() if value is not None}
        for index, file in enumerate(clips.files):
            # read once more instead of kept: a corpus need not fit into memory
            output = _split(clips.read_file(file), rules(index), repeats.get(index, {}), accepted)
            yield Output(output.rows, output.rejects, {**output.metrics, **metrics})
            metrics = {}  # metrics of outputs are summed: bounds must be counted once

    def check(self, inputs: Inputs, output: pa.Table) -> CheckReport:
        """Check the kept rows with Great Expectations."""
        rows_in = inputs["clips"].rows
        # no check on single columns: the contract has them; these need the whole table or options
        checks = TableChecks(
            unique=("clip_id",),
            increasing=(("span_start_us", "span_end_us"),),
            values={"num_frames": tuple(range(5, _LONGEST_CLIP + 1, 4))},  # 1 + 4m, see ingest
            # at least one row, also if the fraction is 0: an empty corpus trains nothing
            rows=(max(1, round(self.config.min_keep_fraction * rows_in)), rows_in),
        )
        return check(output, load_contract(self.produces), checks)

    def _repeats(
        self, rules: "_PolicyOnFiles", earlier: Snapshot | None, scheduler: DaskScheduler | None
    ) -> dict[int, dict[int, tuple[str, str]]]:
        """Return, by file and row, the reason of a repeating clip and the id that it repeats.

        Only clips that meet the policy take part: a rejected clip must not displace a good one.
        """
        config, count = self.config, len(rules.clips.files)
        masks = [*([0] if config.dedup else []), *([MIRROR] if config.dedup_mirrored else [])]
        if not masks and config.dedup_semantic is None:
            return {}
        clips = candidates.Candidates.concatenate(
            map_partitions(partial(_candidates, rules), count, scheduler)
        )
        preferred = [seed_from(row["clip_id"]) for row in _available(earlier, "clip_id")]
        order = clips.order(preferred)
        numbers = clips.rows["number"][order]
        repeats = duplicates.find_repeats(clips, order, config.dedup_hamming, masks)
        del clips
        if config.dedup_semantic is not None:
            _require_one_model(rules, scheduler)
            ranks = np.setdiff1d(np.arange(len(numbers)), np.fromiter(repeats, np.int64))
            compare = partial(semantic_duplicates.semantic_pairs, cosine=config.dedup_semantic)
            blocks = partial(_embeddings, rules, _by_file(numbers[ranks], ranks, count))
            pairs = all_pairs(blocks, count, _concatenate, compare, scheduler)
            found = semantic_duplicates.pick_semantic(np.concatenate(pairs))
            repeats |= {rank: (duplicates.DUPLICATE_SEMANTIC, kept) for rank, kept in found.items()}
        ids = _read_ids(rules.clips, {int(numbers[kept]) for _, kept in repeats.values()})
        # outputs are made file by file, so the result is needed by file
        by_file: dict[int, dict[int, tuple[str, str]]] = {}
        for rank, (reason, better) in repeats.items():
            kept = better
            while kept in repeats:  # a later search rejected it
                kept = repeats[kept][1]
            file, row = divmod(int(numbers[rank]), 1 << _ROW_BITS)
            by_file.setdefault(file, {})[row] = (reason, ids[int(numbers[kept])])
        return by_file


def _available(snapshot: Snapshot | None, column: str) -> Iterable[Row]:
    """Return the rows of an optional input that no takedown has removed."""
    return snapshot.available_rows([column]) if snapshot else ()


def _percentiles(profile: Snapshot | None) -> dict[str, list[float]] | None:
    if profile is None:
        return None
    rows = profile.table(["column", "percentiles"]).to_pylist()
    return {row["column"]: row["percentiles"] for row in rows}


class _PolicyOnFiles:
    """Applies the policy to the clips of one file; pickled to the workers of dask."""

    def __init__(
        self, clips: Snapshot, bounds: Bounds, allowed: Allowed, *, needs_embedding: bool
    ) -> None:
        self.clips, self.bounds, self.allowed = clips, bounds, allowed
        self.needs_embedding = needs_embedding

    def __call__(self, index: int) -> list[list[str]]:
        """Return the reasons to reject each row of one file."""
        file = self.clips.files[index]
        rows = self.clips.read_file(file, list(COLUMNS)).to_pylist()
        reasons = [evaluate(row, self.bounds, self.allowed) for row in rows]
        if self.needs_embedding:
            embedded = self.clips.read_file(file, ["embedding"])["embedding"].is_valid().to_pylist()
            for of_row, is_embedded in zip(reasons, embedded, strict=True):
                if not is_embedded and SCORE_MISSING not in of_row:
                    of_row.append(SCORE_MISSING)
        return reasons

    def accepted(self, index: int, columns: Iterable[str]) -> tuple[np.ndarray, pa.Table]:
        """Return number and columns of the rows of one file that meet the policy."""
        table = self.clips.read_file(self.clips.files[index], list(columns))
        rows = np.flatnonzero([not reasons for reasons in self(index)])
        return index << _ROW_BITS | rows, table.take(rows)


def _candidates(rules: _PolicyOnFiles, index: int) -> candidates.Candidates:
    return candidates.Candidates.read(*rules.accepted(index, candidates.COLUMNS))


def _by_file(numbers: np.ndarray, ranks: np.ndarray, count: int) -> list[Block]:
    """Return numbers of rows, sorted, and their ranks, for each file."""
    order = np.argsort(numbers)
    edges = np.searchsorted(numbers[order], np.arange(1, count) << _ROW_BITS)
    return list(zip(np.split(numbers[order], edges), np.split(ranks[order], edges), strict=True))


def _embeddings(rules: _PolicyOnFiles, ranks: list[Block], index: int) -> Block:
    numbers, table = rules.accepted(index, ["embedding"])
    compared, of_compared = ranks[index]
    chosen = table.filter(np.isin(numbers, compared))["embedding"].to_pylist()
    return of_compared, np.array(chosen, dtype=np.float32)


def _concatenate(blocks: list[Block]) -> Block:
    # an empty block has no width: it cannot be concatenated with those that have
    filled = [block for block in blocks if len(block[0])] or blocks[:1]
    numbers, vectors = zip(*filled, strict=True)
    return np.concatenate(numbers), np.concatenate(vectors)


def _require_one_model(rules: _PolicyOnFiles, scheduler: DaskScheduler | None) -> None:
    """Check that all embeddings are of one model: others have no common space."""

    def models(index: int) -> set[str | None]:
        _, table = rules.accepted(index, ["embedding_model"])
        return set(table["embedding_model"].to_pylist())

    files = len(rules.clips.files)
    distinct = set[str | None]().union(*map_partitions(models, files, scheduler))
    if len(distinct) > 1:
        names = ", ".join(sorted(str(model)[:12] for model in distinct))
        what = f"embeddings of several models: {names}"
        raise ContractError(rules.clips.id, what, "embed all clips with one model")


def _read_ids(clips: Snapshot, numbers: set[int]) -> dict[int, str]:
    """Return the ids of the clips with the given row numbers."""
    ids: dict[int, str] = {}
    for index in sorted({number >> _ROW_BITS for number in numbers}):
        column = clips.read_file(clips.files[index], ["clip_id"])["clip_id"].to_pylist()
        ids |= {index << _ROW_BITS | position: clip_id for position, clip_id in enumerate(column)}
    return ids


def _split(
    table: pa.Table,
    reasons: list[list[str]],
    repeats: Mapping[int, tuple[str, str]],
    accepted: set[str],
) -> Output:
    """Split the rows of one file into kept and rejected ones."""
    rows = table.select(["clip_id", "source_id", "source_uri", *_SPAN]).to_pylist()
    is_rejected = [
        (bool(of_row) or i in repeats) and rows[i]["clip_id"] not in accepted
        for i, of_row in enumerate(reasons)
    ]
    kept = table.filter(pa.array([not rejected for rejected in is_rejected], pa.bool_()))
    rejected = [
        _reject(row, reasons[i], repeats.get(i)) for i, row in enumerate(rows) if is_rejected[i]
    ]
    if kept.num_rows + len(rejected) != table.num_rows:
        what = f"{table.num_rows} clips in, {kept.num_rows} kept + {len(rejected)} rejected out"
        raise ContractError("filter", what, "report this bug")
    # each clip counts once, under its first reason, so that the counts add up
    decisive = Counter(f"reject/{row['reasons'][0]}" for row in rejected)
    counts = {"clips_in": table.num_rows, "clips_kept": kept.num_rows, **decisive}
    schema = load_contract(REJECTS).arrow_schema
    return Output(kept, pa.Table.from_pylist(rejected, schema), counts)


def _reject(row: Row, reasons: list[str], repeat: tuple[str, str] | None) -> Row:
    reason, kept = repeat or (None, None)
    return {
        "item_id": row["clip_id"],
        "kind": "clip",
        "stage": FilterStage.name,
        "source_id": row["source_id"],
        "uri": row["source_uri"],
        # a clip that fails the policy is no duplicate: it took no part in the search
        "reasons": reasons or [reason],
        "detail": f"repeats {kept}" if repeat else None,
        "exit_kind": "policy",
        "retryable": False,
        **{name: row[name] for name in _SPAN},
    }
