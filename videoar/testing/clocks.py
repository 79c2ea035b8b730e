"""Time that passes only in a test, as the clocks of its actors show it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from videoar.core.clock import Clock


def _nothing() -> None:
    return


@dataclass
class SimulatedTime:
    """Seconds that pass only while an actor sleeps, or when a test adds to `seconds`."""

    seconds: float = 0.0
    during: Callable[[], object] = _nothing
    """Called in every sleep: what others do meanwhile."""

    def clock(self, offset_s: float = 0.0, rate: float = 1.0) -> Clock:
        """Return the monotonic clock of an actor, which is off by seconds, or runs too fast."""

        def sleep(seconds: float) -> None:
            self.seconds += seconds / rate
            self.during()

        return Clock(lambda: offset_s + rate * self.seconds, sleep)

    def wall_clock(
        self, start: datetime = datetime(2026, 11, 1, tzinfo=UTC), offset_s: float = 0.0
    ) -> Callable[[], datetime]:
        """Return the wall clock of an actor: at `start` now, and off by seconds."""
        began = self.seconds
        return lambda: start + timedelta(seconds=self.seconds - began + offset_s)
