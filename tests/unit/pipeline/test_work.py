"""A rank's checkpoints: the newest two stay, and nothing that others name goes with the rest.

And its progress, on which nothing hangs.
"""

import dataclasses
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.toys import REGISTRY
from videoar.core.errors import StorageError, TransientStorageError, WorkerLostError
from videoar.pipeline.work.progress import ProgressWriter, read_progress
from videoar.pipeline.work.rank import StoreRankContext
from videoar.pipeline.work.task import StageTask

CONFIG = {"steps": 6, "checkpoint_every": 2, "at_most": 100}


@pytest.fixture
def task(tmp_path):
    return StageTask(
        run_id="r", dataset="model", stage_type="count", config=CONFIG, inputs={},
        fingerprint_parts={"config": CONFIG}, store_url=(tmp_path / "store").as_uri(),
        registry=REGISTRY,
    )  # fmt: skip


def rank_of(task, tmp_path, index=0):
    return StoreRankContext(task, index, 2, tmp_path, lambda *_: None)


def save(rank, folder, step):
    folder.mkdir(exist_ok=True)
    (folder / "state").write_bytes(bytes(step))
    (folder / "same.json").write_text("{}")
    rank.save_checkpoint(step, folder)


def load(rank, folder):
    folder.mkdir(exist_ok=True)
    return rank.load_checkpoint(folder)


def kept(task):
    """Return the steps that have a record, and those that have files."""
    names = [info.key.rpartition("/")[2] for info in task.open_store().objects.list("checkpoints/")]
    records = [int(name.split(".")[0]) for name in names if "-" not in name]
    return records, sorted({int(name.split("-")[0]) for name in names if "-" in name})


def test_save_checkpoint_keeps_the_newest_two(task, tmp_path):
    rank, other = rank_of(task, tmp_path), task.open_store()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "same.json").write_text("{}")
    published = other.publish_folder(tmp_path / "model")  # as small and equal as files can be
    for step in (1, 2, 3, 10):
        save(rank, tmp_path / "state", step)
    assert kept(task) == ([3, 10], [3, 10])
    other.fetch_folder(published, tmp_path / "back")
    assert load(rank, tmp_path / "into") == 10
    assert (tmp_path / "into" / "state").read_bytes() == bytes(10)
    assert (tmp_path / "into" / "same.json").read_text() == "{}"


def test_checkpoint_of_several_ranks_exists_once_all_have_written_their_part(task, tmp_path):
    ranks = [rank_of(task, tmp_path, index) for index in range(2)]
    for rank in ranks:
        (tmp_path / f"part{rank.index}").mkdir()
        (tmp_path / f"part{rank.index}" / f"state-{rank.index}").write_text(str(rank.index))
    # a part of a killed attempt, which wrote other values
    (tmp_path / "stale").mkdir()
    (tmp_path / "stale" / "state-1").write_text("9")
    ranks[1].save_checkpoint(4, tmp_path / "stale", "first")
    with ThreadPoolExecutor(1) as pool:
        commit = pool.submit(ranks[0].save_checkpoint, 4, tmp_path / "part0", "second")
        time.sleep(0.5)
        assert not commit.done()
        assert kept(task)[0] == []
        ranks[1].save_checkpoint(4, tmp_path / "part1", "second")
        commit.result()
    assert load(ranks[1], tmp_path / "into") == 4
    texts = {path.name: path.read_text() for path in (tmp_path / "into").iterdir()}
    assert texts == {"state-0": "0", "state-1": "1"}


@pytest.mark.fault(25, "a rank that does not write its part")
def test_checkpoint_whose_other_part_never_comes_is_an_error(task, tmp_path, monkeypatch):
    monkeypatch.setattr("videoar.pipeline.work.rank._PART_TIMEOUT_S", 0.1)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "state").write_text("0")
    with pytest.raises(WorkerLostError, match=r"not written within 0\.1 s"):
        rank_of(task, tmp_path).save_checkpoint(4, tmp_path / "part", "group")
    assert kept(task)[0] == []


def test_files_of_a_killed_attempt_are_removed_with_older_checkpoints(task, tmp_path):
    rank, objects = rank_of(task, tmp_path), task.open_store().objects
    for step in (2, 4):
        save(rank, tmp_path / "state", step)
    place = next(objects.list("checkpoints/")).key.rpartition("/")[0]
    for half in ("000000001-a", "000000003-a", "000000009-a"):  # the last by a gang that is ahead
        objects.put(f"{place}/{half}", b"x")
    assert load(rank_of(task, tmp_path, index=1), tmp_path / "into") == 4
    assert kept(task) == ([2, 4], [1, 2, 3, 4, 9])
    assert load(rank, tmp_path / "into") == 4
    assert kept(task) == ([2, 4], [2, 3, 4, 9])
    save(rank, tmp_path / "state", 6)
    assert kept(task) == ([4, 6], [4, 6, 9])


class Stubborn:
    """Objects of a store that deletes nothing."""

    def __init__(self, objects):
        self._objects = objects

    def __getattr__(self, name):
        return getattr(self._objects, name)

    def delete(self, key):
        raise StorageError(key, "access denied")


class Silent(Stubborn):
    """Objects of a store that gives none out."""

    def read_into(self, key, spans):
        raise StorageError(key, "access denied")


def test_failed_deletion_of_a_checkpoint_does_not_stop_the_training(task, tmp_path, caplog):
    rank = rank_of(task, tmp_path)
    rank._store.objects = Stubborn(rank._store.objects)
    for step in (1, 2, 3):
        save(rank, tmp_path / "state", step)
    assert kept(task)[0] == [1, 2, 3]
    assert "access denied" in caplog.text


def test_checkpoint_deleted_while_loading_raises_a_transient_error(task, tmp_path):
    rank = rank_of(task, tmp_path)
    save(rank, tmp_path / "state", 1)
    rank._store.ledger.read = lambda key: None
    with pytest.raises(TransientStorageError, match="another run of the same training"):
        load(rank, tmp_path / "into")


@pytest.mark.fault(25, "a checkpoint file cut or deleted")
@pytest.mark.parametrize("damage", ["lost", "cut", "flipped"])
def test_damaged_checkpoint_resumes_all_ranks_from_the_one_before(task, tmp_path, damage):
    rank, objects = rank_of(task, tmp_path), task.open_store().objects
    for step in (2, 4):
        save(rank, tmp_path / "state", step)
    key = next(i.key for i in objects.list("checkpoints/") if "4-" in i.key and i.size_bytes == 4)
    objects.delete(key)
    if damage != "lost":
        objects.put(key, bytes(3) if damage == "cut" else b"\0\0\0\1")
    with pytest.raises(TransientStorageError, match="resumes from the checkpoint before"):
        load(rank_of(task, tmp_path, index=1), tmp_path / "into")
    assert kept(task) == ([2, 4], [2, 4])  # the first rank removes it, for all
    with pytest.raises(TransientStorageError, match="resumes from the checkpoint before"):
        load(rank, tmp_path / "into")
    assert kept(task) == ([2], [2])
    assert load(rank, tmp_path / "again") == 2
    save(rank, tmp_path / "state", 4)
    assert load(rank, tmp_path / "again") == 4


def test_failed_read_of_a_checkpoint_deletes_none(task, tmp_path):
    rank = rank_of(task, tmp_path)
    save(rank, tmp_path / "state", 2)
    rank._store.objects = Silent(rank._store.objects)
    with pytest.raises(StorageError, match="access denied"):
        load(rank, tmp_path / "into")
    assert kept(task) == ([2], [2])


def test_failed_write_of_progress_is_logged_once(task, caplog):
    sink = ProgressWriter(dataclasses.replace(task, store_url="file:///proc/videoar"))
    for step in range(3):
        sink(step, 3, {"loss": 1.0})
    assert caplog.text.count("progress could not be written: /proc/videoar") == 1


@pytest.mark.parametrize(("takes_s", "every_s"), [(0.01, 2), (1, 20)])
def test_slow_store_gets_progress_less_often(task, monkeypatch, takes_s, every_s):
    now_s, seen = 100.0, []

    def put(*_):
        nonlocal now_s
        seen.append(now_s)
        now_s += takes_s

    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    write = ProgressWriter(task)
    monkeypatch.setattr(write._store.objects, "put", put)
    for step in range(1, 100):
        write(step, 100, {})
        now_s += 0.5
    gaps = [after - before - takes_s for before, after in itertools.pairwise(seen)]
    assert gaps
    assert all(every_s - 0.01 < gap < every_s + 0.51 for gap in gaps)
    count = len(seen)
    write(100, 100, {})
    assert len(seen) == count + 1


def test_progress_has_the_rate_of_this_attempt_and_the_time_left(task, monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    write, store = ProgressWriter(task), task.open_store()

    def after(seconds, step):
        nonlocal now_s
        now_s += seconds
        write(step, 2000, {"loss": 0.5}, [{"step": step, "loss": 0.5}])
        progress, curve = read_progress(store, task.run_id, task.dataset)
        assert curve == [{"step": step, "loss": 0.5}]
        return str(progress)

    assert after(5, 1000) == "step 1000 of 2000"  # resumed: its rate is not known yet
    assert after(10, 1080) == "step 1080 of 2000, 8/s, 1 min 55 s left"
    assert after(100, 1010) == "step 1010 of 2000"  # went back to a checkpoint
    assert after(40, 1020) == "step 1020 of 2000, 4 s each, 1 h 5 min left"
