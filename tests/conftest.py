"""Fixtures that several kinds of tests share."""

import logging
import os
from pathlib import Path

import hypothesis
import pytest

from tests.support.s3_server import moto_server, s3_server, seaweed_server
from videoar.storage.store import Store, open_store

__all__ = ["moto_server", "s3_server", "seaweed_server"]

# inherited by child processes: what waits for the end of a lease waits for four seconds, not 20
os.environ["VIDEOAR_LEASE_TTL_S"] = "4"

# The time of an example depends on the load of the machine: a deadline would fail at random.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a folder."""
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture(autouse=True)
def reset_logger():
    """Reset the logger that a command has configured: its stderr is closed after the test."""
    yield
    logger = logging.getLogger("videoar")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
