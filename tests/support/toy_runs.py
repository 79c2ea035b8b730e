"""Runs of the toy stages: a store with every kind of id, in a second.

`python -m tests.support.toy_runs STORE_URL PIPELINE RUN_ID` does one in a process of its own.
"""

import sys
from pathlib import Path

import yaml

from tests.support.child_process import preload
from tests.support.toys import REGISTRY
from videoar.engine.inline import InlineEngine
from videoar.pipeline.spec import parse_pipeline
from videoar.records.run import Run
from videoar.runner.execute import Execution, resume_spec
from videoar.storage.store import Store, open_store

preload(__name__)


def write_videos(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x" * 10)
    return folder


def toy_document(videos: Path, **options: dict | None) -> dict:
    """Return the pipeline with options added to its stages; None leaves a stage out."""
    stages = {
        "big": {"stage": "upper", "from": {"sources": "videos"}},
        "few": {"stage": "pick", "from": {"sources": "big"}},
        "model": {"stage": "count", "from": {"sources": "few"}},
        "gate": {"stage": "judge", "from": {"model": "model"}},
    }
    for name, extra in options.items():
        stages[name] = stages.get(name, {}) | (extra or {})
        if extra is None:
            del stages[name]
    return {"pipeline": "toy", "inputs": {"videos": str(videos)}, "stages": stages}


def execute(
    store: Store, document: dict, run_id: str = "", *, wait: bool = False, **options
) -> Run:
    """Run a pipeline of toy stages; `options` are those of `Execution.run`."""
    spec = parse_pipeline(document, "toy.yaml", REGISTRY)
    ids = {"run_id": run_id} if run_id else {}
    execution = Execution(spec, store, InlineEngine(), registry=REGISTRY, wait=wait, **ids)
    return execution.run(**options)


def toy_run(store: Store, videos: Path, **options: dict | None) -> Run:
    return execute(store, toy_document(videos, **options))


def resume(store: Store, run_id: str) -> Run:
    spec = resume_spec(run_id, store, REGISTRY)
    return Execution(spec, store, InlineEngine(), run_id=run_id, registry=REGISTRY).run()


def execute_at(store_url: str, document: dict, run_id: str) -> None:
    """Open the store and run, in a child process."""
    execute(open_store(store_url), document, run_id)


if __name__ == "__main__":
    execute_at(sys.argv[1], yaml.safe_load(Path(sys.argv[2]).read_text()), sys.argv[3])
