"""Fixtures that several kinds of tests share."""

import functools
import gc
import logging
import os
from pathlib import Path

import hypothesis
import pytest
import typer.main

from tests.support.s3_server import moto_server, s3_server, seaweed_server
from videoar.storage.store import Store, open_store

__all__ = ["moto_server", "s3_server", "seaweed_server"]

# inherited by child processes: what waits for the end of a lease waits for four seconds, not 20
os.environ["VIDEOAR_LEASE_TTL_S"] = "4"

# The time of an example depends on the load of the machine: a deadline would fail at random.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# Typer builds the parsers of all verbs again on every call, which takes longer than most calls.
typer.main.get_command = functools.cache(typer.main.get_command)

# What collection imports and creates stays to the end: the garbage collector would read all of it
# again and again, which takes half the CPU time of collection and a tenth of that of the tests.
gc.disable()


def pytest_collection_finish():
    """Collect garbage among the objects of tests only, and less often than by default (700)."""
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


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
    if logger.level != logging.NOTSET:  # setting it empties caches of all loggers
        logger.setLevel(logging.NOTSET)
    logger.propagate = True
