"""The command line (`app`) and its live display (`live`)."""

from videoar.cli.app import main

__all__ = ["main"]
