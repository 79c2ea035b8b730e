"""Checkpoints are uploaded while the training continues."""

import threading

import pytest

from tests.support.loop_rank import MemoryRank
from videoar.core.errors import StageError, StorageError
from videoar.pipeline.checkpoints import Checkpoints, resume


class SlowRank(MemoryRank):
    """Uploads once it is allowed to."""

    def __init__(self, scratch, error=None):
        super().__init__(scratch)
        self.may_upload, self.error = threading.Event(), error

    def save_checkpoint(self, step, folder, group=""):
        assert self.may_upload.wait(10)
        if self.error:
            raise self.error
        super().save_checkpoint(step, folder, group)


def write(text):
    return lambda folder: (folder / "state").write_text(text)


def save_all(rank, steps, error=None):
    with Checkpoints(rank) as checkpoints:
        for step in steps:
            checkpoints.save(step, write("state"))
        if error:
            raise error


def test_training_continues_during_the_upload(tmp_path):
    rank = SlowRank(tmp_path)
    with Checkpoints(rank) as checkpoints:
        checkpoints.save(1, write("one"))
        assert rank.saved == {}, "returned before the upload"
        rank.may_upload.set()
        checkpoints.save(2, write("two"))
    assert [files["state"] for files in rank.saved.values()] == [b"one", b"two"]
    assert list(tmp_path.iterdir()) == [], "local copies are removed"
    assert resume(
        rank, lambda folder: (tmp_path / "got").write_bytes((folder / "state").read_bytes())
    )
    assert (tmp_path / "got").read_text() == "two"


@pytest.mark.fault(24, "an upload that fails")
def test_failed_upload_is_raised_by_the_next_save_or_the_end(tmp_path):
    rank = SlowRank(tmp_path, StorageError("bucket", "denied"))
    rank.may_upload.set()
    for steps in ((1, 2), (3,)):
        with pytest.raises(StorageError, match="denied"):
            save_all(rank, steps)


def test_error_of_the_training_is_raised_and_not_that_of_the_upload(tmp_path, caplog):
    rank = SlowRank(tmp_path, StorageError("bucket", "denied"))
    rank.may_upload.set()
    with pytest.raises(StageError, match="diverged"):
        save_all(rank, (1,), StageError("training", "diverged"))
    assert "denied" in caplog.text


def test_other_ranks_save_in_a_group_only(tmp_path):
    rank = MemoryRank(tmp_path)
    rank.index = 1
    with Checkpoints(rank) as checkpoints:
        checkpoints.save(1, write("one"))
    assert rank.saved == {}
    with Checkpoints(rank, "group") as checkpoints:
        checkpoints.save(1, write("one"))
    assert rank.saved != {}
