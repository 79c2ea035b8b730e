"""Choose an evaluation set: real clips to compare with, and prompts with seeds to generate from.

A set that is frozen under a name stays as it is when new videos arrive, so that the scores of later
models are comparable with those of earlier ones.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from videoar.contracts.contract import load_contract
from videoar.contracts.names import CLIPS, EVALSETS, PROMPTS
from videoar.core.errors import ContractError, SnapshotConflictError
from videoar.core.ids import canonical_json, seed_from
from videoar.core.names import NAME_PATTERN
from videoar.core.types import Row
from videoar.evaluation.evalset import CLIP, FLOOR, PROMPT, REFERENCE, read_evalset
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Inputs, Output, Port, ReduceStage, StageConfig, runtime
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store
from videoar.training.prompts import PromptTemplates, stored_prompts

logger = logging.getLogger(__name__)


class _Candidate(NamedTuple):
    """Columns of `clips@1` that a clip is chosen by."""

    clip_id: str
    split: str
    source_id: str
    num_frames: int
    rate_fps: float


class EvalsetConfig(StageConfig, PromptTemplates):
    """Options of `evalset`; its templates decide which captions are one prompt."""

    num_reference: int = Field(default=64, ge=2)
    """Maximum number of real clips that samples are compared with."""
    min_reference: int = Field(default=2, ge=2)
    """Minimum number of these clips; with fewer there is no set."""
    num_floor: int | None = Field(default=None, ge=0)
    """Maximum number of further real clips, which show the distance of perfect samples; default:
    `num_reference`."""
    reference_split: Literal["train", "val", "all"] = "val"
    """Split of the reference; the floor has clips of the other one where this has too few. Against
    `train`, a model that memorizes its data scores best. `all`: clips that no model was trained
    on."""
    num_prompts: int | None = Field(default=None, ge=0)
    """Maximum number of prompts; by default 16 of captions, and all of the port `prompts`."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Samples of each prompt that has no seed."""
    min_samples: int = Field(default=0, ge=0)
    """Minimum number of samples in all: fewer prompts get more samples each."""
    seed: int = Field(default=0, ge=0)
    """Seed of the choice of clips and captions, and of every sample's own seed."""
    protocol: str = "default"
    """Name of the protocol that the set is for; part of the lock of its scores."""
    pin: str | None = runtime(None, pattern=NAME_PATTERN)
    """Ref to freeze the set under, unless a ref of this name exists."""


class EvalsetStage(ReduceStage[EvalsetConfig]):
    """Choose real clips, and prompts with seeds; or repeat a frozen set."""

    name = "evalset"
    consumes: ClassVar[Mapping[str, Port]] = {
        "clips": Port(CLIPS),
        "prompts": Port(PROMPTS, optional=True),
        "frozen": Port(EVALSETS, optional=True),
    }
    produces = EVALSETS
    config_type = EvalsetConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        """Yield one table: the rows of `frozen` if there is one, else those that are chosen."""
        if "frozen" in inputs:
            rows = read_evalset(inputs["frozen"])
        else:
            rows = [*self._clips(inputs["clips"]), *self._prompts(inputs)]
        counts = dict.fromkeys((REFERENCE, FLOOR, PROMPT), 0.0)
        for row in rows:
            counts[row["role"] or row["kind"]] += 1
        schema = load_contract(EVALSETS).arrow_schema
        yield Output(pa.Table.from_pylist(rows, schema), metrics=counts)

    def after_commit(self, output: Snapshot, store: Store, run_id: str) -> None:
        """Freeze the set under the name of the option `pin`; a ref that exists stays."""
        pin = self.config.pin
        if pin is None or store.refs.head(pin) is not None:
            return
        try:
            store.refs.advance(
                pin, output.id, expect=None, evidence={"frozen": True}, by_run=run_id
            )
            logger.info("froze %s as %s", output.id, pin)
        except SnapshotConflictError:  # another run has frozen its set
            logger.info("%s is %s, not the set of this run", pin, store.refs.head(pin))

    def _clips(self, clips: Snapshot) -> Iterator[Row]:
        """Yield the rows of the chosen clips, the reference first."""
        config = self.config
        roles = self._roles(clips)
        reference = [id_ for id_, role in roles.items() if role == REFERENCE]
        if len(reference) < (needed := config.min_reference):
            what = f"{len(reference)} clips of the split {config.reference_split}"
            what = f"has {what}, {needed} are needed"
            raise ContractError(clips.id, what, "add videos, or set reference_split")
        chosen = pa.array(list(roles))
        # full rows of the chosen clips only: there may be millions of others
        rows = {
            row["clip_id"]: row
            for table in clips.read()
            for row in table.filter(pc.is_in(table["clip_id"], chosen)).to_pylist()
        }
        for clip_id, role in roles.items():
            row = rows[clip_id]
            yield {
                **self._row(CLIP, clip_id, clips),
                "index": 0,
                "role": role,
                "source_id": row["source_id"],
                "clip_json": canonical_json(row),
                "label": row["label"],
            }

    def _roles(self, clips: Snapshot) -> dict[str, str]:
        """Return the roles of the chosen clips by id.

        All have the same number of frames and rate, the most frequent ones: distances of clips of
        other durations would measure those. No source is in both: clips of one video are alike.
        """
        config = self.config
        columns = clips.table(list(_Candidate._fields)).to_pydict()
        rows = [_Candidate(*values) for values in zip(*columns.values(), strict=True)]
        # sorted: of equal numbers, the order of files must not choose
        counts = Counter(sorted((row.num_frames, row.rate_fps) for row in rows))
        most = counts.most_common(1)[0][0] if counts else ()
        rows = [row for row in rows if (row.num_frames, row.rate_fps) == most]
        # a hash per clip: new clips do not change the order of the others
        rows.sort(key=lambda row: seed_from("clip", config.seed, row.clip_id))
        split, num, num_floor = config.reference_split, config.num_reference, config.num_floor
        held_out = [row for row in rows if split in {"all", row.split}]
        others = [row for row in rows if split not in {"all", row.split}]
        seen = {row.source_id for row in held_out[:num]}
        floor = [row for row in (*held_out[num:], *others) if row.source_id not in seen]
        floor = floor[: num if num_floor is None else num_floor]
        roles = dict.fromkeys((row.clip_id for row in held_out[:num]), REFERENCE)
        return roles | dict.fromkeys((row.clip_id for row in floor), FLOOR)

    def _prompts(self, inputs: Inputs) -> Iterator[Row]:
        """Yield a row per sample to generate."""
        config = self.config
        origin = inputs.get("prompts", inputs["clips"])
        if "prompts" in inputs:
            prompts = list(stored_prompts(origin))[: config.num_prompts]
        elif config.num_prompts == 0:
            return
        else:
            prompts = config.prompts_of(origin, config.seed, config.num_prompts)
        written = [{**row, "written": row["prompt"]} for row in prompts]
        num = max(config.samples_per_prompt, math.ceil(config.min_samples / max(1, len(written))))
        for row in config.samples(written, config.seed, num):
            yield {
                **self._row(PROMPT, row["prompt_id"], origin),
                **{key: row[key] for key in ("index", "label", "seed")},
                "prompt": row["written"],  # `generate` applies the templates of the model
            }

    def _row(self, kind: str, item_id: str, origin: Snapshot) -> Row:
        empty = dict.fromkeys(load_contract(EVALSETS).arrow_schema.names)
        common = {"snapshot": origin.id, "protocol": self.config.protocol}
        return {**empty, **common, "kind": kind, "item_id": item_id}
