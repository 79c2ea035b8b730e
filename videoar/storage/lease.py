"""Leases: rights that one process at a time has, such as to drive a run.

A lease is a log of create-once records, one per owner, numbered by *epoch*, and one object per
epoch, the *heartbeat*, that its owner keeps rewriting. Clocks of machines are never compared: an
owner counts as stopped when its heartbeat has not changed for its time to live on the clock of who
looks, when it says so itself, or when its process is known to be gone. Taking over is creating the
next epoch; an owner that was suspended finds that record before its next write.

A *claim* is a right that lasts as long as a lease: an owner that drives a run claims each training,
and one heartbeat renews all of it.
"""

import logging
import secrets
import threading
from collections.abc import Callable
from typing import Any, Protocol

from videoar.core.clock import MONOTONIC, Clock
from videoar.core.errors import LeaseHeldError, VideoARError
from videoar.core.processes import ProcessId, this_process
from videoar.core.settings import settings
from videoar.storage.layout import claim_log, heartbeat_key, lease_log, log_entry_key
from videoar.storage.ledger import Ledger
from videoar.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)
_HEARTBEATS = 5  # per time to live
ENDED = b"ended"
"""Last heartbeat of an owner."""


class Records(Protocol):
    """What leases need of a store."""

    @property
    def objects(self) -> ObjectStore:
        """Its objects."""

    @property
    def ledger(self) -> Ledger:
        """Its records."""


class HolderWatch:
    """Observes the owner of one epoch of a lease.

    Args:
        store: of the lease.
        name: of the lease.
        epoch: of the owner.
        clock: of this process.
    """

    def __init__(self, store: Records, name: str, epoch: int, clock: Clock = MONOTONIC) -> None:
        self._store, self.name, self._epoch, self._clock = store, name, epoch, clock
        record: dict[str, Any] = store.ledger.read(log_entry_key(lease_log(name), epoch)) or {}
        self._is_collected = not record  # as garbage: long ended
        self.owner: str = record.get("owner", "another process")
        self.ttl_s: float = record.get("ttl_s", settings().lease_ttl_s)
        self.process = ProcessId.model_validate(record["process"]) if "process" in record else None
        self._heartbeat, self._since = self._read_heartbeat(), clock.now()
        self.has_renewed = False
        """Whether the heartbeat has changed since this observer looks."""

    def _read_heartbeat(self) -> bytes | None:
        return self._store.objects.find(heartbeat_key(self.name, self._epoch))

    def has_ended(self) -> bool:
        """Look once; return whether this owner has no right any more."""
        began = self._clock.now()
        heartbeat, now = self._read_heartbeat(), self._clock.now()
        if (
            heartbeat == ENDED
            or self._is_collected
            or (self.process is not None and self.process.is_gone())
        ):
            return True
        if heartbeat != self._heartbeat:
            self._heartbeat, self._since, self.has_renewed = heartbeat, now, True
        elif now - began > self.poll_s:
            self._since = now  # the store did not answer: nor could the owner renew
        if now - self._since >= self.ttl_s:
            return True
        following = log_entry_key(lease_log(self.name), self._epoch + 1)
        return self._store.objects.size(following) is not None

    @property
    def poll_s(self) -> float:
        """How long to wait between two looks: two per heartbeat."""
        return self.ttl_s / _HEARTBEATS / 2

    def is_silent(self) -> bool:
        """Return whether the heartbeat is older than the time to live, by the clock of the store.

        For display only: a right is taken over on this process's own clock.
        """
        age_s = self._store.objects.age_s(heartbeat_key(self.name, self._epoch))
        return age_s is None or age_s > self.ttl_s

    def __str__(self) -> str:
        return f"{self.owner} on {self.process.host if self.process else 'another host'}"


def claim_holder(store: Records, right: str) -> HolderWatch | None:
    """Return who has claimed a right last, None if nobody ever has."""
    last = store.ledger.last(claim_log(right))
    return HolderWatch(store, last["lease"], last["epoch"]) if last else None


def held_error(holder: HolderWatch, hint: str) -> LeaseHeldError:
    """Return the error of a process that needs what another one holds."""
    return LeaseHeldError(f"lease {holder.name}", f"is held by {holder}", hint)


class Lease:
    """The right named `name`, for one process at a time.

    Args:
        store: where the lease is.
        name: such as `serving`.
        owner: named in the errors of others.
        hint: what they can do.
        ttl_s: how long another process has to wait after the last heartbeat of this one; None: the
            setting `lease_ttl_s`.
        clock: of this process.
    """

    def __init__(
        self,
        store: Records,
        name: str,
        owner: str,
        *,
        hint: str = "",
        ttl_s: float | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        self.name, self.owner, self.epoch = name, owner, -1
        self._store, self._hint, self._ttl_s = store, hint, ttl_s or settings().lease_ttl_s
        self._clock = clock
        self._last_renewal = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, wait: bool = False) -> int:
        """Become the owner; return the epoch. An owner that was killed is waited for.

        Args:
            wait: also wait for an owner that lives.

        Raises:
            LeaseHeldError: another owner lives, or was faster.
        """
        record = {
            "owner": self.owner,
            "process": this_process().model_dump(),
            "ttl_s": self._ttl_s,
        }
        while self.epoch < 0:
            epoch = self._store.ledger.length(lease_log(self.name))
            if epoch:
                self._wait_for_end(epoch - 1, wait=wait)
            if self._store.ledger.create(log_entry_key(lease_log(self.name), epoch), record):
                self.epoch = epoch
            elif not wait:
                raise self._held(epoch)
        self._write_heartbeat()
        return self.epoch

    def _wait_for_end(self, epoch: int, *, wait: bool) -> None:
        holder = HolderWatch(self._store, self.name, epoch, self._clock)
        while not holder.has_ended():
            if holder.has_renewed and not wait:
                raise self._held(epoch)
            self._clock.sleep(holder.poll_s)

    def adopt(self, epoch: int) -> None:
        """Renew an epoch that another process of this owner has acquired.

        Raises:
            LeaseHeldError: another owner has taken over meanwhile.
        """
        self.epoch = epoch
        self.renew()

    def claim(self, right: str, give_up: Callable[[HolderWatch], bool]) -> int | None:
        """Take a right that lasts as long as this epoch of the lease.

        Args:
            right: what is claimed, such as `loops/model/3f2a...`.
            give_up: called between two looks at a holder that lives; it waits, or raises, or
                returns True if the right is no longer wanted.

        Returns:
            Number of the claim; None after `give_up`.
        """
        log, record = claim_log(right), {"lease": self.name, "epoch": self.epoch}
        while True:
            number = self._store.ledger.length(log)
            last = self._store.ledger.read(log_entry_key(log, number - 1)) if number else None
            if last is not None and last != record:
                holder = HolderWatch(self._store, last["lease"], last["epoch"], self._clock)
                while not holder.has_ended():
                    if give_up(holder):
                        return None
            if last == record:
                return number - 1
            if self._store.ledger.create(log_entry_key(log, number), record):
                return number

    def _held(self, epoch: int) -> LeaseHeldError:
        return held_error(HolderWatch(self._store, self.name, epoch), self._hint)

    def renew(self) -> None:
        """Show that this owner lives.

        Raises:
            LeaseHeldError: another owner has taken over while this one was suspended.
        """
        following = log_entry_key(lease_log(self.name), self.epoch + 1)
        if self._store.objects.size(following) is not None:
            raise self._held(self.epoch + 1)
        self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        self._store.objects.put(heartbeat_key(self.name, self.epoch), secrets.token_hex(8).encode())
        self._last_renewal = self._clock.now()

    def require_held(self) -> None:
        """Return if nobody can have taken over yet; otherwise look.

        Costs a request only if the last heartbeat is older than half the time to live.

        Raises:
            LeaseHeldError: another owner has taken over.
        """
        if self._clock.now() - self._last_renewal > self._ttl_s / 2:
            self.renew()

    def keep(
        self,
        on_taken: Callable[[VideoARError], object],
        on_renewal: Callable[[], object] = lambda: None,
    ) -> None:
        """Renew it in a thread until `release`; call `on_taken` once if another owner takes over.

        Errors of the store are logged: it may come back before the time to live is over.
        """

        def run() -> None:
            while not self._stopped.wait(self._ttl_s / _HEARTBEATS):
                try:
                    self.renew()
                    on_renewal()
                except LeaseHeldError as error:
                    on_taken(error)
                    return
                except VideoARError as error:
                    logger.warning("lease %s was not renewed: %s", self.name, error)

        thread = threading.Thread(target=run, name=f"lease-{self.name}", daemon=True)
        thread.start()
        self._thread = thread  # not before: a signal may come in between, and `stop` joins it

    def stop(self) -> None:
        """Stop renewing; the next owner waits for the time to live."""
        self._stopped.set()
        if self._thread:
            self._thread.join()

    def release(self) -> None:
        """Let the next owner start at once; nothing to do if the lease was not acquired."""
        self.stop()  # nothing is written after the last word
        if self.epoch >= 0:
            self._store.objects.put(heartbeat_key(self.name, self.epoch), ENDED)
