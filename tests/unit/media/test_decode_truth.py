"""What other projects decoded: times and pixels of their public test files, where they are.

    VIDEOAR_TORCHCODEC_RESOURCES   test/resources of github.com/pytorch/torchcodec
    VIDEOAR_MP4PARSE_TESTS         mp4parse/tests of github.com/mozilla/mp4parse-rust

Figures: benchmarks/results/decode_truth.md.
"""

import json
import os
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.video_files import ffmpeg
from videoar.core.errors import MediaError
from videoar.media.frame_resizer import FrameResizer
from videoar.media.pictures import pictures
from videoar.media.process import Limits
from videoar.media.reject_codes import CODES
from videoar.media.sandbox import SandboxedDecoder
from videoar.media.scan import ScanPlan
from videoar.media.source_decoder import open_source
from videoar.media.source_stream import DecodePlan

pytestmark = pytest.mark.shared
STREAMS = {"nasa_13013.mp4": (0, 3), "av1_video.mkv": (0,), "h265_video.mp4": (0,)}
LIMIT_S = 20.0


def folder_of(variable):
    path = Path(os.environ.get(variable, "/nowhere"))
    if not path.is_dir():
        pytest.skip(f"{variable} names no folder")
    return path


def decoded(path):
    """Return the times, us, and of each frame the RGB of plain swscale and of a scan."""
    plain, scanned = [], []
    with open_source(path, DecodePlan()) as source:
        resizer = None
        for picture in pictures(source, with_neighbours=True):
            assert picture.errors == 0
            size = ((picture.frame.height, picture.frame.width),)
            resizer = resizer or FrameResizer(size)
            plain.append(picture.frame.to_ndarray(format="rgb24"))
            scanned.append(resizer.pixels(resizer.rgb(picture)[0], picture.orientation))
        return np.array(source.times_us), np.stack(plain), np.stack(scanned)


def references(folder, name, stream, times_us):
    """Yield the index and the pixels of each reference frame of a stream that is there."""
    for path in sorted(folder.glob(f"{name}.stream{stream}.frame*.pt")):
        yield int(re.search(r"frame(\d+)", path.name)[1]), torch.load(path).numpy()
    # `ffmpeg -ss TIME -frames:v 1` shows the first frame that is not earlier, of the best stream
    for path in sorted(folder.glob(f"{name}.time*.pt")) if stream == STREAMS[name][-1] else ():
        time_s = float(re.search(r"time([\d.]+)\.pt", path.name)[1])
        yield int(np.searchsorted(times_us, round(time_s * 1e6) - 1)), torch.load(path).numpy()


@pytest.mark.parametrize(("name", "stream"), [(n, s) for n, ids in STREAMS.items() for s in ids])
def test_times_and_pixels_are_those_of_torchcodecs_references(tmp_path, name, stream):
    folder = folder_of("VIDEOAR_TORCHCODEC_RESOURCES")
    alone = tmp_path / name  # a reader chooses one stream of a file
    ffmpeg("-i", folder / name, "-map", f"0:{stream}", "-c", "copy", alone)
    times_us, plain, scanned = decoded(alone)
    info = folder / f"{name}.stream{stream}.all_frames_info.json"

    if info.exists():
        expected_us = [1e6 * float(row["pts_time"]) for row in json.loads(info.read_text())]
        assert np.abs(times_us - np.array(expected_us)).max() <= 1  # both round to 1 us
    worst = Counter()
    for index, pixels in references(folder, name, stream, times_us):
        worst["frames"] += 1
        for kind, frames in {"plain": plain, "scan": scanned}.items():
            error = np.abs(frames[index].astype(int) - pixels)
            worst[f"{kind} max"] = max(worst[f"{kind} max"], error.max())
            worst[f"{kind} mean"] = max(worst[f"{kind} mean"], error.mean())
    print(name, stream, len(times_us), dict(worst))
    assert worst["frames"]
    assert worst["plain max"] <= 1
    assert worst["scan mean"] < 2  # the references are of swscale's fast conversion


def has_frames(path):
    """Return whether ffmpeg shows a frame of a file."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", path, "-map", "0:v", "-f", "framemd5"]
    done = subprocess.run([*command, "-"], capture_output=True, check=False, timeout=LIMIT_S)
    return any(not line.startswith(b"#") for line in done.stdout.splitlines())


def test_every_file_of_mp4parse_gets_a_typed_verdict_in_time(tmp_path):
    folder = folder_of("VIDEOAR_MP4PARSE_TESTS")
    verdicts = {}
    limits = Limits(LIMIT_S, int(LIMIT_S))
    with SandboxedDecoder(ScanPlan(num_frames=1), limits) as decoder:
        for path in sorted(filter(Path.is_file, folder.rglob("*"))):
            (into := tmp_path / str(len(verdicts))).mkdir()
            start = time.monotonic()
            try:
                source, _ = decoder.fetch(path.as_uri(), into)
                verdict = f"{len(list(decoder.scan(source))) - 1} clips"
            except MediaError as error:
                verdict = error.code
            assert time.monotonic() - start < LIMIT_S
            # ffmpeg 5 reads no still AVIF
            assert path.suffix == ".avif" or has_frames(path) == verdict.endswith("clips")
            verdicts[str(path.relative_to(folder))] = verdict
    print(json.dumps(verdicts, indent=1), Counter(verdicts.values()))
    assert all(verdict in CODES or verdict.endswith("clips") for verdict in verdicts.values())
    assert not {"TIMEOUT", "CRASH", "MEM"} & set(verdicts.values())
    assert len(verdicts) > 50
