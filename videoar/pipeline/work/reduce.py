"""Runs a reduction, on any engine, and keeps the result of its checks."""

from typing import Any

import pyarrow as pa

from videoar.contracts.expectations import CheckReport
from videoar.core.crash_points import crash_point
from videoar.core.errors import GateError
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import ReduceStage
from videoar.pipeline.work.task import (
    StageTask,
    UsageMeter,
    WorkRecord,
    engine_boundary,
    find_record,
    merge,
    publish_record,
    write_output,
)
from videoar.storage.collection import CollectionWatch
from videoar.storage.layout import check_key, reduce_record_key
from videoar.storage.partitions import DaskScheduler
from videoar.storage.store import Store


def run_reduce(task: StageTask, dask_scheduler: DaskScheduler | None = None) -> WorkRecord:
    """Run a reduction: compute its tables, check them, write them, record them.

    Args:
        task: the stage run.
        dask_scheduler: see `StageContext`.

    Raises:
        GateError: the stage's checks failed. Their report is kept, the rows are not.
        StageError: the stage failed.
    """
    store = task.open_store()
    key = reduce_record_key(task.dataset, task.fingerprint)
    # a driver that was killed between this record and the commit left it finished
    if (existing := find_record(store, key)) is not None:
        return existing
    stage: ReduceStage[Any] = task.make_stage()
    meter, watch = UsageMeter(stage.config.resources.gpus), CollectionWatch(store)
    inputs = task.open_inputs(store)
    with engine_boundary(task, "reduction"):
        # all tables before the first file: the check needs every row, and a failed check writes
        # none
        state = task.fingerprint_parts.get("state", {})
        context = StageContext(store, dask_scheduler=dask_scheduler, state=state)
        outputs = list(stage.reduce(inputs, context))
        report = stage.check(inputs, pa.concat_tables([output.rows for output in outputs]))
    if report is not None:
        _publish_check(task, store, report)
    record = merge([write_output(task, store, stage.produces, output) for output in outputs])
    # optional inputs, such as a profile, are not what the reduction selects from
    rows_in = sum(s.rows for port, s in inputs.items() if not stage.consumes[port].optional)
    crash_point("reduce-written")
    record = record.model_copy(update={"rows_in": rows_in, "usage": meter.read()})
    return publish_record(store, key, record, watch)


def _publish_check(task: StageTask, store: Store, report: CheckReport) -> None:
    """Keep the report of a check, passed or not; raise if it did not pass."""
    key = check_key(task.dataset, task.fingerprint)
    expectations = [expectation.model_dump() for expectation in report.expectations]
    store.ledger.create(key, {"success": report.success, "expectations": expectations})
    if not report.success:
        hint = f"all expectations: {store.url}/{key}"
        raise GateError(f"stage {task.dataset}", "; ".join(report.failures), hint)


def find_check(store: Store, dataset: str, fingerprint: str) -> dict[str, Any] | None:
    """Return the result of a check, `{success, expectations}`; None if there was none."""
    return store.ledger.read(check_key(dataset, fingerprint))
