"""Fixtures that several kinds of tests share."""

from tests.s3_server import moto_server, s3_server

__all__ = ["moto_server", "s3_server"]
