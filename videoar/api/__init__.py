"""One function per verb: what the command line, the jobs and notebooks call.

    from videoar import api

    store = api.open_store()
    run = api.run(store, Path("pipelines/quickstart.yaml"), target="inline")
    api.show(store, "model")["metrics"]

Names of runs and snapshots are those that the command line takes (`videoar.records.names`). Errors
are `VideoARError`s. Importing this module loads neither Ray nor torch nor Arrow: each function
imports what it needs, so that `videoar --help` stays fast.
"""

from typing import TYPE_CHECKING

from videoar.api.data import (
    diff,
    export,
    lineage,
    quarantine,
    schema,
    show,
    stages,
    validate,
    validate_pipeline,
)
from videoar.api.models import gate, generate, load, promote, report, report_path, rollback
from videoar.api.ops import bench, doctor, forget, open_store
from videoar.api.runs import (
    Document,
    Watch,
    cancel,
    explain,
    logs,
    ls,
    make_engine,
    plan,
    progress,
    resume,
    run,
    status,
)

# `X as X` re-exports a name for type checkers (PEP 484)
if TYPE_CHECKING:  # types of arguments and results, for annotations
    from videoar.admin.doctor import Check as Check
    from videoar.admin.loaded_model import LoadedModel as LoadedModel
    from videoar.admin.validate import Mistake as Mistake
    from videoar.bench.result import BenchResult as BenchResult
    from videoar.pipeline.stage_reference import StageReference as StageReference
    from videoar.records.run_record import Run as Run
    from videoar.records.run_record import StageRun as StageRun
    from videoar.runner.execute import Execution as Execution
    from videoar.runner.plan import StagePlan as StagePlan
    from videoar.storage.store import Store as Store

__all__ = [
    "Document", "Watch", "bench", "cancel", "diff", "doctor", "explain", "export", "forget", "gate",
    "generate", "lineage", "load", "logs", "ls", "make_engine", "open_store", "plan", "progress",
    "promote", "quarantine", "report", "report_path", "resume", "rollback", "run", "schema", "show",
    "stages", "status", "validate", "validate_pipeline",
]  # fmt: skip
