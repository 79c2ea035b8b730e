"""The situation of docs/operators.md: a nightly retraining that has not promoted, of toy stages."""

from datetime import datetime, timedelta
from pathlib import Path

import yaml

from tests.support.toy_runs import write_videos
from tests.support.toys import RATED
from videoar import api
from videoar.storage.store import Store


def write_retrain(folder: Path, steps: int) -> Path:
    """Write a pipeline with some of the stages of a retraining; `rate` scores steps / 10."""
    stages = {
        "clips": {"stage": "upper", "from": {"sources": "videos"}},
        "good": {"stage": "pick", "from": {"sources": "clips"}},
        "model": {"stage": "count", "from": {"sources": "good"}, "steps": steps},
        "samples": {"stage": "draw", "from": {"model": "model"}},
        "scores": {"stage": "rate", "from": {"model": "model", "samples": "samples"}},
        "release": {
            "stage": "promote",
            "from": {"model": "model", "scores": "scores"},
            "rules": [{"metric": RATED, "min": 0.2}, {"metric": RATED, "max_regression": 0.1}],
        },
    }  # fmt: skip
    document = {
        "pipeline": "retrain",
        "trigger": {"cron": "0 3 * * *"},
        "concurrency": "queue",
        "inputs": {"videos": str(folder / "videos")},
        "stages": stages,
    }
    path = folder / "retrain.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def two_nights(store: Store, folder: Path, now: datetime) -> None:
    """Tick in a night that promotes, and in the night before `now`, with less training."""
    night = now.replace(hour=3, minute=0, second=1, microsecond=0)
    night -= timedelta(days=night > now)
    write_videos(folder / "videos", "a.mp4")
    path = write_retrain(folder, steps=8)
    for before in (timedelta(days=1, hours=12), timedelta(days=1)):
        api.schedule_tick(store, [path], target="inline", now=night - before)
    write_videos(folder / "videos", "b.mp4", "bad.mp4")
    write_retrain(folder, steps=4)
    api.schedule_tick(store, [path], target="inline", now=night)
