"""Named points at which a test makes the process kill itself: any kill must be survived."""

import os
import signal

from videoar.core.settings import settings


def crash_point(name: str) -> None:
    """Die by SIGKILL here when `VIDEOAR_CRASH_AT` names this point; otherwise do nothing."""
    if settings().crash_at == name:
        os.kill(os.getpid(), signal.SIGKILL)
