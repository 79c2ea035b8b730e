"""Options that are paths of local files or folders.

They are made absolute when a pipeline is loaded: a run that is resumed from another directory, or a
worker with a working directory of its own, would otherwise read other files under the same name.
Such options stay out of the fingerprint; what is in it is the content, by the stage's `tools`.
"""

from pathlib import Path
from typing import Annotated

from pydantic import WithJsonSchema

from videoar.core.types import Json
from videoar.pipeline.options import Option

LocalPath = Annotated[str, WithJsonSchema({"type": "string", "format": "path"})]
"""A path."""


def path_or(*names: str) -> WithJsonSchema:
    """Annotate an option that is one of some names, or else a path."""
    path = {"type": "string", "format": "path"}
    return WithJsonSchema({"anyOf": [{"type": "string", "enum": list(names)}, path]})


def with_absolute_paths(value: Json, option: Option | None, directory: Path) -> Json:
    """Return the value of an option with relative paths in it resolved against a directory."""
    # "" means no file; joined with the directory it would become the directory
    if option is None or not value:
        return value
    if isinstance(value, str):
        is_path = any(variant.get("format") == "path" for variant in option.variants)
        # an absolute path replaces the directory; names such as `captions` or `default` are no
        # files
        return str(directory / value) if is_path and value not in option.choices else value
    if isinstance(value, dict):
        return {k: with_absolute_paths(v, option.child(k), directory) for k, v in value.items()}
    if isinstance(value, list):
        return [with_absolute_paths(v, option.child(i), directory) for i, v in enumerate(value)]
    return value
