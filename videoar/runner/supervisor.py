"""Watches over one execution: its lease, requests to cancel it, and the time limits of its stages.

The driver has one beating lease, on the work that it does: equal runs have equal names of it. The
right to drive the run hangs on that lease as a claim, and so does the right to each training and
each reduction.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from videoar.core.clock import MONOTONIC, Clock
from videoar.core.errors import TimedOutError
from videoar.pipeline.stage import StageConfig
from videoar.storage.layout import cancel_key, run_claim
from videoar.storage.lease import HolderWatch, Lease, held_error
from videoar.storage.store import Store

_HINT = "videoar status shows it; --wait waits for its end"
_POLL_S = 0.5
"""chosen: how late a run notices that another one has done the work of a stage."""
_KEPT = "finished shards and checkpoints are kept: videoar resume continues"


@dataclass
class _Limits:
    """Time limits of the stage that runs; times in seconds."""

    where: str
    config: StageConfig
    progress: Callable[[], object]
    began: float
    changed: float
    seen: object = None

    def check(self, now: float) -> None:
        timeout_s, stall_s = self.config.timeout_s, self.config.stall_s
        if timeout_s and now - self.began > timeout_s:
            raise TimedOutError(
                self.where, f"is not finished after timeout_s: {timeout_s:g}", _KEPT
            )
        if not stall_s:
            return
        if (progress := self.progress()) != self.seen:
            self.seen, self.changed = progress, now
        elif now - self.changed > stall_s:
            raise TimedOutError(self.where, f"made no progress in stall_s: {stall_s:g}", _KEPT)


class Supervisor:
    """The rights of the driver of a run, and what ends the run from outside.

    Args:
        store: of the run.
        run_id: the run.
        wait: wait for an equal run to end, instead of an error.
        clock: of this process.
    """

    def __init__(
        self, store: Store, run_id: str, *, wait: bool = False, clock: Clock = MONOTONIC
    ) -> None:
        self._store, self._run_id, self._wait, self._clock = store, run_id, wait, clock
        self._limits: _Limits | None = None
        self._lease: Lease
        self._driver: int | None = None
        self._interrupts = self._has_ended = self._has_handler = False
        self.cause: BaseException | None = None
        """What ended the run from outside; the execution raises it."""

    def start(self, work: str) -> None:
        """Take the rights of the driver, and watch from a thread.

        Args:
            work: name of what the run does, equal for equal runs.

        Raises:
            LeaseHeldError: an equal run, or another driver of this run, lives.
        """
        lease = Lease(self._store, work, f"run {self._run_id}", hint=_HINT, clock=self._clock)
        lease.acquire(wait=self._wait)
        self._lease = lease
        self._interrupts = threading.current_thread() is threading.main_thread()
        # without a handler, the first signal would end this process without a record
        if self._interrupts and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            self._has_handler = True
        lease.keep(self._end, self._look)
        try:
            self._driver = lease.claim(run_claim(self._run_id), self._require_ended)
        except BaseException:
            self.stop()
            raise

    def _require_ended(self, holder: HolderWatch) -> bool:
        if holder.has_beaten and not self._wait:
            raise held_error(holder, _HINT)
        self._clock.sleep(holder.poll_s)
        return False

    def stop(self) -> None:
        """Give the rights back."""
        self._has_ended = True
        self._lease.release()
        if self._has_handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._has_handler = False

    def check(self) -> None:
        """Return if this process may still write for the run.

        Raises:
            BaseException: `cause`.
            LeaseHeldError: another driver has taken over while this one was suspended.
        """
        if self.cause is not None:
            raise self.cause
        self.require_held()

    def require_held(self) -> None:
        """Return if no other driver can have taken over, see `Lease.require_held`."""
        self._lease.require_held()

    def claim(self, right: str, give_up: Callable[[HolderWatch], bool]) -> None:
        """Take a right for the rest of the run; see `Lease.claim`."""

        def wait(holder: HolderWatch) -> bool:
            self.check()
            self._clock.sleep(min(holder.poll_s, _POLL_S))
            return give_up(holder)

        self._lease.claim(right, wait)

    @contextmanager
    def limits(
        self, where: str, config: StageConfig, progress: Callable[[], object]
    ) -> Iterator[None]:
        """Hold a stage to its time limits.

        Args:
            where: the stage, for messages.
            config: its options.
            progress: returns a value that changes with every step forward.
        """
        now = self._clock.now()
        self._limits = _Limits(where, config, progress, now, now)
        try:
            yield
        finally:
            self._limits = None

    def _look(self) -> None:
        if self._driver is None:
            return
        request = self._store.ledger.read(cancel_key(self._run_id, self._driver))
        if request is not None:
            self._end(KeyboardInterrupt(f"cancelled by {request['user']}"))
        limits = self._limits
        if limits is not None and self.cause is None:
            try:
                limits.check(self._clock.now())
            except TimedOutError as error:
                self._end(error)

    def _end(self, cause: BaseException) -> None:
        """Make the execution raise `cause`, wherever it is."""
        if self.cause is not None or self._has_ended:
            return
        self.cause = cause
        # a thread cannot interrupt another one than the main thread: that sees `cause` at its next
        # write
        if self._interrupts:
            # SIGINT is ignored in a background job of a shell, and then has no handler to call
            handled = [s for s in (signal.SIGTERM, signal.SIGINT) if callable(signal.getsignal(s))]
            for number in handled[:1]:  # a real signal: it ends a wait inside of a system call, too
                signal.pthread_kill(threading.main_thread().ident or 0, number)
