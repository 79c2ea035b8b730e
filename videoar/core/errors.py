"""The error tree.

Every error that the platform raises on purpose is one of these; catching `VideoARError` is the
documented way to catch them all. `exit_code` is what the command line returns, `retryable` is what
the engine (and nobody else) acts on.

    VideoARError                 1
    +- ConfigError               2   the user's file, key or argument
    +- ContractError             3   data breaks its contract
    +- GateError                 4   well formed, but not good enough, or the gate gave no answer
    +- StorageError              7   the store cannot be used
    |  +- SnapshotNotFoundError  2  a name that the user gave
    |  +- WithdrawnError
    |  +- SnapshotConflictError
    |  +- TransientStorageError      retryable
    +- ClusterUnknownError       8   the cluster cannot be reached: not a failure, not a success
    +- MediaError                3   one video; becomes a quarantine row, never stops a stage itself
    +- StageError                3   whatever escaped a stage
       +- WorkerLostError            retryable
"""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint: the closest known name, or all of them."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def one_line(error: object) -> str:
    """Return what an error says, with its line breaks and runs of spaces as single spaces."""
    return " ".join(str(error).split())


class VideoARError(Exception):
    """Say what went wrong in one line: `<file or key>: <what> (<what to do>)`.

    Args:
        where: file, key path, row or name that the message is about.
        what: what is wrong with it.
        hint: what the reader can do; left out when there is nothing to do.
    """

    exit_code = 1
    retryable = False

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        super().__init__(where, what, hint)  # all three, so that the error survives pickling
        self.where = where
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(VideoARError):
    """The user's file, key or argument cannot be used."""

    exit_code = 2


class ContractError(VideoARError):
    """Data breaks its contract."""

    exit_code = 3


class GateError(VideoARError):
    """Well formed but not good enough, or the gate gave no answer: nothing was published."""

    exit_code = 4


class StorageError(VideoARError):
    """The store cannot be reached, is full, denies access or lacks put-if-absent."""

    exit_code = 7


class SnapshotNotFoundError(StorageError):
    """No committed snapshot has this id or ref."""

    exit_code = 2  # somebody asked for a name that is not there; the store itself answers


class DamagedError(StorageError):
    """It is there, and its bytes are not those that were written."""


class WithdrawnError(StorageError):
    """It was there, and a take-down of its source has removed it: gone for good, not damaged."""


class SnapshotConflictError(StorageError):
    """Two writers raced for one create-once record, and the other one won with other content."""


class TransientStorageError(StorageError):
    """The store failed in a way that a later call may not."""

    retryable = True


class ClusterUnknownError(VideoARError):
    """The cluster gave no answer; nothing may be concluded from that."""

    exit_code = 8


class MediaError(VideoARError):
    """One video cannot be used; `code` is the typed reason of its quarantine row."""

    exit_code = 3

    def __init__(self, where: str, code: str, what: str) -> None:
        super().__init__(where, what)
        self.args = (where, code, what)
        self.code = code


class StageError(VideoARError):
    """Whatever escaped a stage, with the stage, the shard and the cause named."""

    exit_code = 3


class WorkerLostError(StageError):
    """The process that ran a shard or a rank is gone."""

    retryable = True
