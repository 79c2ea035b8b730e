"""Checkpoints of a rank: written to a local folder at once, uploaded while training continues.

    main thread        write step 500 | steps 501 ... 999          | wait, write step 1000 | ...
    upload thread                     | files, then the record     |                       | ...

Only the local write delays the training. A checkpoint exists when its record does, so a kill during
an upload leaves the one before it.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from videoar.pipeline.stage import RankContext

logger = logging.getLogger(__name__)


class Checkpoints:
    """Saves the checkpoints of a rank; a context manager that ends with the last one committed.

    Args:
        rank: whose.
        group: text that the ranks of one start share and no other start has. Given, every rank
            saves a part of each checkpoint; empty, rank 0 saves all of it.
    """

    def __init__(self, rank: RankContext, group: str = "") -> None:
        self._rank, self._group = rank, group
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._upload: Future[None] | None = None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Commit the files that `write` puts into a folder as the checkpoint of a step.

        Raises:
            VideoARError: the checkpoint before this one could not be committed.
        """
        if self._rank.index and not self._group:
            return
        self.wait()  # at most one copy on the local disk
        # in the scratch folder, which is swept after a kill
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=self._rank.scratch))
        write(folder)
        self._upload = self._pool.submit(self._commit, step, folder)

    def _commit(self, step: int, folder: Path) -> None:
        try:
            self._rank.save_checkpoint(step, folder, self._group)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def wait(self) -> None:
        """Wait until the last checkpoint is committed.

        Raises:
            VideoARError: it could not be.
        """
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.result()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            # the error that ends the training is the cause to report
            logger.warning("the last checkpoint was not committed: %s", failure)
        finally:
            self._pool.shutdown()


def resume(rank: RankContext, load: Callable[[Path], None]) -> bool:
    """Call `load` with a temporary copy of the newest checkpoint; return whether there was one."""
    with tempfile.TemporaryDirectory(prefix="resume-", dir=rank.scratch) as folder:
        has_one = rank.load_checkpoint(Path(folder)) is not None
        if has_one:
            load(Path(folder))
    return has_one
