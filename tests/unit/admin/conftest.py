"""A store and two videos of its own for each test of administration."""

from pathlib import Path

import pytest

from tests.support.toy_runs import write_videos
from videoar import api
from videoar.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return api.open_store((tmp_path / "store").as_uri())


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos", "a.mp4", "b.mp4")
