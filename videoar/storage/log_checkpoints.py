"""Checkpoints of Delta logs: files that delta-rs derives from a log, to load it faster.

All versions of a log are kept, so a checkpoint that cannot be read can be removed, together with
`_last_checkpoint`: delta-rs takes one that names a missing checkpoint for a damaged table.
"""

import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from videoar.core.errors import one_line
from videoar.storage import layout
from videoar.storage.object_store import ObjectStore
from videoar.storage.reader import UNREADABLE


def damaged_checkpoints(objects: ObjectStore, dataset: str) -> Iterator[tuple[str, str]]:
    """Yield the keys of what cannot be read, and why; each checkpoint is read as a whole."""
    last, readable = layout.last_checkpoint_key(dataset), False
    # the hint must not outlive the checkpoint
    hinted = _hinted_version(objects, last)
    for info in objects.list(layout.log_prefix(dataset)):
        if not layout.is_log_checkpoint(info.key):
            continue
        try:
            file = pq.ParquetFile(pa.BufferReader(objects.get(info.key)))
            for group in range(file.num_row_groups):
                file.read_row_group(group)
        except UNREADABLE as error:
            yield info.key, one_line(error)
        else:
            readable = readable or layout.version_of_log(info.key) == hinted
    if hinted is not None and not readable:
        yield last, f"names the checkpoint of version {hinted}, which cannot be read"


def _hinted_version(objects: ObjectStore, key: str) -> int | None:
    """Return the version that `_last_checkpoint` names; None if delta-rs ignores the file."""
    try:
        version = json.loads(objects.find(key) or b"{}")["version"]
    except (ValueError, KeyError, TypeError):
        return None
    return version if isinstance(version, int) else None
