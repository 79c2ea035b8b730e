"""Folders of killed processes are removed; those of running processes and other users are kept."""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.child_process import exit_code
from tests.support.small_videos import draw
from tests.support.stage_chain import ingest
from videoar.core.scratch import Scratch, sweep
from videoar.storage.store import open_store


def ingest_at(store_url, folder):
    return ingest(open_store(store_url), folder, rate_fps=None, size_px=32)


@pytest.fixture(autouse=True)
def temp(tmp_path, monkeypatch):
    """Give this test and its children a temporary folder of their own."""
    (tmp_path / "temp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path / "temp"
    tempfile.tempdir = None


def folders(temp: Path) -> set[Path]:
    return set(temp.glob("videoar-scratch-*"))


def write_and_die(_):
    open_store("memory://x").objects.put("a", b"1")
    with Scratch():
        os.kill(os.getpid(), 9)


@pytest.mark.slow
def test_folders_of_memory_stores_and_others_of_a_killed_process_are_removed(temp):
    open_store("memory://of-this-process").objects.put("a", b"1")
    (ours,) = folders(temp)
    assert exit_code(write_and_die, "", TMPDIR=str(temp)) == -9
    assert len(folders(temp)) == 3
    sweep()
    assert folders(temp) == {ours}


@pytest.mark.slow
def test_scratch_of_killed_ingest_is_removed_by_the_next(temp, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    draw(tmp_path / "in" / "a.mp4", 0)
    store = (tmp_path / "store").as_uri()
    child = {"VIDEOAR_CRASH_AT": "clips-stored", "TMPDIR": str(temp)}
    assert exit_code(ingest_at, store, str(tmp_path / "in"), **child) == -9
    assert len(folders(temp)) == 1
    with Scratch() as ours:
        _, metrics = ingest_at(store, str(tmp_path / "in"))
        assert folders(temp) == {ours}
    assert metrics["sources_kept"] == 1
    assert folders(temp) == set()
    assert (tmp_path / "in" / "a.mp4").exists()  # the folder that went held a link to it


def test_scratch_of_running_owner_is_kept(temp):
    script = (
        "from videoar.core.scratch import Scratch; import time;"
        "print(Scratch().path, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        path = Path(owner.stdout.readline().strip())
        (path / "source").write_bytes(b"x")
        sweep()
        assert (path / "source").exists()
        owner.kill()
        owner.wait()
        sweep()
        assert not path.exists()


def test_scratch_sweep_skips_links_and_other_users(temp, tmp_path):
    (tmp_path / "mine").mkdir()
    (temp / "videoar-scratch-link").symlink_to(tmp_path / "mine")
    (temp / "videoar-scratch-file").touch()
    (temp / "videoar-other").mkdir()
    before = set(temp.iterdir())
    if os.geteuid() == 0:
        (temp / "videoar-scratch-foreign").mkdir()
        os.chown(temp / "videoar-scratch-foreign", 65534, 65534)
        before.add(temp / "videoar-scratch-foreign")
    sweep()
    assert set(temp.iterdir()) == before
    assert (tmp_path / "mine").exists()


def test_scratch_creation_racing_with_sweep_succeeds(temp):
    def make(_):
        for _ in range(100):
            sweep()
            with Scratch() as folder:
                (folder / "source").write_bytes(b"x")
                sweep()
                assert (folder / "source").read_bytes() == b"x"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(8)))
    assert folders(temp) == set()
