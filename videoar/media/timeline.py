"""Presentation times of the frames of one source: rising, from 0, with jumps that end a shot.

Time stamps of real files run backwards, repeat, are missing, or jump: recordings are joined, clocks
are set. Everything downstream relies on rising times, and shots end where time has a gap. So a jump
back becomes a gap forwards, after which the clock of the file goes on.
"""

import statistics

import numpy as np

MAX_GAP_US = 500_000  # chosen: a longer gap starts a new shot; missing time is never filled
_VFR_SPREAD = 0.2  # chosen: of the median frame duration; up to 120 fps, rounding to ms is less
_REGULAR_SHARE = (
    0.9  # chosen: of the steps of a source that has a constant rate but for lost frames
)


class Timeline:
    """Places frames in time, one after the other in the order in which they are shown."""

    def __init__(self, tick_us: float, step_us: int, start_pts: int | None) -> None:
        """Start a timeline.

        Args:
            tick_us: duration of a tick of time stamps.
            step_us: duration of a frame whose time stamp says nothing.
            start_pts: time stamp of time 0; None takes that of the first frame.
        """
        self.start_pts = start_pts
        self.last_us = -1
        self.shown_us = 0
        """Time in which something is shown: without the gaps."""
        self._tick_us, self._step_us = tick_us, max(2, step_us)
        self._shift_us = 0
        self._clock_us = 0

    @property
    def is_set_back(self) -> bool:
        """Whether time stamps have jumped back."""
        return self._shift_us != 0

    def place(self, pts: int | None) -> int:
        """Return the time of the next frame, us: later than that of the last one."""
        last_us = self.last_us
        if self.start_pts is None and pts is not None:  # maybe not of the first frame
            before_us = last_us + self._step_us if last_us >= 0 else 0
            self.start_pts = pts - round(before_us / (self._tick_us or 1))
        if pts is None:
            time_us = last_us + self._step_us if last_us >= 0 else 0
        else:
            clock_us = round((pts - (self.start_pts or 0)) * self._tick_us)
            time_us = clock_us + self._shift_us
            if last_us < 0:
                time_us = max(0, time_us)
            elif self._clock_us - clock_us > MAX_GAP_US:
                time_us = last_us + 2 * MAX_GAP_US
                self._shift_us = time_us - clock_us
            elif time_us <= last_us:
                # of a repeated stamp half a frame, so that the next frame keeps its own time
                is_repeated = last_us - time_us < self._step_us
                time_us = last_us + self._step_us // (2 if is_repeated else 1)
            self._clock_us = clock_us
        if last_us >= 0:
            self.shown_us += min(time_us - last_us, MAX_GAP_US)
        self.last_us = time_us
        return time_us


def rate_and_regularity(times_us: list[int]) -> tuple[float, bool]:
    """Return the frame rate of a source, frames/s, and whether its frame intervals vary.

    The rate is that of the parts between gaps: a pause of minutes in a recording makes no slide
    show of it.
    """
    if len(times_us) < 2:
        return 0.0, False
    steps = np.diff(times_us)
    typical = statistics.median(steps.tolist())
    between = steps[steps <= max(MAX_GAP_US, 3 * typical)]
    return 1e6 / float(between.mean()), bool(np.ptp(steps) > _VFR_SPREAD * typical)


def missing_frames(times_us: list[int]) -> int:
    """Return how many frames are lost, by the times of the frames before and after.

    Lost are those that an otherwise constant rate leaves out. Where intervals vary, as in screen
    recordings and on telephones, nothing is known to be lost: 0. Nor is it in a pause.
    """
    steps = np.diff(times_us)
    steps = steps[steps <= MAX_GAP_US]
    if len(steps) == 0:
        return 0
    lengths = steps / np.median(steps)
    is_regular = np.abs(lengths - 1) <= _VFR_SPREAD
    whole = np.rint(lengths[~is_regular])
    is_multiple = bool((np.abs(lengths[~is_regular] - whole) <= _VFR_SPREAD).all())
    if is_regular.mean() < _REGULAR_SHARE or not is_multiple or (whole < 2).any():
        return 0
    return int((whole - 1).sum())
