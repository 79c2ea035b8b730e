"""Fixtures that several kinds of tests share."""

import logging

import pytest

from tests.support.s3_server import moto_server, s3_server

__all__ = ["moto_server", "s3_server"]


@pytest.fixture(autouse=True)
def logger_as_it_was():
    """Undo what a command sets on the logger: its stderr is closed after the test."""
    yield
    logger = logging.getLogger("videoar")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
