"""Checks of the source tree that `make check` runs beside the linters."""
