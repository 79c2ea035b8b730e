"""Named points at which a test makes the process kill itself with SIGKILL.

A kill from outside hits a random line; these hit the lines between two writes, where a missing
sync, record or clean-up would show.
"""

import os
import signal

from videoar.core.settings import settings


def crash_point(name: str) -> None:
    """Kill this process if `VIDEOAR_CRASH_AT` names this point; otherwise do nothing."""
    if settings().crash_at == name:
        # no signal handler, finally block or atexit function runs
        os.kill(os.getpid(), signal.SIGKILL)
