"""The error tree.

Every error that videoar raises deliberately is one of these: catch `VideoARError` for all of them.
The command line returns `exit_code`. Engines retry errors that are `retryable`; other layers raise
them, each as often as the option `retries` of the stage allows for its `kind`. `code` is the reason
code in the record of a run; `docs/operators.md` has the remedy for each.

    VideoARError                 1
    +- ConfigError               2   the user's file, key or argument
    +- ContractError             3   data breaks its contract
    +- GateError                 4   well formed, but a gate failed or could not be evaluated
    +- LeaseHeldError            5   another process holds what only one may hold
    +- TimedOutError             6   a stage reached its time limit
    +- StorageError              7   the store cannot be used
    |  +- SnapshotNotFoundError  2  a name that the user gave
    |  +- DamagedError
    |  +- WithdrawnError
    |  +- SnapshotConflictError
    |  |  +- RefMovedError
    |  +- TransientStorageError      retryable
    |     +- ThrottledError          retryable
    |     +- DiskError               retryable
    |     +- SourceChangedError      retryable
    +- ClusterUnknownError       8   the cluster cannot be reached, the result is unknown
    +- MediaError                3   one video; becomes a reject row, does not stop a stage
    +- StageError                3   an unexpected exception of a stage
       +- WorkerLostError            retryable
       |  +- PreemptedError          retryable
       +- OutOfMemoryError           retryable
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

from videoar.core.redact import redact

ErrorKind = Literal["user", "data", "code", "infra", "preempt", "memory", "throttle"]
"""Whose fault an error is: of the user's file or argument, of data, of code, of a machine."""


_RETRYABLE_MEDIA = frozenset({"IO_TRANSIENT", "TIMEOUT", "MEM"})


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint: the closest known name, or all of them."""
    known = sorted(known)
    # difflib's default cutoff of 0.6 finds one or two typos in a short word
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def one_line(error: object) -> str:
    """Return the text of an error on one line, without secrets; white space becomes one space."""
    return redact(" ".join(str(error).split()))


class VideoARError(Exception):
    """An error of one line: `<file or key>: <what> (<what to do>)`, without secrets.

    Args:
        where: file, key path, row or name that the message is about.
        what: what is wrong with it.
        hint: what the user can do; left out if there is nothing to do.
    """

    exit_code = 1
    retryable = False
    code = "INTERNAL"
    kind: ErrorKind = "code"

    def __init__(self, where: str, what: str, hint: str = "") -> None:
        self.where, self.what, self.hint = map(redact, (where, what, hint))
        super().__init__(self.where, self.what, self.hint)  # pickle calls the class with `args`

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(VideoARError):
    """The user's file, key or argument cannot be used."""

    code = "CONFIG"
    kind: ErrorKind = "user"
    exit_code = 2


class ContractError(VideoARError):
    """Data breaks its contract."""

    code = "CONTRACT"
    kind: ErrorKind = "data"
    exit_code = 3


class GateError(VideoARError):
    """A gate failed or could not be evaluated; nothing was published."""

    code = "GATE"
    kind: ErrorKind = "data"
    exit_code = 4


class LeaseHeldError(VideoARError):
    """Another process holds what only one may hold."""

    code = "LEASE_HELD"
    kind: ErrorKind = "user"
    exit_code = 5


class TimedOutError(VideoARError):
    """A stage ran longer, or made no progress for longer, than its options allow."""

    code = "TIMED_OUT"
    kind: ErrorKind = "infra"
    exit_code = 6


class StorageError(VideoARError):
    """The store cannot be reached, is full, denies access or lacks put-if-absent."""

    code = "STORE"
    kind: ErrorKind = "infra"
    exit_code = 7


class SnapshotNotFoundError(StorageError):
    """No committed snapshot has this id or ref."""

    code = "NOT_FOUND"
    kind: ErrorKind = "user"
    exit_code = 2  # a wrong argument; the store itself works


class DamagedError(StorageError):
    """An object exists, but its bytes are not those that were written."""

    code = "DAMAGED"
    kind: ErrorKind = "data"


class WithdrawnError(StorageError):
    """An object was removed permanently by a takedown of its source."""

    code = "WITHDRAWN"
    kind: ErrorKind = "data"


class SnapshotConflictError(StorageError):
    """A create-once record exists with other content: another writer has won the race."""

    code = "CONFLICT"


class RefMovedError(SnapshotConflictError):
    """A ref has moved since its head was read: a decision on that head must be taken again."""

    code = "REF_MOVED"


class TransientStorageError(StorageError):
    """The store failed; a later call may succeed."""

    code = "STORE_UNAVAILABLE"
    retryable = True


class ThrottledError(TransientStorageError):
    """The store asks for fewer requests."""

    code = "STORE_THROTTLED"
    kind: ErrorKind = "throttle"


class DiskError(TransientStorageError):
    """A disk of this machine is full or fails; another machine has another one."""

    code = "DISK"


class SourceChangedError(TransientStorageError):
    """A source changed while it was read, in a way that says nothing about its content."""

    code = "SOURCE_CHANGED"


class ClusterUnknownError(VideoARError):
    """The cluster does not respond, so the state of the work on it is unknown."""

    code = "CLUSTER_UNKNOWN"
    kind: ErrorKind = "infra"
    exit_code = 8


class MediaError(VideoARError):
    """One video cannot be used; `code` is the reason code of its reject row.

    It is `retryable` where the code hangs on limits in the options, or on a file being complete.
    """

    code = "MEDIA"
    kind: ErrorKind = "data"
    exit_code = 3

    def __init__(self, where: str, code: str, what: str) -> None:
        super().__init__(where, what)
        self.args = (where, code, what)  # pickle calls __init__ with these three
        self.code = code
        self.retryable = code in _RETRYABLE_MEDIA


class StageError(VideoARError):
    """An unexpected exception of a stage; names the stage, the shard and the cause."""

    code = "STAGE"
    kind: ErrorKind = "code"
    exit_code = 3


class WorkerLostError(StageError):
    """The process of a shard or a rank has exited."""

    code = "WORKER_LOST"
    kind: ErrorKind = "infra"
    retryable = True


class PreemptedError(WorkerLostError):
    """The machine of a shard or a rank was taken away."""

    code = "PREEMPTED"
    kind: ErrorKind = "preempt"


class OutOfMemoryError(StageError):
    """A shard, a rank or a reduction needed more memory than there was, on the host or a GPU."""

    code = "OUT_OF_MEMORY"
    kind: ErrorKind = "memory"
    retryable = True


def reason_code(error: BaseException) -> str:
    """Return the reason code of whatever ended a stage or a run."""
    if isinstance(error, KeyboardInterrupt):
        return "CANCELLED"
    return error.code if isinstance(error, VideoARError) else VideoARError.code
