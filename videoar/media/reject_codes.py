"""Typed reasons for which one source or clip is rejected, and the rows that record them.

Policies, retries and reports act on the code; the text beside it (`detail`) is for people. Codes
are stored values: add new ones, never rename one.
"""

from typing import Literal, get_args

from videoar.core.errors import MediaError
from videoar.core.types import Row

Code = Literal[
    "EMPTY", "NOT_VIDEO", "CONTAINER_DENIED", "CODEC_DENIED", "PLAYLIST", "TOO_LARGE_DIM",
    "TOO_LONG", "TOO_SHORT", "NO_VIDEO_STREAM", "TRUNCATED", "CORRUPT", "TIMEOUT", "MEM", "CRASH",
    "IO_TRANSIENT", "IO_PERMANENT", "DUPLICATE_EXACT", "FORGOTTEN", "ORIENTATION_DENIED",
    "COLOR_DENIED", "ENCRYPTED",
]  # fmt: skip
CODES: tuple[str, ...] = get_args(Code)
_EXIT_KINDS = {
    "TIMEOUT": "timeout",
    "MEM": "rlimit",
    "CRASH": "signal",
    **dict.fromkeys(
        ("TOO_SHORT", "TOO_LONG", "TOO_LARGE_DIM", "DUPLICATE_EXACT", "FORGOTTEN"), "policy"
    ),
}


def reject_row(
    error: MediaError, *, item_id: str, kind: str, stage: str, source_id: str | None, uri: str
) -> Row:
    """Return the row of `rejects@1` for a source or clip that cannot be used."""
    return {
        "item_id": item_id,
        "kind": kind,
        "stage": stage,
        "source_id": source_id,
        "uri": uri,
        "reasons": [error.code],
        "detail": error.what,
        "exit_kind": _EXIT_KINDS.get(error.code, "exception"),
        "retryable": error.retryable,
    }
