"""Ticks in a loop, for machines without cron: one process of a store, a child for each pipeline.

The loop itself only looks whether a pipeline has something to do; the tick is a process of its own
(`videoar schedule tick`), because a run takes hours and Ray allows one connection per process. If
the loop is killed, the children finish their runs, and the next loop finds them in progress.
"""

import logging
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from videoar.core.errors import VideoARError
from videoar.pipeline.spec import load_pipeline
from videoar.schedule.tick import Launcher, Ticker
from videoar.storage.layout import SCHEDULER_LEASE
from videoar.storage.lease import Lease
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_GRACE_S = 60.0
Children = dict[Path, "subprocess.Popen[bytes]"]


def serve(
    store: Store,
    paths: Sequence[Path],
    overrides: Sequence[str],
    launcher: Launcher,
    *,
    target: str,
    every_s: float,
) -> None:
    """Tick until interrupted; then interrupt the runs that it has started.

    Raises:
        LeaseHeldError: another process of this store ticks in a loop, or has taken over.
    """
    hint = "it ticks already; another store needs a loop of its own"
    lease = Lease(store, SCHEDULER_LEASE, "videoar schedule serve", hint=hint)
    lost: list[VideoARError] = []
    wake = threading.Event()
    command = [sys.executable, "-m", "videoar", "--store", store.url, "--target", target]
    command += ["schedule", "tick", *(f"--set={override}" for override in overrides)]
    children: Children = {}
    with ExitStack() as stack:
        lease.acquire()
        stack.callback(lease.release)
        stack.callback(_stop, children)

        def stop(error: VideoARError) -> None:
            lost.append(error)
            wake.set()

        lease.keep(stop)
        while not lost:
            for path in paths:
                _look(store, path, overrides, launcher, children, command)
            wake.wait(every_s)
        raise lost[0]


def _look(
    store: Store,
    path: Path,
    overrides: Sequence[str],
    launcher: Launcher,
    children: Children,
    command: Sequence[str],
) -> None:
    """Start the tick of a pipeline if it has something to do and none is in progress."""
    if path in children and children[path].poll() is None:
        return
    try:
        spec = load_pipeline(path, overrides)
        if Ticker(spec, store, launcher, datetime.now(UTC)).has_work():
            children[path] = subprocess.Popen([*command, str(path)])
    except VideoARError as error:  # the others go on, and this one when it is mended
        logger.warning("%s: %s", path, error)


def _stop(children: Mapping[Path, "subprocess.Popen[bytes]"]) -> None:
    """Interrupt the ticks in progress, and wait for their ends."""
    for child in children.values():
        child.terminate()
    for child in children.values():
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
