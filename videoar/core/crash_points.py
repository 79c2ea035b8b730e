"""Named points at which a test makes the process send itself a signal.

A signal from outside hits a random line; these hit the lines between two writes, where a missing
sync, record or clean-up would show. `python -m videoar.testing` lists them.
"""

import os
import signal
from collections import Counter

from videoar.core.settings import settings

_visits: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Send this process the signal if `VIDEOAR_CRASH_AT` names this point; otherwise do nothing.

    The variable is `NAME[:VISIT[:SIGNAL]]`, such as `commit.after_log`; `shard-written:3:SIGSTOP`
    is the third visit by this process. Default: SIGKILL at the first visit.
    """
    point, _, rest = settings().crash_at.partition(":")
    if point != name:
        return
    visit, _, number = rest.partition(":")
    _visits[name] += 1
    if _visits[name] == int(visit or 1):
        # SIGKILL: no signal handler, finally block or atexit function runs
        os.kill(os.getpid(), signal.Signals[number or "SIGKILL"])
