"""The decoding child: results equal to those of this process, and one lost source per crash."""

import os
import signal

import pytest

from tests.support.hostile import video
from videoar.core.errors import (
    MediaError,
    OutOfMemoryError,
    SourceChangedError,
    WorkerLostError,
)
from videoar.media.process import Limits
from videoar.media.sandbox import SandboxedDecoder
from videoar.media.scan import ScanPlan, scan


@pytest.fixture
def decoder():
    with SandboxedDecoder(ScanPlan(size_px=48), Limits(wall_s=20, cpu_s=20)) as decoder:
        yield decoder


def test_child_gives_equal_results_and_survives_bad_files(tmp_path, decoder):
    good = video(tmp_path / "a.mp4", num_frames=40)
    (tmp_path / "b.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(500))
    before = list(decoder.scan(good))
    pid = decoder._children["scan"].process.pid
    with pytest.raises(MediaError):
        list(decoder.scan(tmp_path / "b.mp4"))
    after = list(decoder.scan(good))
    assert decoder._children["scan"].process.pid == pid
    here = list(scan(good, ScanPlan(size_px=48)))
    for ours, theirs in ((before, here), (after, here)):
        assert [vars(x) for x in ours[-1:]] == [vars(x) for x in theirs[-1:]]
        assert all(
            (a.frames_THWC == b.frames_THWC).all() for a, b in zip(ours[:-1], theirs, strict=False)
        )
        assert [a.columns for a in ours[:-1]] == [b.columns for b in theirs[:-1]]
    *bare, _ = decoder.run(good, ScanPlan(size_px=48, with_pixels=False))
    assert [a.columns for a in bare] == [b.columns for b in here[:-1]]
    assert [len(a.frames_THWC) for a in bare] == [0] * len(bare)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stroke", "kind"),
    [
        (signal.SIGSTOP, WorkerLostError),
        (signal.SIGTERM, WorkerLostError),
        (signal.SIGBUS, WorkerLostError),
        (signal.SIGKILL, OutOfMemoryError),
        (signal.SIGSEGV, MediaError),
    ],
)
def test_only_a_crash_of_the_decoder_speaks_against_its_source(tmp_path, stroke, kind):
    good = video(tmp_path / "a.mp4", num_frames=40)
    with SandboxedDecoder(ScanPlan(size_px=48), Limits(wall_s=2, cpu_s=20)) as decoder:
        assert len(list(decoder.scan(good))) == 3
        pid = decoder._children["scan"].process.pid
        os.kill(pid, stroke)
        with pytest.raises(kind, match=r"a\.mp4"):
            list(decoder.scan(good))
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert len(list(decoder.scan(good))) == 3


def _replaced(path, by):
    by.rename(path)


def _overwritten(path, by):
    path.write_bytes(by.read_bytes())


def _made_readable(path, by):
    path.chmod(0o600)


def _linked(path, by):
    path.with_name("backup.mp4").hardlink_to(path)


def _overwritten_with_old_times(path, by):
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    size = path.stat().st_size
    path.write_bytes(by.read_bytes()[:size].ljust(size, b"\0"))
    os.utime(path, ns=times)


CHANGES = {
    _replaced: (MediaError, "IO_TRANSIENT", "has changed while it was read"),
    _overwritten: (MediaError, "IO_TRANSIENT", "has changed while it was read"),
    # no verdict on the source: it is hashed and read again
    _made_readable: (SourceChangedError, "SOURCE_CHANGED", "its mode, owner or links"),
    _linked: (SourceChangedError, "SOURCE_CHANGED", "its mode, owner or links"),
    _overwritten_with_old_times: (SourceChangedError, "SOURCE_CHANGED", "its mode, owner or links"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_it_was_hashed_gives_no_clip(tmp_path, decoder, change):
    path = video(tmp_path / "a.mp4", num_frames=40)
    other = video(tmp_path / "b.mp4", num_frames=40, picture="testsrc=s=64x48:r=12")
    (tmp_path / "into").mkdir()
    fetched, _ = decoder.fetch(path.as_uri(), tmp_path / "into")
    assert len(list(decoder.scan(fetched))) == 3
    change(path, other)
    kind, code, message = CHANGES[change]
    with pytest.raises(kind, match=message) as error:
        list(decoder.scan(fetched))
    assert error.value.code == code
    assert error.value.where == path.as_uri()
