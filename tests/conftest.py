"""Fixtures that several kinds of tests share."""

import logging

import hypothesis
import pytest

from tests.support.s3_server import moto_server, s3_server

__all__ = ["moto_server", "s3_server"]

# An example's time says more about the load of the machine than about the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def logger_as_it_was():
    """Undo what a command sets on the logger: its stderr is closed after the test."""
    yield
    logger = logging.getLogger("videoar")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
