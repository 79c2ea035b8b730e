"""A clip has the same frames read from the store and from its source, and from no other source."""

import numpy as np
import pytest

from tests.support.stage_chain import ingest
from tests.support.video_files import ffmpeg, moving_noise, write_video
from videoar.core.errors import MediaError
from videoar.media.clip_reader import COLUMNS, ClipReader
from videoar.media.decode import decode_clip
from videoar.media.scan import ScanPlan, scan
from videoar.storage.store import open_store

OPTIONS = {"size_px": 48, "num_frames": 9, "find_shots": False, "max_clips_per_source": 50}


FILES = {
    "a.mp4": {"crf": 5},
    "a.mkv": {"codec": "libx265", "crf": 10},
    "a.webm": {"codec": "libvpx-vp9", "crf": 20},
    "a.avi": {"codec": "mpeg4", "crf": 3},
    "a.ts": {"crf": 5},
    "a.mov": {"codec": "mjpeg", "crf": 3, "pix_fmt": "yuvj420p"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    for name, options in FILES.items():
        write_video(folder / name, moving_noise(90), **options)
    return folder


@pytest.fixture(scope="module", params=[None, 8.0], ids=["native", "grid"])
def referenced(request, folder, tmp_path_factory):
    """Return the rate, a reader, and the rows of the references to every file."""
    store = open_store(tmp_path_factory.mktemp("store").as_uri())
    options = {"keep": "references", "rate_fps": request.param, **OPTIONS}
    clips, _ = ingest(store, str(folder), **options)
    assert list(store.objects.list("objects/")) == []
    read = ClipReader(store.objects)
    yield request.param, read, clips.table([*COLUMNS, "source_name"]).to_pylist()
    read.close()


@pytest.mark.parametrize("name", FILES)
def test_reference_returns_the_frames_of_the_scan(folder, referenced, name):
    rate_fps, read, rows = referenced
    plan = ScanPlan(size_px=48, num_frames=9, find_shots=False, rate_fps=rate_fps)
    *decoded, _ = scan(folder / name, plan)
    own = [row for row in rows if row["source_name"] == name]
    own.sort(key=lambda row: row["frame_times_us"])
    assert len(own) == len(decoded) >= 2
    for row, clip in zip(reversed(own), reversed(decoded), strict=True):
        assert np.array_equal(read(row), clip.frames_THWC)


@pytest.mark.slow
def test_reference_returns_the_same_frames_at_any_size(tmp_path):
    (tmp_path / "in").mkdir()
    plain = write_video(tmp_path / "plain.mp4", moving_noise(20, size=(72, 128)))
    ffmpeg("-i", plain, "-c", "copy", "-metadata:s:v", "rotate=90", tmp_path / "in" / "turned.mp4")
    plain.rename(tmp_path / "in" / "wide.mp4")
    write_video(tmp_path / "in" / "square.mp4", moving_noise(20, size=(64, 64)))
    sizes = ((32, 32), (24, 42), (42, 24))
    store = open_store((tmp_path / "store").as_uri())
    options = {**OPTIONS, "size_px": sizes, "keep": "references", "rate_fps": None}
    rows = ingest(store, str(tmp_path / "in"), **options)[0].table().to_pylist()
    read = ClipReader(store.objects)
    seen = {}
    for row in rows:
        plan = ScanPlan(size_px=sizes, num_frames=9, find_shots=False)
        decoded = list(scan(tmp_path / "in" / row["source_name"], plan))[:-1]
        (same,) = (e for e in decoded if e.columns["frame_times_us"] == row["frame_times_us"])
        assert np.array_equal(read(row), same.frames_THWC)
        seen[row["source_name"]] = row["height_px"], row["width_px"]
        assert same.frames_THWC.shape[1:3] == seen[row["source_name"]]
    read.close()
    assert seen == {"square.mp4": (32, 32), "wide.mp4": (24, 42), "turned.mp4": (42, 24)}


@pytest.mark.slow
@pytest.mark.parametrize("size_px", [48, [[32, 56]]], ids=["square", "wide"])
def test_stored_clip_and_reference_have_the_same_frames(tmp_path, size_px):
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mp4", moving_noise(40))
    result = {}
    for keep in ("clips", "references"):
        store = open_store((tmp_path / keep).as_uri())
        options = {**OPTIONS, "size_px": size_px, "keep": keep, "rate_fps": None}
        clips, _ = ingest(store, str(tmp_path / "in"), **options)
        read = ClipReader(store.objects)
        rows = clips.table().to_pylist()
        result[keep] = [read(row) for row in rows]
        read.close()
        if keep == "clips":
            stored = decode_clip(store.objects.get(rows[0]["video_key"]))
            assert np.array_equal(result[keep][0], stored)
        else:
            assert {row["video_key"] for row in rows} == {None}
    for stored, referenced in zip(result["clips"], result["references"], strict=True):
        assert np.abs(stored.astype(int) - referenced).mean() < 12


@pytest.mark.slow
def test_changed_or_missing_source_is_rejected(tmp_path):
    (tmp_path / "in").mkdir()
    path = write_video(tmp_path / "in" / "a.mp4", moving_noise(40))
    store = open_store((tmp_path / "store").as_uri())
    options = {"keep": "references", "rate_fps": None, **OPTIONS}
    clips, _ = ingest(store, str(tmp_path / "in"), **options)
    row = clips.table().to_pylist()[0]
    reader = ClipReader(store.objects)
    reader(row)
    write_video(path, moving_noise(40, seed=1))
    with pytest.raises(MediaError, match=r"ingest it again"):
        reader(row)
    path.unlink()
    with pytest.raises(MediaError, match="No such file"):
        ClipReader(store.objects)(row)
