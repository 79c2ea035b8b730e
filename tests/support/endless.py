"""`python -m tests.support.endless ...`: the command line, with stages that never end.

One of each shape. Each piece of work appends to the log `begun` of the ledger, then waits.
"""

import time
from collections.abc import Sequence
from typing import NoReturn

from videoar.cli import main
from videoar.core.ids import digest_json
from videoar.pipeline.context import StageContext
from videoar.pipeline.registry import BUILTIN
from videoar.pipeline.stage import (
    Inputs,
    LoopStage,
    Mapper,
    MapStage,
    Port,
    RankContext,
    ReduceStage,
    Shard,
    StageConfig,
)


def wait(context: StageContext) -> NoReturn:
    context.store.ledger.append("begun", {})
    while True:
        time.sleep(0.1)


class Map(MapStage[StageConfig]):
    name = "endless_map"
    consumes = {"sources": Port("sources@1")}
    produces = "sources@1"
    config_type = StageConfig
    primary = "sources"

    def shards(self, inputs: Inputs) -> Sequence[Shard]:
        return [Shard(i, digest_json(i)) for i in range(4)]

    def open(self, inputs: Inputs, context: StageContext) -> Mapper:
        return lambda batch: wait(context)


class Serve(Map):
    name = "endless_serve"
    placement = "serve"


class Loop(LoopStage[StageConfig]):
    name = "endless_loop"
    consumes = {"sources": Port("sources@1")}
    produces = "models@1"
    config_type = StageConfig

    def run(self, inputs: Inputs, context: StageContext, rank: RankContext) -> NoReturn:
        wait(context)


class Reduce(ReduceStage[StageConfig]):
    name = "endless_reduce"
    consumes = {"sources": Port("sources@1")}
    produces = "sources@1"
    config_type = StageConfig

    def reduce(self, inputs: Inputs, context: StageContext) -> NoReturn:
        wait(context)


if __name__ == "__main__":
    # named by module: in `__main__`, workers do not find them
    for shape in ("Map", "Serve", "Loop", "Reduce"):
        BUILTIN[f"endless_{shape.lower()}"] = f"tests.support.endless:{shape}"
    main()
