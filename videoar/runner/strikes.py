"""Which shards may have ended the drivers of a run, or kept them waiting until a time limit.

An engine in the driver's process ends with it, so nothing of what did it is recorded. What is
recorded is how much was done when a stage began: if it began several times in a row with equally
much, then its first unfinished shards are what was being worked on each time.
"""

from collections.abc import Sequence
from typing import Any

from videoar.pipeline.stage import MapStage, Shard
from videoar.records.run import ShardCounts
from videoar.records.run_record import events_of
from videoar.storage.store import Store

_STRIKES = 2
_UNDECIDED = {"RUNNING", "WAITING", "TIMED_OUT"}
"""Last recorded states of an attempt that was killed, or that did not go on."""


def suspects(
    store: Store, run_id: str, stage: MapStage[Any], name: str, missing: Sequence[Shard]
) -> Sequence[Shard]:
    """Return the unfinished shards that must run isolated; none in a run that goes forward.

    Args:
        store: where.
        run_id: the run; its newest event of the stage is of the attempt that asks.
        stage: what the shards are of.
        name: of the stage in the run.
        missing: the unfinished shards, in order.
    """
    strikes, last, before = 0, "", ShardCounts()
    for event in events_of(store, run_id):
        if event["kind"] != "stage" or event["stage"]["name"] != name:
            continue
        counts = ShardCounts.model_validate(event["stage"]["shards"])
        if "parts" in event and counts.planned:  # an attempt begins
            # what an attempt did not get past is what the next one finds undone
            was_stuck, is_equal = last in _UNDECIDED, counts == before
            strikes, before = was_stuck * (strikes * is_equal + 1), counts
        last = event["stage"]["status"]
    at_once = stage.config.resources.max_workers * stage.overlap
    return missing[:at_once] if strikes >= _STRIKES else ()
