"""Hostile inputs: each ends once and as expected, opens no other file, leaves no process."""

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from tests.support import hostile
from tests.support.stage_chain import ingest
from videoar.core.errors import (
    ConfigError,
    MediaError,
    WorkerLostError,
)
from videoar.media.process import Limits
from videoar.media.reject_codes import CODES
from videoar.media.sandbox import SandboxedDecoder
from videoar.media.scan import ScanPlan
from videoar.media.sources import list_sources
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow
OPTIONS = {"rate_fps": None, "num_frames": 9, "size_px": 32, "sources_per_shard": 8}
OPTIONS |= {"max_duration_s": 600.0}
PLAN = ScanPlan(num_frames=9, size_px=32)


@contextmanager
def watched(path):
    """Yield a function that returns whether a process has opened a file since the last call."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(handle, os.fsencode(path), 0x20 | 0x1) > 0  # IN_OPEN, IN_ACCESS

    def is_opened():
        with suppress(BlockingIOError):
            return bool(os.read(handle, 1 << 16))
        return False

    yield is_opened
    os.close(handle)


def processes(mark):
    """Return the processes, zombies too, that are children of this one or inherited its mark."""
    result = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            is_ours = int(parent) == os.getpid() or mark.encode() in (
                folder / "environ"
            ).read_bytes().split(b"\0")
            if is_ours and int(folder.name) != os.getpid():
                result.append(int(folder.name))
    return set(result)


def state(folder):
    """Return what must not change: every entry's kind, size, times and, of files, its content."""
    return {
        str(path): (
            (status := path.lstat()).st_mode, status.st_size, status.st_mtime_ns, status.st_ino,
            hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None,
        )
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


@pytest.fixture(scope="module")
def mark():
    value = f"{os.getpid()}-{time.monotonic_ns()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON_HOSTILE_TEST", value)  # a name that decoders get too
        yield f"PYTHON_HOSTILE_TEST={value}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def expected(folder):
    return hostile.make(folder)


@pytest.fixture(scope="module")
def outcome(folder, expected, mark, tmp_path_factory):
    """Ingest everything once, with the canary watched."""
    root = tmp_path_factory.mktemp("run")
    before, running = state(folder), processes(mark)
    with watched(folder / hostile.CANARY) as is_opened:
        clips, metrics = ingest(open_store((root / "store").as_uri()), str(folder), **OPTIONS)
        is_canary_opened = is_opened()
    return SimpleNamespace(
        kept=Counter(clips.table(["source_uri"])["source_uri"].to_pylist()),
        rejects=clips.rejects().table().to_pylist(),
        metrics=metrics,
        is_canary_opened=is_canary_opened,
        left=processes(mark) - running,
        before=before,
        after=state(folder),
    )


@pytest.mark.fault(11, "broken, cut and hostile files in ingest")
def test_every_input_ends_once_and_as_expected(folder, expected, outcome):
    reasons = {row["uri"]: row["reasons"] for row in outcome.rejects}
    assert len(reasons) == len(outcome.rejects)
    assert not set(reasons) & set(outcome.kept)
    ends = {
        name: reasons.get(uri) or ([hostile.CLIPS] if uri in outcome.kept else [])
        for name in expected
        if (uri := "file://" + quote(os.fsencode(folder / name)))
    }
    assert len(reasons) + len(outcome.kept) == len(expected)
    wrong = {
        name: (end, expected[name])
        for name, end in ends.items()
        if len(end) != 1 or end[0] not in expected[name]
    }
    assert wrong == {}


def test_counts_add_up_and_every_reject_has_a_typed_code(expected, outcome):
    metrics = outcome.metrics
    assert metrics["sources"] == len(expected)
    assert metrics["sources"] == metrics["sources_kept"] + metrics["sources_rejected"]
    assert metrics["sources_rejected"] == len(outcome.rejects)
    assert metrics["clips"] == outcome.kept.total()
    assert {row["reasons"][0] for row in outcome.rejects} <= set(CODES)
    assert all(row["detail"] for row in outcome.rejects)


def test_folder_is_unchanged_and_no_process_remains(outcome, mark):
    assert outcome.after == outcome.before
    assert outcome.left == set()
    assert not list(Path.cwd().glob("hacked*"))  # what a name would do on a command line
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as left_behind:
        assert left_behind.pid in processes(mark)  # the check can fail
        left_behind.kill()


def test_plain_ffmpeg_opens_the_canary(folder, expected):
    bitten = set()
    with watched(folder / hostile.CANARY) as is_opened:
        for name, options in hostile.BAITS.items():
            command = ["ffmpeg", "-nostdin", "-v", "error", "-protocol_whitelist", "file", *options]
            command += ["-i", f"file:{folder / name}", "-f", "null", "-"]
            subprocess.run(command, check=False, capture_output=True, timeout=60)
            bitten |= {name} if is_opened() else set()
    # newer versions are more careful with playlists; these two work as they always did
    assert {"concat-relative.mp4", "dref-absolute.mov", "dref-relative.mov"} <= bitten


def test_decoder_never_opens_the_canary(folder, expected, outcome):
    assert not outcome.is_canary_opened
    pointers = {*hostile.BAITS, "smil.mp4", "sdp.mp4", "gab2.avi", "attached.mkv"}
    with (
        watched(folder / hostile.CANARY) as is_opened,
        SandboxedDecoder(PLAN, Limits(20, 20)) as decoder,
    ):
        for name in sorted(pointers & set(expected)):
            with suppress(MediaError):  # under its own name, so that relative paths lead there
                list(decoder.scan(folder / name))
            assert not is_opened(), name
        (folder / hostile.CANARY).open("rb").close()
        assert is_opened()


FORMATS = {
    "a.mp4": ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "5"),
    "a.mkv": ("-c:v", "libx264", "-pix_fmt", "yuv420p"),
    "a.webm": ("-c:v", "libvpx-vp9"),
    "a.avi": ("-c:v", "mpeg4"),
    "a.ts": ("-c:v", "mpeg4"),
    "a.flv": ("-c:v", "libx264", "-pix_fmt", "yuv420p"),
    "a.asf": ("-c:v", "wmv2"),
    "a.mov": ("-c:v", "prores_ks"),
}


def test_mutated_files_end_with_a_code_and_crash_no_child(tmp_path):
    ends = Counter()
    with SandboxedDecoder(PLAN, Limits(20, 20)) as decoder:
        for seed, (name, options) in enumerate(FORMATS.items()):
            path = hostile.video(tmp_path / name, *options)
            for data in hostile.mutants(path, 60, seed):
                (tmp_path / "mutant").write_bytes(data)
                try:
                    *_, end = decoder.scan(tmp_path / "mutant")
                    ends[end.container] += 1
                except MediaError as error:
                    ends[error.code] += 1
    assert not {"CRASH", "TIMEOUT"} & set(ends)
    assert len(set(ends) & {"mov", "matroska", "avi", "mpegts", "flv", "asf"}) > 4
    assert ends["CORRUPT"]
    assert ends["NOT_VIDEO"]


@pytest.fixture
def decoder():
    with SandboxedDecoder(PLAN, Limits(wall_s=1.5, cpu_s=20)) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return hostile.video(tmp_path_factory.mktemp("good") / "good.mp4")


def rejection(decoder, path):
    """Return the code of a rejected source and the seconds until then."""
    start = time.monotonic()
    with pytest.raises(MediaError) as error:
        list(decoder.scan(path))
    return error.value.code, time.monotonic() - start


@pytest.mark.fault(12, "a decoder that hangs")
def test_stopped_decoder_is_killed_at_the_deadline(decoder, good):
    assert len(list(decoder.scan(good))) == 3
    os.kill(decoder._children["scan"].process.pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(WorkerLostError, match="waited until the time limit"):
        list(decoder.scan(good))
    assert 1.4 < time.monotonic() - start < 2.5
    assert len(list(decoder.scan(good))) == 3


def test_very_long_film_is_killed_at_the_deadline(decoder, good, tmp_path):
    film = hostile.repeated(tmp_path / "film.mp4", "3072x3072", 30, 100)
    assert film.stat().st_size < 2 << 20
    list(decoder.scan(good))
    pid = decoder._children["scan"].process.pid
    code, seconds = rejection(decoder, film)
    assert code == "TIMEOUT"
    assert 1.4 < seconds < 15  # it computes, and is given more time where others compute, too
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_child_of_a_killed_worker_exits(mark, tmp_path):
    film = hostile.repeated(tmp_path / "film.mp4", "3072x3072", 30, 100)
    before = processes(mark)
    script = (
        "import sys; from pathlib import Path; from videoar.media.sandbox import *;"
        "decoder = SandboxedDecoder(ScanPlan(num_frames=4097), Limits());"  # yields nothing
        "list(decoder.scan(Path(sys.argv[1])))"
    )
    with subprocess.Popen([sys.executable, "-c", script, film]) as worker:
        wait_until(lambda: len(processes(mark) - before) == 2)
        time.sleep(1.5)  # it is in the decoder now
        assert len(processes(mark) - before) == 2
        worker.kill()
    try:
        wait_until(lambda: processes(mark) == before)
    finally:
        for pid in processes(mark) - before:
            os.kill(pid, signal.SIGKILL)


def wait_until(is_so, seconds=30):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_memory_is_bounded_and_the_worker_continues(good, folder, expected, tmp_path):
    (tmp_path / "in").mkdir()
    for path in (good, folder / "bomb.mp4"):
        shutil.copy(path, tmp_path / "in")
    options = {**OPTIONS, "max_pixels": 1 << 30, "scan_memory_mib": 512, "scan_timeout_s": 20}
    start = time.monotonic()
    clips, _ = ingest(open_store((tmp_path / "s").as_uri()), str(tmp_path / "in"), **options)
    assert time.monotonic() - start < 20
    assert [row["reasons"] for row in clips.rejects().table().to_pylist()] == [["MEM"]]
    assert set(clips.table(["source_name"])["source_name"].to_pylist()) == {"good.mp4"}


def test_pipe_named_labels_csv_is_a_config_error(good, tmp_path):
    shutil.copy(good, tmp_path)
    os.mkfifo(tmp_path / "labels.csv")
    writer = Timer(5, lambda: (tmp_path / "labels.csv").write_bytes(b""))  # ends a hanging read
    writer.daemon = True
    writer.start()
    with pytest.raises(ConfigError, match="not a regular file"):
        next(list_sources(str(tmp_path)))
    writer.cancel()


def test_rejected_names_that_print_alike_stay_distinct(tmp_path):
    names = (b"a\xff\\xfe.mp4", b"a\\xff\\xfe.mp4", b"a\xff\xfe.mp4", b"a\\xff\xfe.mp4")
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / os.fsdecode(name)).touch()
    url = str(tmp_path / "in")
    clips, _ = ingest(open_store((tmp_path / "s").as_uri()), url, **OPTIONS)
    rejected = clips.rejects().table(["item_id"])["item_id"].to_pylist()
    assert len(set(rejected)) == len(names)
    assert r"a\xff\xfe.mp4" in rejected  # the one that has this very name
