"""A writer that commits numbered snapshots, here or in a process of its own."""

import pyarrow as pa

from tests.support.child_process import preload, start
from videoar.core.types import Provenance
from videoar.storage import open_store

preload(__name__)


def _rows(name):
    size = pa.array([1], pa.int64())
    return pa.table({"uri": [name], "name": [name], "etag": [name], "size_bytes": size})


def commit_numbers(url, endpoint, numbers):
    """Commit one snapshot of two files per number: one of its own, one that all share."""
    dataset = open_store(url, endpoint=endpoint).dataset("videos", "sources@1")
    for number in numbers:
        provenance = Provenance(
            run_id="r", pipeline="p", stage="s", fingerprint=f"f{number}", code_version="c"
        )
        files = [dataset.write(_rows(f"own {number}")), dataset.write(_rows("shared"))]
        dataset.commit(files, provenance, {"number": number})


def start_writer(url, endpoint, numbers, **environment):
    """Start a process that commits these numbers."""
    return start(commit_numbers, url, endpoint, numbers, **environment)
