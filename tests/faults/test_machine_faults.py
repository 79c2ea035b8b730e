"""What a machine does while it reads a video is no verdict on the video.

Each fault ends in the snapshot of an undisturbed run: at once, or after the fault is gone.
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.hostile import video
from tests.support.small_pipeline import command, environment, in_a_process, videoar
from tests.support.video_files import moving_noise
from videoar.core.errors import DamagedError, TransientStorageError
from videoar.media.clip_reader import ClipReader
from videoar.media.decode import require_frames
from videoar.media.transcode import encode_clips
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow
BAD = "empty.mp4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(2):
        video(folder / f"good{i}.mp4", picture=f"testsrc2=s=64x48:r={12 + i}")
    (folder / BAD).touch()
    return folder


def pipeline(folder, at, **options):
    at.mkdir(exist_ok=True)
    clips = {"stage": "ingest", "rate_fps": None, "num_frames": 9, "size_px": 32, **options}
    stages = {"clips": {**clips, "from": {"sources": "videos"}, "retries": {"infra": 1}}}
    document = {"pipeline": "faults", "inputs": {"videos": str(folder)}, "stages": stages}
    (at / "p.yaml").write_text(yaml.safe_dump(document))
    return str(at / "p.yaml")


def clips(report):
    return report["outputs"]["clips"]


@pytest.fixture(scope="module")
def calm(folder, tmp_path_factory):
    """The snapshot of an undisturbed run."""
    root = tmp_path_factory.mktemp("calm")
    return clips(videoar("run", pipeline(folder, root), store=root.as_uri()))


def dying(path: Path, real: str, starts: str) -> Path:
    """Write a program that dies of SIGKILL at its n-th start, for each n of `starts`."""
    path.write_text(
        f"#!/bin/sh\nn=$(($(cat {path}.n 2>/dev/null || echo 0) + 1)); echo $n > {path}.n\n"
        f'case " {starts} " in *" $n "*|*" all "*) kill -9 $$;; esac\nexec {real} "$@"\n'
    )
    path.chmod(0o755)
    return path


@pytest.mark.fault(16, "SIGKILL of the fetching or scanning child")
@pytest.mark.parametrize("starts", ["1", "2", "1 3", "all"])
def test_killed_child_rejects_nothing(folder, calm, tmp_path, monkeypatch, starts):
    fake = dying(tmp_path / "python", sys.executable, starts)
    path, store = pipeline(folder, tmp_path / "p"), (tmp_path / "s").as_uri()
    with monkeypatch.context() as patch:
        patch.setattr("videoar.media.sandbox.sys.executable", str(fake))
        code = 3 if starts == "all" else 0
        report = videoar("run", path, store=store, code=code)
    if starts == "all":
        assert report["error"]["code"] == "OUT_OF_MEMORY"
        assert "killed" in report["stderr"]
        assert "clips" not in {s.dataset for s in open_store(store).snapshots()}
        report = videoar("run", path, store=store)
    assert clips(report) == calm


@pytest.mark.fault(14, "a temporary folder of a few kilobytes")
@pytest.mark.parametrize("size", ["4k", "8k", "16k", "32k"])
def test_full_temporary_folder_rejects_nothing(folder, calm, tmp_path, size):
    (small := tmp_path / "small").mkdir()
    namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no user namespaces")
    store, path = (tmp_path / "s").as_uri(), pipeline(folder, tmp_path / "p")
    mount = f'mount -t tmpfs -o size={size} tmpfs {small}; exec "$@"'
    call = [*namespace, "sh", "-c", mount, "sh", *command("run", path, store=store)]
    code, _, err = in_a_process(call, environment(TMPDIR=str(small)))
    assert code in {0, 7}, err
    assert clips(videoar("run", path, store=store)) == calm


@pytest.mark.fault(14, "a source without read permission")
def test_unreadable_source_fails_the_run_until_it_can_be_read(folder, calm, tmp_path):
    # root reads everything, unless it gives up these two capabilities
    drop = [f"--{kind}=-dac_override,-dac_read_search" for kind in ("bounding-set", "inh-caps")]
    as_user = ["setpriv", *drop] if os.geteuid() == 0 else []
    source = folder / "good1.mp4"
    store, path = (tmp_path / "s").as_uri(), pipeline(folder, tmp_path / "p")
    source.chmod(0)
    try:
        call = [*as_user, *command("run", path, store=store)]
        code, _, err = in_a_process(call, environment())
    finally:
        source.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert code == 7
    assert f"{source.as_uri()}: Permission denied (give this user access" in err
    assert clips(videoar("run", path, store=store)) == calm


@pytest.mark.fault(12, "a decoder that crashes on one video")
def test_video_that_crashes_each_decoder_is_rejected(folder, tmp_path, monkeypatch):
    """Two fresh children end in the decoder: then it is the video."""
    crash = tmp_path / "python"
    crash.write_text(
        f"#!{sys.executable}\n"
        "import ctypes, os, sys, runpy\n"
        "import videoar.media.scan as module\n"
        "real = module.scan\n"
        "def scan(path, plan):\n"
        "    if os.path.basename(os.path.realpath(path)) == 'good1.mp4':\n"
        "        ctypes.string_at(0)\n"  # a signal of its own is denied
        "    return real(path, plan)\n"
        "module.scan = scan\n"
        "sys.argv = sys.argv[2:]\n"
        "runpy.run_module('videoar.media.sandbox', run_name='__main__', alter_sys=True)\n"
    )
    crash.chmod(0o755)
    monkeypatch.setattr("videoar.media.sandbox.sys.executable", str(crash))
    path, store = pipeline(folder, tmp_path / "p", max_reject_fraction=0.7), tmp_path / "s"
    report = videoar("run", path, store=store.as_uri())
    rows = open_store(store.as_uri()).snapshot(clips(report)).rejects().table().to_pylist()
    assert {r["item_id"]: r["reasons"] for r in rows} == {BAD: ["EMPTY"], "good1.mp4": ["CRASH"]}


def test_more_rejects_than_half_fail_ingest_and_the_error_names_the_reason(folder, tmp_path):
    (mostly_bad := tmp_path / "in").mkdir()
    shutil.copy(folder / "good0.mp4", mostly_bad)
    for name in "abc":
        (mostly_bad / f"{name}.mp4").touch()
    store = (tmp_path / "s").as_uri()
    report = videoar("run", pipeline(mostly_bad, tmp_path / "p"), store=store, code=3)
    assert "3 of 4 rows were rejected" in report["stderr"]
    assert "most often for EMPTY" in report["stderr"]


@pytest.mark.fault(13, "a stored clip of other bytes")
def test_damaged_clip_is_named_and_not_rejected(tmp_path):
    store = open_store((tmp_path / "s").as_uri())
    (data,) = encode_clips([moving_noise(9, 1)], 8.0, 12)
    key = store.put_object(data, ".mp4").key
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    (tmp_path / "s" / key).write_bytes(flipped)
    with pytest.raises(DamagedError, match=key):
        ClipReader(store.objects)({"video_key": key})


def test_cut_file_is_found_before_it_is_stored():
    frames = moving_noise(9, 1)
    (data,) = encode_clips([frames], 8.0, 12)
    require_frames(data, 9)
    for size in np.linspace(0, len(data) - 2, 12, dtype=int):
        with pytest.raises(TransientStorageError, match="of 9 frames"):
            require_frames(data[:size], 9)
