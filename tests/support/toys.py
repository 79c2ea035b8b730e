"""Toy stages of all three shapes on the real contracts, for tests of the runner alone.

`upper` (map) refuses names with a "bad" in them, and so does `served`, which asks for Ray Serve;
`count` (loop) counts to `steps` with checkpoints; `gang` (loop) has a rank that fails; `pick`
(reduce) keeps rows up to a size; `judge` (reduce) makes a gate decision; `draw` (reduce) makes a
sample of a model; `rate` (reduce) scores one with a number that is given, or a tenth of its
steps; `promote` is the real stage.
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from videoar.contracts.contract import load_contract
from videoar.core.crash_points import crash_point
from videoar.core.errors import ConfigError, GateError
from videoar.core.ids import digest_json
from videoar.evaluation.scorecard import score_row
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import (
    Inputs,
    LoopStage,
    Mapper,
    MapStage,
    Output,
    Port,
    RankContext,
    ReduceStage,
    Shard,
    StageConfig,
    publish_gate,
    runtime,
)
from videoar.stages.promote import apply_promotion, decided_against, decision_columns
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store

NAMES = ("upper", "served", "pick", "count", "gang", "judge", "draw", "rate")
REGISTRY = {name: f"tests.support.toys:{name.capitalize()}" for name in NAMES}
REGISTRY["promote"] = "videoar.stages.promote:PromoteStage"
RATED = "rendered/colour_acc"


class UpperConfig(StageConfig):
    suffix: str = ""
    nice: int = runtime(0)


class Upper(MapStage[UpperConfig]):
    name = "upper"
    consumes = {"sources": Port("sources@1")}
    produces = "sources@1"
    config_type = UpperConfig
    primary = "sources"

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        rows = inputs["sources"].table().to_pylist()
        return [Shard(i, digest_json(row), rows=(row,)) for i, row in enumerate(rows)]

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        def mapper(batch: pa.Table) -> Output:
            rows = batch.to_pylist()
            crash_point(f"mapping-{rows[0]['name']}")
            if any("explode" in row["name"] for row in rows):
                raise ValueError("boom")
            good = [row for row in rows if "bad" not in row["name"]]
            bad = [(row["name"], row["uri"]) for row in rows if "bad" in row["name"]]
            made = [{**row, "name": row["name"].upper() + self.config.suffix} for row in good]
            rejects = [
                {"item_id": name, "kind": "source", "stage": "upper", "uri": uri,
                 "reasons": ["BAD"], "retryable": False}
                for name, uri in bad
            ]  # fmt: skip
            return Output(
                pa.Table.from_pylist(made),
                pa.Table.from_pylist(rejects) if rejects else None,
                {"seen": float(len(rows))},
            )

        return mapper


class Served(Upper):
    name = "served"
    placement = "serve"


class PickConfig(StageConfig):
    at_most_bytes: int = 10_000


class Pick(ReduceStage[PickConfig]):
    name = "pick"
    consumes = {"sources": Port("sources@1")}
    produces = "sources@1"
    config_type = PickConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        table = inputs["sources"].table()
        crash_point("picking")
        keep = [size <= self.config.at_most_bytes for size in table["size_bytes"].to_pylist()]
        yield Output(table.filter(pa.array(keep)))


class CountConfig(StageConfig):
    steps: int = 6
    checkpoint_every: int = 2
    pause_s: float = runtime(0)
    """Before each step."""
    at_most: int = publish_gate(100)
    tells_start: bool = True
    """Whether the row has the step of the checkpoint that the last attempt began at."""


class Count(LoopStage[CountConfig]):
    name = "count"
    consumes = {"sources": Port("sources@1")}
    produces = "models@1"
    config_type = CountConfig

    def run(self, inputs: Inputs, context: StageContext, rank: RankContext) -> Output | None:
        folder = rank.scratch / "state"
        folder.mkdir()
        begin = rank.load_checkpoint(folder) or 0
        trace = (folder / "trace").read_text() if begin else ""
        for step in range(begin + 1, self.config.steps + 1):
            trace += f"{step} "
            crash_point(f"counting-{step}")
            time.sleep(self.config.pause_s)
            if step % self.config.checkpoint_every == 0:
                (folder / "trace").write_text(trace)
                rank.save_checkpoint(step, folder)
            metrics = {"loss": 1.0 / step}
            rank.report(step, self.config.steps, metrics, [{"step": step, **metrics}])
        if self.config.steps > self.config.at_most:
            raise GateError("count.at_most", f"{self.config.steps} steps are too many")
        schema = load_contract("models@1").arrow_schema
        return Output(
            pa.Table.from_pylist([self._row(context.store, folder, trace, begin)], schema)
        )

    def _row(self, store: Store, folder: Path, trace: str, begin: int) -> dict[str, object]:
        (folder / "trace").write_text(trace)
        return {
            "name": "count", "kind": "tokenizer", "digest": digest_json(trace),
            "config_json": "{}", "files": store.publish_folder(folder), "num_parameters": 1,
            "step": self.config.steps,
            "metrics": [("began_at", float(begin))] if self.config.tells_start else [],
            "history_json": '[{"step": 1, "loss": 1.0}]',
        }  # fmt: skip


class Gang(LoopStage[StageConfig]):
    """Ranks that add up their numbers; the second is killed once, then raises an error."""

    name = "gang"
    consumes = {"sources": Port("sources@1")}
    produces = "models@1"
    config_type = StageConfig

    def run(self, inputs: Inputs, context: StageContext, rank: RankContext) -> Output | None:
        import torch

        from videoar.training.collectives import all_reduce_sum

        attempt = context.store.ledger.append(f"attempts/{rank.index}", {})
        if rank.index and attempt == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        total = all_reduce_sum(torch.tensor([rank.index + 1.0])).item()
        if rank.index:
            raise ConfigError("gang", f"adds up to {total:g}")
        all_reduce_sum(torch.zeros(1))  # blocks: the other rank has raised
        return None


class Draw(ReduceStage[StageConfig]):
    name = "draw"
    consumes = {"model": Port("models@1")}
    produces = "samples@1"
    config_type = StageConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        (digest,) = inputs["model"].table(["digest"])["digest"].to_pylist()
        video = context.store.put_object(b"video", ".mp4")
        row = {
            "sample_id": digest[:32], "prompt": "p", "index": 0, "seed": 0, "model_digest": digest,
            "tokenizer_digest": "t", "sampler_json": "{}", "steps": 1, "num_frames": 9,
            "rate_fps": 8.0, "width_px": 8, "height_px": 8, "video_key": video.key,
            "video_sha256": video.sha256, "video_size_bytes": video.size_bytes,
        }  # fmt: skip
        schema = load_contract("samples@1").arrow_schema
        yield Output(pa.Table.from_pylist([dict.fromkeys(schema.names) | row], schema))


class RateConfig(StageConfig):
    value: float | None = None
    num_samples: int = 16
    lock: str = ""


class Rate(ReduceStage[RateConfig]):
    name = "rate"
    consumes = {"model": Port("models@1"), "samples": Port("samples@1", optional=True)}
    produces = "scores@1"
    config_type = RateConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        (model,) = inputs["model"].table(["digest", "step"]).to_pylist()
        digest, value = model["digest"], self.config.value
        value = model["step"] / 10 if value is None else value
        row = score_row(
            RATED,
            value,
            lock={"toy": self.config.lock},
            num_samples=self.config.num_samples,
            details={"model": digest},
        )
        yield Output(pa.Table.from_pylist([row], load_contract("scores@1").arrow_schema))


class JudgeConfig(StageConfig):
    bound: float = 1.0


class Judge(ReduceStage[JudgeConfig]):
    name = "judge"
    consumes = {"model": Port("models@1")}
    produces = "releases@1"
    config_type = JudgeConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> Iterator[Output]:
        rows = float(inputs["model"].rows)
        passed = rows >= self.config.bound
        row = {
            "rule": f"rows >= {self.config.bound}", "metric": "rows", "value": rows,
            "bound": self.config.bound, "passed": passed, "reason": f"rows is {rows}",
            "candidate": inputs["model"].id, "ref": "champion", **decision_columns(context.state),
        }  # fmt: skip
        yield Output(pa.Table.from_pylist([row]))

    def state(self, store: Store, inputs: Inputs) -> Mapping[str, str]:
        return decided_against(store, "champion", inputs["model"].id)

    def after_commit(self, output: Snapshot, store: Store, run_id: str) -> None:
        apply_promotion(output, store, run_id)
