"""Retry with exponential backoff and full jitter.

Full jitter: each wait is drawn from [0, bound), and the bound doubles from attempt to attempt. Many
clients that failed at one moment (a restarted server, one contended Delta log) then do not return
at one moment. Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to retry. The first limit that is reached ends the retries."""

    first_wait_s: float
    """Upper bound of the first wait."""
    max_wait_s: float
    """Upper bound of every wait."""
    max_attempts: int | None = None
    """Calls in total, the first included."""
    max_seconds: float | None = None
    """No attempt starts later than this after the first one."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    jitter: Callable[[], float] = random.random  # noqa: S311 - spreads load, keeps no secret
    """Returns a number in [0, 1)."""

    def call(
        self,
        work: Callable[[], T],
        should_retry: Callable[[Exception], bool],
        on_retry: Callable[[int, float, Exception], object] = lambda *_: None,
    ) -> T:
        """Call `work` until it returns.

        Args:
            work: the call; it must be safe to repeat.
            should_retry: whether another attempt may help after this error.
            on_retry: gets the attempt that failed (from 1), the wait in seconds and the error.

        Raises:
            Exception: the error of the last attempt, or one for which `should_retry` is false.
        """
        began, attempt = self.clock(), 1
        while True:
            try:
                return work()
            except Exception as error:
                wait_s = self.wait_s(attempt, self.clock() - began) if should_retry(error) else None
                if wait_s is None:
                    raise
                on_retry(attempt, wait_s, error)
            self.sleep(wait_s)
            attempt += 1

    def wait_s(self, attempt: int, elapsed_s: float) -> float | None:
        """Draw the wait after an attempt that failed; None if a limit is reached.

        Args:
            attempt: number of the attempt, from 1.
            elapsed_s: since the first one.
        """
        if self.max_attempts is not None and attempt >= self.max_attempts:
            return None
        if self.max_seconds is not None and elapsed_s > self.max_seconds:
            return None
        # 2.0 ** 1024 overflows: a policy without max_attempts gets there in hours of short waits
        bound_s = min(self.max_wait_s, self.first_wait_s * 2.0 ** min(attempt - 1, 64))
        return self.jitter() * bound_s
