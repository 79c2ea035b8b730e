"""Schedules of toy pipelines: a store, ticks at any time, and runs that cost nothing."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import yaml

from tests.support.child_process import preload
from tests.support.toys import REGISTRY, Upper
from videoar.api.schedule import LocalLauncher
from videoar.core.errors import StageError
from videoar.pipeline.spec import PipelineSpec, load_pipeline
from videoar.schedule.tick import Outcome, Ticker
from videoar.storage.store import Store, open_store

preload(__name__)


class FakeLauncher:
    """Runs that end at once as `ends` says; `launched` has their ids in order."""

    def __init__(self, ends: str = "SUCCEEDED") -> None:
        self.launched: list[str] = []
        self.cancelled: list[str] = []
        self.status: dict[str, str] = {}
        self.ends = ends
        self.started_at = 1793491200.0  # 2026-11-01

    def find(self, run_id: str):
        status = self.status.get(run_id)
        if status is None:
            return None
        return SimpleNamespace(
            run_id=run_id, status=status, error="boom" if status == "FAILED" else None, inputs={},
            started_at=self.started_at, seconds=0.0,
        )  # fmt: skip

    def launch(self, spec: PipelineSpec, run_id: str, cause: dict) -> None:
        self.launched.append(run_id)
        self.status[run_id] = self.ends
        if self.ends == "FAILED":
            raise StageError("stage big", "boom")

    def cancel(self, run_id: str) -> None:
        self.cancelled.append(run_id)
        self.status[run_id] = "CANCELLED"


def write_pipeline(folder: Path, name: str = "toy", **keys: object) -> Path:
    """Write a pipeline of one toy stage on the folder's videos, with more top-level keys."""
    stages = {"big": {"stage": "upper", "from": {"sources": "videos"}}}
    document = {"pipeline": name, "inputs": {"videos": str(folder / "videos")}, "stages": stages}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document | keys))
    return path


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def tick(store: Store, path: Path, launcher, now: datetime) -> list[Outcome]:
    return Ticker(load_pipeline(path, (), REGISTRY), store, launcher, now).tick()


def tick_in_child(store_url: str, path: str, times: Sequence[str]) -> None:
    """Tick with real runs in this process."""
    store = open_store(store_url)
    for now in times:
        tick(store, Path(path), LocalLauncher(store, "inline", REGISTRY), at(now))


def tick_slowly(store_url: str, path: str, times: Sequence[str]) -> None:
    """Do the same with a stage that takes minutes."""
    with patch.object(Upper, "open", lambda *_: [time.sleep(0.1) for _ in range(3000)]):
        tick_in_child(store_url, path, times)
