"""One function per verb: what the command line, the jobs and notebooks call.

    from videoar import api

    store = api.open_store()
    run = api.run(store, Path("pipelines/quickstart.yaml"), target="inline")
    api.show(store, "model")["metrics"]

Names of runs and snapshots are those that the command line takes (`videoar.records.names`). Errors
are `VideoARError`s. Importing this module loads neither Ray nor torch nor Arrow: each function
imports what it needs, or is imported on first use, so that `videoar --help` stays fast.
"""

from typing import TYPE_CHECKING

from videoar.api.data import schema, stages
from videoar.api.models import compare, generate, load, report, report_index, report_path, serve
from videoar.api.ops import bench, forget, gc_apply, gc_plan, open_store, store_migrate
from videoar.api.runs import (
    Document,
    Watch,
    cancel,
    evaluate,
    follow,
    ls,
    make_engine,
    plan,
    resume,
    run,
    status,
)
from videoar.api.schedule import (
    backfill,
    schedule_ls,
    schedule_pause,
    schedule_release,
    schedule_serve,
    schedule_tick,
)
from videoar.core.lazy import lazy_names

if TYPE_CHECKING:
    from videoar.admin.damage import Check as Check
    from videoar.admin.decisions import gate as gate
    from videoar.admin.doctor import diagnose as doctor
    from videoar.admin.export import export as export
    from videoar.admin.inspect import diff as diff
    from videoar.admin.inspect import explain as explain
    from videoar.admin.inspect import logs as logs
    from videoar.admin.inspect import rejected as quarantine
    from videoar.admin.inspect import show as show
    from videoar.admin.loaded_model import LoadedModel as LoadedModel
    from videoar.admin.promotion import promote as promote
    from videoar.admin.promotion import rollback as rollback
    from videoar.admin.quarantine import accept as quarantine_accept
    from videoar.admin.quarantine import retry as quarantine_retry
    from videoar.admin.refs import freeze as freeze
    from videoar.admin.refs import refs as refs
    from videoar.admin.store_copy import copy as store_copy
    from videoar.admin.store_copy import verify as store_verify
    from videoar.admin.strip import strip as strip
    from videoar.admin.validate import Mistake as Mistake
    from videoar.admin.validate import validate_pipeline as validate_pipeline
    from videoar.admin.validate import validate_snapshot as validate
    from videoar.admin.vbench import check as vbench_check
    from videoar.admin.vbench import export as vbench_export
    from videoar.admin.vbench import plan as vbench_plan
    from videoar.admin.vbench import setup as vbench_setup
    from videoar.bench.result import BenchResult as BenchResult
    from videoar.pipeline.stage_reference import StageReference as StageReference
    from videoar.records.lineage import lineage as lineage
    from videoar.records.openlineage import openlineage as openlineage
    from videoar.records.run import Run as Run
    from videoar.records.run import StageRun as StageRun
    from videoar.runner.execute import Execution as Execution
    from videoar.runner.plan import StagePlan as StagePlan
    from videoar.storage.store import Store as Store

__all__ = [
    "Document", "Watch", "backfill", "bench", "cancel", "compare", "diff", "doctor", "evaluate",
    "explain", "export", "follow", "forget", "freeze", "gate", "gc_apply", "gc_plan", "generate",
    "lineage", "load", "logs", "ls", "make_engine", "open_store", "openlineage", "plan", "promote",
    "quarantine", "quarantine_accept", "quarantine_retry", "refs", "report", "report_index",
    "report_path", "resume", "rollback", "run", "schedule_ls", "schedule_pause", "schedule_release",
    "schedule_serve", "schedule_tick", "schema", "serve", "show", "stages", "status", "store_copy",
    "store_migrate", "store_verify", "strip", "validate", "validate_pipeline", "vbench_check",
    "vbench_export", "vbench_plan", "vbench_setup",
]  # fmt: skip

__getattr__ = lazy_names(
    __name__,
    {
        "diff": "videoar.admin.inspect:diff",
        "doctor": "videoar.admin.doctor:diagnose",
        "explain": "videoar.admin.inspect:explain",
        "export": "videoar.admin.export:export",
        "freeze": "videoar.admin.refs:freeze",
        "gate": "videoar.admin.decisions:gate",
        "lineage": "videoar.records.lineage:lineage",
        "logs": "videoar.admin.inspect:logs",
        "openlineage": "videoar.records.openlineage:openlineage",
        "promote": "videoar.admin.promotion:promote",
        "quarantine": "videoar.admin.inspect:rejected",
        "quarantine_accept": "videoar.admin.quarantine:accept",
        "quarantine_retry": "videoar.admin.quarantine:retry",
        "refs": "videoar.admin.refs:refs",
        "rollback": "videoar.admin.promotion:rollback",
        "show": "videoar.admin.inspect:show",
        "store_copy": "videoar.admin.store_copy:copy",
        "store_verify": "videoar.admin.store_copy:verify",
        "strip": "videoar.admin.strip:strip",
        **{
            f"vbench_{name}": f"videoar.admin.vbench:{name}"
            for name in ("check", "export", "plan", "setup")
        },
        "validate": "videoar.admin.validate:validate_snapshot",
        "validate_pipeline": "videoar.admin.validate:validate_pipeline",
    },
)
