"""Fixtures of the integration tests."""

from tests.s3_server import moto_server, s3_server

__all__ = ["moto_server", "s3_server"]
