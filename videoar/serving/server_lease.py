"""One server per queue: a create-once record per server and an object that it keeps rewriting.

Two servers would both take up what the other one runs. Clocks of machines are not compared: another
server counts as stopped when its object has not changed for as long as its record says, on the
clock of who looks.
"""

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from videoar.core.errors import LeaseHeldError, VideoARError
from videoar.storage.layout import SERVERS_LOG, log_entry_key, server_beat_key
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_TTL_S = 10.0  # chosen: longer than a store or a loaded machine keeps a beat back
_BEATS = 5  # per time to live
_ENDED = b"ended"


class ServerLease:
    """The right to be the server of a store's queue.

    Args:
        store: of the queue.
        ttl_s: how long another server has to wait after the last beat of this one.
        clock: monotonic, in seconds.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        store: Store,
        ttl_s: float = _TTL_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._store, self._ledger, self._ttl_s = store, store.ledger, ttl_s
        self._clock, self._sleep = clock, sleep
        self.number = -1
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> int:
        """Become the server; return its number. A server that was killed is waited for.

        Raises:
            LeaseHeldError: another server runs.
        """
        number = self._ledger.length(SERVERS_LOG)
        if number:
            self._require_stopped(number - 1)
        record = {"host": socket.gethostname(), "ttl_s": self._ttl_s, "nonce": secrets.token_hex(8)}
        if not self._ledger.create(log_entry_key(SERVERS_LOG, number), record):
            raise self._held(number)
        self.number = number
        self.beat()
        return number

    def _require_stopped(self, number: int) -> None:
        record = self._ledger.read(log_entry_key(SERVERS_LOG, number)) or {}
        ttl_s, read = record.get("ttl_s", self._ttl_s), partial(self._store.objects.find)
        first, start = read(server_beat_key(number)), self._clock()
        if first == _ENDED:
            return
        logger.info("waiting %g s to see whether server %d still runs", ttl_s, number)
        while self._clock() - start < ttl_s:
            self._sleep(ttl_s / _BEATS / 2)
            current = read(server_beat_key(number))
            if current == _ENDED:
                return
            if current != first:
                raise self._held(number)

    def _held(self, number: int) -> LeaseHeldError:
        record = self._ledger.read(log_entry_key(SERVERS_LOG, number)) or {}
        what = f"server {number} on {record.get('host', 'another host')} works on its jobs"
        return LeaseHeldError(self._store.url, what, "stop it, or use another store")

    def beat(self) -> None:
        """Show that this server runs.

        Raises:
            LeaseHeldError: another server has taken over while this one was suspended.
        """
        following = log_entry_key(SERVERS_LOG, self.number + 1)
        if self._store.objects.size(following) is not None:
            raise self._held(self.number + 1)
        self._store.objects.put(server_beat_key(self.number), secrets.token_hex(8).encode())

    def keep(self, lost: Callable[[VideoARError], object]) -> None:
        """Beat in a thread until `release`; call `lost` once if another server has taken over.

        Errors of the store are logged: it may come back before the time to live is over.
        """

        def run() -> None:
            while not self._stopped.wait(self._ttl_s / _BEATS):
                try:
                    self.beat()
                except LeaseHeldError as error:
                    lost(error)
                    return
                except VideoARError as error:
                    logger.warning("no beat of server %d: %s", self.number, error)

        self._thread = threading.Thread(target=run, name="server-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop to beat; the next server waits for the time to live."""
        self._stopped.set()
        if self._thread:
            self._thread.join()

    def release(self) -> None:
        """Let the next server start at once; nothing to do if the lease was not acquired."""
        self.stop()  # no beat after the last word
        if self.number >= 0:
            self._store.objects.put(server_beat_key(self.number), _ENDED)
