"""Watches over one execution: its lease, requests to cancel it, and the time limits of its stages.

The driver holds one lease, named after the work that it does: equal runs have equal names. Its
claims of the run, of each training and of each reduction last as long as that lease.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from videoar.core.errors import LeaseHeldError, StorageError, TimedOutError
from videoar.pipeline.stage import StageConfig
from videoar.storage.collection import wait_for_collection
from videoar.storage.layout import cancel_key, run_claim
from videoar.storage.lease import HolderWatch, Lease, held_error
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
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
    """

    def __init__(self, store: Store, run_id: str, *, wait: bool = False) -> None:
        self._store, self._run_id, self._wait = store, run_id, wait
        self._limits: _Limits | None = None
        self._lease: Lease | None = None
        self._claims: list[int] = []
        self._interrupts = self._has_ended = self._has_handler = False
        self.cause: BaseException | None = None
        """What ended the run from outside; the execution raises it."""

    def start(self, work: str, on_queued: Callable[[str], object]) -> None:
        """Take the rights of the driver, and watch from a thread.

        Args:
            work: name of what the run does, equal for equal runs.
            on_queued: called with it if the run has to wait for an equal one.

        Raises:
            LeaseHeldError: an equal run, or another driver of this run, lives.
        """
        lease = self._make_lease(work)
        try:
            lease.acquire()
        except LeaseHeldError:
            if not self._wait:
                raise
            self._queue(lease, on_queued)
        self._hold(lease)

    def _make_lease(self, name: str) -> Lease:
        return Lease(self._store, name, f"run {self._run_id}", hint=_HINT)

    def _queue(self, lease: Lease, on_queued: Callable[[str], object]) -> None:
        """Wait for a lease, visible and cancellable by a lease of this run alone."""
        place = self._make_lease(run_claim(self._run_id))
        place.acquire()
        self._hold(place)
        on_queued(lease.name)
        while lease.epoch < 0:
            self.check()
            with suppress(LeaseHeldError):
                lease.acquire()
        place.release()

    def _hold(self, lease: Lease) -> None:
        """Keep a lease, and claim the run with it."""
        self._lease = lease
        self._interrupts = threading.current_thread() is threading.main_thread()
        # without a handler, the first signal would end this process without a record
        if self._interrupts and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            self._has_handler = True
        lease.keep(self._end, self._look)
        try:
            claim = lease.claim(run_claim(self._run_id), self._require_ended)
            self._claims += [] if claim is None else [claim]
            # after the claim, which a later collection sees: it keeps what this run may adopt
            wait_for_collection(self._store)
        except BaseException:
            self.stop()
            raise

    def _require_ended(self, holder: HolderWatch) -> bool:
        if holder.has_renewed and not self._wait:
            raise held_error(holder, _HINT)
        time.sleep(holder.poll_s)
        return False

    def settle(self) -> None:
        """Interrupt the execution no more: it records how it has ended."""
        self._has_ended = True

    def stop(self) -> None:
        """Give the rights back."""
        self.settle()
        if self._has_handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._has_handler = False
        try:
            if self._lease is not None:
                self._lease.release()
        except StorageError as error:  # the run has ended as it is recorded, with or without this
            logger.warning("the lease ends by its time to live: %s", error)

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
        if self._lease is not None:
            self._lease.require_held()

    def claim(self, right: str, give_up: Callable[[HolderWatch], bool]) -> None:
        """Take a right for the rest of the run; see `Lease.claim`."""

        def wait(holder: HolderWatch) -> bool:
            self.check()
            time.sleep(min(holder.poll_s, _POLL_S))
            return give_up(holder)

        if self._lease is not None:
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
        now = time.monotonic()
        self._limits = _Limits(where, config, progress, now, now)
        try:
            yield
        finally:
            self._limits = None

    def watch(self, where: str) -> None:
        """Name what the stage works on, for the error of a time limit."""
        if self._limits is not None:
            self._limits.where = where

    def _look(self) -> None:
        for claim in self._claims:  # also of the time in the queue
            request = self._store.ledger.read(cancel_key(self._run_id, claim))
            if request is not None:
                self._end(KeyboardInterrupt(f"cancelled by {request['user']}"))
        limits = self._limits
        if limits is not None and self.cause is None:
            try:
                limits.check(time.monotonic())
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
