"""A clock that tests replace: nothing that waits for a time to live needs to sleep in a test."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Monotonic time in seconds, and a way to wait."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep


MONOTONIC = Clock()
