"""Names that people choose and the platform writes into keys: pipelines, stages, inputs.

A stage's name becomes a dataset, hence a prefix of the store, and its rejected rows become the
dataset `<name>.rejects`. Without dots in names no stage can collide with the dataset of another's
rejects; without upper case two names cannot be one folder on a case-insensitive file system.
"""

import re

MAX_NAME_CHARS = 63
"""As for labels in Kubernetes, so that every name fits there."""
NAME_PATTERN = rf"^[a-z0-9][a-z0-9_-]{{0,{MAX_NAME_CHARS - 1}}}$"
"""Starts with a letter or digit: a leading `-` would read as an option on a command line."""
NAME_HINT = f"up to {MAX_NAME_CHARS} of a-z, 0-9, _ and -, the first a letter or digit"


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a pipeline, stage or input."""
    return re.fullmatch(NAME_PATTERN.strip("^$"), text) is not None
