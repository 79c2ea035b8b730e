"""End a child process that does not reply in time.

A read with a timeout would not do, as a child may stop in the middle of a message. One thread per
child watches all of its replies: to start a thread costs more than most messages.
"""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from videoar.core.processes import cpu_s_of
from videoar.media.process import kill_group


class Watchdog:
    """Watches one child process, which computes for `limit_s` at most per request."""

    computed_s: float | None = None
    """CPU time since the request, when the child was killed; None if it was not."""

    def __init__(self, process: "subprocess.Popen[bytes]", limit_s: float) -> None:
        self._process, self._limit_s = process, limit_s
        self._changed = threading.Condition()
        self._began_cpu_s = self._used_cpu_s = 0.0
        self._seconds, self._due_s = 0.0, 0.0
        self._is_due = self._is_asleep = self._is_over = False
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Count CPU time from here on: a request is made."""
        self._began_cpu_s = cpu_s_of(self._process.pid)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Kill the child if the block takes longer; see `_may_go_on`.

        The block must not have to end before an earlier one of the same child had to: the thread
        is not woken for every reply.
        """
        with self._changed:
            self._used_cpu_s = cpu_s_of(self._process.pid)
            self._seconds, self._due_s, self._is_due = seconds, time.monotonic() + seconds, True
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()
            elif self._is_asleep:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._is_due = False

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._is_over:
                left_s = self._due_s - time.monotonic()
                if left_s > 0 or not self._is_due:
                    self._is_asleep = left_s <= 0
                    self._changed.wait(max(left_s, 0) or None)
                    self._is_asleep = False
                elif self._may_go_on():
                    self._due_s = time.monotonic() + self._seconds
                else:
                    kill_group(self._process)
                    return

    def _may_go_on(self) -> bool:
        """Return whether the child computes, but on a machine that leaves it little time."""
        before_s, self._used_cpu_s = self._used_cpu_s, cpu_s_of(self._process.pid)
        computed_s = self._used_cpu_s - self._began_cpu_s
        does_compute = self._used_cpu_s - before_s >= self._seconds / 10
        if does_compute and computed_s <= self._limit_s / 2:
            return True
        self.computed_s = computed_s
        return False
