"""Listings of sources: memory, space for temporary files, what is new since an earlier one."""

import io
import tracemalloc
from contextlib import closing

import pytest

from tests.support.stage_chain import provenance
from videoar.contracts.names import SOURCES
from videoar.core.errors import DiskError
from videoar.media import labels, sources
from videoar.media.listing import ListedFile
from videoar.media.sources import LABELS, list_sources
from videoar.records.run import InputRun
from videoar.runner import inputs
from videoar.runner.inputs import Listing, compare, count_new, resolve
from videoar.storage import table_spool
from videoar.storage.key_set import KeySet
from videoar.storage.store import open_store


class ManyFiles:
    """A place with files of a few folders, a label for each."""

    is_local = True

    def __init__(self, count):
        self.count = count
        names = (f"{n % 7}/{n}.mp4,class {n % 9},words of {n}" for n in range(count))
        self.labels = "\n".join(["file,label,caption", *names]).encode()

    def files(self):
        for n in range(self.count):
            name = f"{n % 7}/{n}.mp4"
            yield ListedFile(f"file:///videos/{name}", name, f"{n}-{n}", n)
        yield ListedFile(f"file:///videos/{LABELS}", LABELS, "1-1", 1)

    def open(self, file):
        assert file.name == LABELS
        return io.BytesIO(self.labels)


def test_memory_does_not_grow_with_the_number_of_files(monkeypatch):
    monkeypatch.setattr(sources, "_BATCH", 100)
    monkeypatch.setattr(labels, "_BATCH", 100)
    monkeypatch.setattr(table_spool, "_MEMORY_BYTES", 4_000)

    def peak_bytes(count):
        place = ManyFiles(count)
        monkeypatch.setattr(sources, "open_place", lambda _: place)
        tracemalloc.start()
        listing = Listing("videos", SOURCES, list_sources("videos"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(map(len, listing.read())) == count
        return peak

    peak_bytes(10)  # what is made once
    assert peak_bytes(1_200) < 1.2 * peak_bytes(300)


def test_full_disk_is_a_fault_of_the_machine(monkeypatch, tmp_path):
    for number in range(200):
        (tmp_path / f"{number:0200}.mp4").touch()
    listing = list_sources(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(sources, "_TABLES", f"PRAGMA max_page_count=8; {sources._TABLES}")
        with pytest.raises(DiskError, match=r"disk is full \(free some space, or set TMPDIR"):
            next(listing)

    with closing(KeySet(tmp_path / "keys")) as keys:
        keys._execute("PRAGMA max_page_count=3")
        with pytest.raises(DiskError, match=r"disk is full \(free some space, or set TMPDIR"):
            any(keys.add(f"{number:0200}") and False for number in range(200))

    def write(file, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table_spool.SpooledTemporaryFile, "write", write)
    with pytest.raises(DiskError, match=r"No space left on device \(free some space"):
        resolve(open_store("memory://full"), "videos", str(tmp_path))


def test_only_files_that_differ_are_compared(monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "_SLICE_ROWS", 4)
    store, videos = open_store("memory://compared"), tmp_path / "videos"
    videos.mkdir()
    for number in range(60):
        (videos / f"{number:02}.mp4").touch()
    earlier = resolve(store, "videos", str(videos)).commit(store, provenance("videos"))
    (videos / "60.mp4").write_bytes(b"new")
    (videos / "10.mp4").write_bytes(b"changed")
    (videos / "30.mp4").unlink()
    listing = resolve(store, "videos", str(videos))
    assert count_new(store, "videos", earlier.id, listing) == (2, 10)
    listed = listing.commit(store, provenance("videos"))
    shared = {file.key for file in earlier.files} & {file.key for file in listed.files}
    assert len(shared) > 3
    for key in shared:
        store.objects.delete(key)  # so a read of one of these fails
    assert count_new(store, "videos", earlier.id, listed) == (2, 10)
    monkeypatch.setattr(inputs, "previous_input", lambda *_: InputRun(
        snapshot=earlier.id, sources=60, new=60, changed=0, gone=0
    ))  # fmt: skip
    expected = InputRun(snapshot=listed.id, sources=60, new=1, changed=1, gone=1)
    assert compare(store, "p", "run", "videos", listed) == expected
