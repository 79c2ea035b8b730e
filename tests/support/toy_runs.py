"""Runs of the toy stages in this process: a store with every kind of id, in a second."""

from pathlib import Path

from tests.support.toys import REGISTRY
from videoar.engine.inline import InlineEngine
from videoar.pipeline.spec import parse_pipeline
from videoar.records.run_record import Run
from videoar.runner.execute import Execution
from videoar.storage.store import Store


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


def toy_run(store: Store, videos: Path, **options: dict | None) -> Run:
    spec = parse_pipeline(toy_document(videos, **options), "toy.yaml", REGISTRY)
    return Execution(spec, store, InlineEngine(), registry=REGISTRY).run()
