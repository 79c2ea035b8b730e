"""Folders for sources, ranks in training and models, which nobody cleans up after a kill.

The owner holds a lock on its folder as long as it lives; the kernel takes the lock from the dead.
So a folder that can be locked has no owner, on any container that shares this temporary folder.
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
    """A private folder until `close`, or until the process ends and another one sweeps."""

    def __init__(self) -> None:
        self.path, self._lock = _locked()

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


def _locked() -> tuple[Path, int | None]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with contextlib.suppress(FileNotFoundError):  # swept before it was ours: make another one
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return path, lock
            os.close(lock)


def sweep() -> None:
    """Remove what killed owners have left; folders of the living and of other users stay."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # its owner or another sweeper was faster
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                _remove_if_left(path)


def _remove_if_left(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
        logger.info("%s: left by a killed worker, removed", path)
    except BlockingIOError:
        pass  # its owner lives
    except OSError as error:
        logger.warning("%s: left by a killed worker, cannot be removed: %s", path, error)
    finally:
        os.close(handle)
