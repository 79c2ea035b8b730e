"""The typed reasons for which one source file is quarantined.

A code is all that policy, retries and reports act on; the text beside it is for people.
"""

from typing import Literal, get_args

Code = Literal[
    "EMPTY",
    "NOT_VIDEO",
    "CONTAINER_DENIED",
    "CODEC_DENIED",
    "PLAYLIST",
    "TOO_LARGE_DIM",
    "TOO_LONG",
    "TOO_SHORT",
    "NO_VIDEO_STREAM",
    "TRUNCATED",
    "CORRUPT",
    "TIMEOUT",
    "MEM",
    "CRASH",
    "IO_TRANSIENT",
    "IO_PERMANENT",
    "DUPLICATE_EXACT",
    "FORGOTTEN",
]
CODES: tuple[str, ...] = get_args(Code)
RETRYABLE = frozenset({"IO_TRANSIENT", "TIMEOUT", "MEM"})
_EXIT_KINDS = {"TIMEOUT": "timeout", "MEM": "rlimit", "CRASH": "signal", "TOO_SHORT": "policy"}
_EXIT_KINDS |= {"TOO_LONG": "policy", "TOO_LARGE_DIM": "policy", "DUPLICATE_EXACT": "policy"}
_EXIT_KINDS |= {"FORGOTTEN": "policy"}


def exit_kind(code: str) -> str:
    """Return how an attempt that ended with this code ended, in the words of `rejects@1`."""
    return _EXIT_KINDS.get(code, "exception")
