"""An isolated shard: one at a time, in a process of its own, with the whole machine to it.

What a shard does to its process (a crash of native code, an exit, all of the memory) then happens
to no other shard, and is known to be of this one. How often it may do so is a budget; after that
the row that does it is looked for, by halving, and the stage fails with its name.
"""

import ctypes
import multiprocessing
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from videoar.contracts.contract import load_contract
from videoar.core.errors import OutOfMemoryError, StageError, VideoARError, WorkerLostError
from videoar.core.processes import peak_gib
from videoar.engine.base import Waits, with_retries
from videoar.pipeline.stage import MapStage, Shard
from videoar.pipeline.work.shard import ShardWorker
from videoar.pipeline.work.task import StageTask, WorkRecord, engine_boundary

T = TypeVar("T")
Call = Callable[[], Any]
InProcess = Callable[[Call, VideoARError | None], Any]
"""Makes a call in another process, after an error of an attempt before, if there was one; raises
`WorkerLostError` or `OutOfMemoryError` if the process ends."""
_PDEATHSIG = 1  # prctl(2)
_END_S = 10.0  # chosen
_HINT = "mend or remove that row, or give the stage's code to whoever wrote it"


def run_isolated(
    task: StageTask, shard: Shard, run: InProcess, waits: Waits, failed: VideoARError | None = None
) -> WorkRecord:
    """Run a shard as often as the budget of its error allows.

    Args:
        task: the stage run.
        shard: the shard.
        run: makes a call in another process.
        waits: see `Waits`.
        failed: of an attempt before, which counts.

    Raises:
        WorkerLostError: it ends its process each time; names the row.
        OutOfMemoryError: it needs more memory than there is; names the row.
    """
    attempt = attempts(run, partial(_run, task, shard), failed)
    try:
        record: WorkRecord = with_retries(attempt, task.make_stage().config.retries, waits)
    except (WorkerLostError, OutOfMemoryError) as error:
        where = f"stage {task.dataset}, shard {shard.index}{_culprit(task, shard, run)}"
        raise type(error)(where, error.what, error.hint or _HINT) from error
    return record


def attempts(run: InProcess, call: Call, failed: VideoARError | None = None) -> Call:
    """Return a function that makes a call, each time after the error of the time before.

    With `failed`, the first time is over: it raises that.
    """
    is_over, last = failed is not None, failed

    def attempt() -> object:
        nonlocal is_over, last
        if is_over and last:
            is_over = False
            raise last
        try:
            return run(call, last)
        except VideoARError as error:
            last = error
            raise

    return attempt


def _run(task: StageTask, shard: Shard) -> WorkRecord:
    return ShardWorker(task)(shard)


def _probe(task: StageTask, shard: Shard, first: int, last: int) -> None:
    """Run a stage on some rows of a shard, and keep nothing."""
    worker = ShardWorker(task)
    with engine_boundary(task, f"shard {shard.index}"):
        worker.mapper(worker.rows(shard).slice(first, last - first))


def _culprit(task: StageTask, shard: Shard, run: InProcess) -> str:
    """Return which row of a shard ends its process; "" if no single one does."""

    def ends(first: int, last: int) -> bool:
        try:
            run(partial(_probe, task, shard, first, last), None)
        except (WorkerLostError, OutOfMemoryError):
            return True
        except VideoARError:  # a part of a shard may be no valid input
            pass
        return False

    stage: MapStage[Any] = task.make_stage()
    divided = stage.divided(task.open_inputs(task.open_store()))
    key = load_contract(divided.contract).primary_key
    rows = divided.read_file(shard.file, key).to_pylist() if shard.file else list(shard.rows)
    first, last = 0, len(rows)
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (first, middle) if ends(first, middle) else (middle, last)
    if last - first != 1 or not ends(first, last):
        return ""
    name = ", ".join(f"{column} {rows[first][column]}" for column in key if column in rows[first])
    return f", row {first} ({name})"


def in_child(where: str, call: Callable[[], T]) -> T:
    """Make a call in a child process.

    Args:
        where: for messages.
        call: can be pickled, as what it returns.

    Raises:
        VideoARError: what the call raised.
        OutOfMemoryError: the child was killed.
        WorkerLostError: the child has ended without a result.
    """
    context = multiprocessing.get_context("spawn")  # a fork of threads may block for ever
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, call))
    child.start()
    sender.close()
    try:
        outcome = receiver.recv()
    except EOFError:
        child.join()
        raise _exit_error(where, child.exitcode or 0) from None
    else:
        child.join(_END_S)  # it closes what it has opened
    finally:
        child.kill()  # an interrupted driver leaves none
        child.join()
    if isinstance(outcome, VideoARError):
        raise outcome
    return outcome  # type: ignore[no-any-return]


def _child(sender: Connection, call: Call) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent decides
    if sys.platform == "linux":  # also if it is killed
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    try:
        sender.send(call())
    except VideoARError as error:
        sender.send(error)


def _exit_error(where: str, status: int) -> StageError:
    if status == -signal.SIGKILL:  # not by us, so by the kernel's OOM killer or an operator
        what = "its process was killed, probably for lack of memory, "
        what += f"with {peak_gib(resource.RUSAGE_CHILDREN):.1f} GiB at most"
        return OutOfMemoryError(where, what)
    by = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    return WorkerLostError(where, f"its process ended {by}")
