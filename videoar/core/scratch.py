"""Temporary folders that are removed after their owner was killed, too.

The owner holds a lock on its folder. The kernel releases it on process exit, however the process
ended, so a folder that can be locked has no owner. A process id would not show it: containers that
share a temporary folder have process ids of their own.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)
_PREFIX = "videoar-scratch-"


class Scratch:
    """A private folder until `close`; after a kill, until another process calls `sweep`.

    Args:
        parent: where it is made, with a hidden name, to be renamed within one file system; None is
            the folder for temporary files.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self.path, self._lock = _locked(parent)

    def close(self) -> None:
        """Remove the folder; a second call does nothing."""
        if self._lock is not None:
            shutil.rmtree(self.path)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def _locked(parent: Path | None) -> tuple[Path, int | None]:
    while True:
        prefix = f".{_PREFIX}" if parent else _PREFIX
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with contextlib.suppress(FileNotFoundError):  # swept before it was locked: try again
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            # blocks while a sweeper has the lock of this folder
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return path, lock
            os.close(lock)


def sweep(parent: Path | None = None) -> None:
    """Remove folders of this user whose owners no longer run."""
    for path in Path(parent or tempfile.gettempdir()).glob(f"*{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # removed by its owner or another sweeper
            status = path.lstat()  # not stat: a link's owner counts, not its target's
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                _remove_if_unlocked(path)


def _remove_if_unlocked(path: Path) -> None:
    # no symbolic links: in a shared /tmp, another user could point one at a folder of ours
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
        logger.info("%s: left by a killed process, removed", path)
    except BlockingIOError:
        pass  # its owner runs
    except OSError as error:
        logger.warning("%s: left by a killed process, cannot be removed: %s", path, error)
    finally:
        os.close(handle)
