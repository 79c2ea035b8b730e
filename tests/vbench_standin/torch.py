"""Stands in for torch, which takes seconds to import."""

from types import SimpleNamespace

__version__ = "stand-in"
cuda = SimpleNamespace(is_available=lambda: False)
device = str
