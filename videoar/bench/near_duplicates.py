"""Near duplicates: recall by kind of copy, clips wrongly rejected, time and memory.

    python -m videoar.bench.near_duplicates --films 16 [--folder VIDEOS] [--hamming 11]
    OMP_NUM_THREADS=1 python -m videoar.bench.near_duplicates --clips 1000000

Films: drawn films of `videoar.bench.films`, each with its copies by ffmpeg, as ingest reads them.
A clip of a copy counts as found if the search rejects it; of a film three times in one file, as
many as begin after its first end. One of a film that repeats another film is an error. Folder: the
same for the videos of a folder. Clips: drawn hashes, of which a fifth are copies, half of those of
100 clips. Results: `benchmarks/results/near_duplicates.md`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from videoar.bench.films import Film
from videoar.bench.result import peak_bytes
from videoar.contracts.contract import load_contract
from videoar.contracts.names import CLIPS
from videoar.core.errors import MediaError
from videoar.core.types import Row
from videoar.curation.candidates import RANKED, Candidates, frames_with_chroma
from videoar.curation.duplicates import find_repeats
from videoar.media.clip_scores import MIRROR
from videoar.media.scan import DecodedClip, ScanPlan, scan
from videoar.media.transcode import encode

_PLAN = ScanPlan(num_frames=17, rate_fps=8.0, size_px=64)
_RATE_FPS = 25
_X264 = "-c:v libx264 -preset veryfast -threads 1 -pix_fmt yuv420p -an"
_INTRO = "-vf fps=25,tpad=start_duration=%s:color=0x3060a0"
COPIES = {
    "H.264 crf 30": "-crf 30",
    "H.264 crf 36": "-crf 36",
    "half size": "-vf scale=trunc(iw/4)*2:trunc(ih/4)*2",
    "1.5 x size": "-vf scale=trunc(iw*.75)*2:trunc(ih*.75)*2",
    "crop 5 %": "-vf crop=trunc(iw*.475)*2:trunc(ih*.475)*2",
    "crop 10 %": "-vf crop=trunc(iw*.45)*2:trunc(ih*.45)*2",
    "1.25 x speed": "-vf setpts=PTS/1.25",
    "bars at the sides": "-vf pad=trunc(iw*.67)*2:ih:(ow-iw)/2:0",
    "bars above and below": "-vf pad=iw:trunc(ih*.65)*2:0:(oh-ih)/2",
    "contrast, brightness": "-vf eq=contrast=1.15:brightness=0.06",
    "first 0.7 s cut off": "-vf trim=start=0.7,setpts=PTS-STARTPTS",
    "first 1.3 s cut off": "-vf trim=start=1.3,setpts=PTS-STARTPTS",
    "1 s card before it": _INTRO % 1,
    "1.37 s card before it": _INTRO % 1.37,
    "mirrored": "-vf hflip",
    "three times in one file": "-vf loop=2:2000",
}


def _ffmpeg(source: Path, arguments: str, into: Path) -> Path:
    command = f"ffmpeg -v error -y {arguments}".split()
    at = command.index("-y") + 1
    subprocess.run([*command[:at], "-i", source, *command[at:], *_X264.split(), into], check=True)
    return into


def _clips(path: Path, name: str, detail: float) -> list[Row]:
    """Return the rows of the clips of a file; none if ingest would reject it."""
    rows = []
    try:
        for number, clip in enumerate(c for c in scan(path, _PLAN) if isinstance(c, DecodedClip)):
            ids = {"clip_id": f"{name}/{number}", "source_id": name, "source_uri": name}
            ranks = {"detail": detail, "src_width_px": 1, "src_height_px": 1, "decoded_frames": 1}
            rows.append(clip.columns | ids | ranks)
    except MediaError:
        pass
    return rows


def _repeats(rows: list[Row], hamming: int, masks: tuple[int, ...]) -> set[int]:
    """Return the numbers of the rows that repeat another one."""
    table = pa.Table.from_pylist(rows, load_contract(CLIPS).arrow_schema)
    candidates = Candidates.read(np.arange(len(rows)), table)
    order = candidates.order()
    return {int(order[rank]) for rank in find_repeats(candidates, order, hamming, masks)}


def _sources(films: int, folder: str, into: Path) -> Iterator[tuple[str, Path]]:
    for seed in range(films):
        path = into / "film.mp4"
        frames = np.stack(list(Film(1_000 + seed, num_shots=4).frames()))
        encode(frames, path, _RATE_FPS, crf=16)
        yield f"film{seed}", path
    if folder:
        yield from ((path.name, path) for path in sorted(Path(folder).rglob("*.mp4")))


def recall(films: int, folder: str, hamming: int) -> Iterator[str]:
    """Yield a line per kind of copy, then one on distinct clips."""
    found, made = Counter[str](), Counter[str]()
    originals = []
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch)
        for name, path in _sources(films, folder, into):
            own = _clips(path, name, 2.0)
            originals += own
            for kind, arguments in COPIES.items():
                copies = _clips(_ffmpeg(path, arguments, into / "copy.mp4"), "copy", 1.0)
                masks = (0, MIRROR) if kind == "mirrored" else (0,)
                if kind == "three times in one file":
                    # which clip of three is kept hangs on their ids: two of three are repeats
                    end = max((row["span_end_us"] for row in own), default=0)
                    late = sum(row["span_start_us"] >= end for row in copies)
                    made[kind] += late
                    found[kind] += min(late, len(_repeats(copies, hamming, masks)))
                    continue
                made[kind] += len(copies)
                repeats = _repeats(own + copies, hamming, masks)
                found[kind] += sum(number >= len(own) for number in repeats)
    for kind, count in made.items():
        yield f"| {kind}, n = {count} | {100 * found[kind] / max(1, count):.0f} % |"
    wrong = len(_repeats(originals, hamming, (0,)))
    yield f"| distinct clips rejected, of {len(originals)} | {wrong} |"


def drawn(count: int) -> Candidates:
    """Return clips whose hashes change by up to 3 bits a frame; a fifth are noisy copies."""
    draw = np.random.default_rng(0)
    hashes = np.zeros((count, 2, _PLAN.num_frames), np.uint64)
    frame = draw.integers(1, 2**63, (count, 2), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    for time_step in range(_PLAN.num_frames):
        for _ in range(3):
            frame ^= np.uint64(1) << draw.integers(0, 64, (count, 2)).astype(np.uint64)
        hashes[:, :, time_step] = frame
    copies = count // 10
    of = np.concatenate([draw.integers(0, count // 2, copies), draw.integers(0, 100, copies)])
    flipped = np.uint64(1) << draw.integers(0, 64, (2 * copies, 2, _PLAN.num_frames), np.uint64)
    hashes[-2 * copies :] = hashes[of] ^ flipped
    rows = np.zeros(count, RANKED)
    for name in ("number", "clip_id", "source_id"):
        rows[name] = np.arange(count)
    rows["detail"] = draw.uniform(0, 1, count)
    chroma = draw.integers(1, 256, (count, frames_with_chroma(_PLAN.num_frames), 8), np.uint8)
    chroma[-2 * copies :] = chroma[of]
    return Candidates(rows, hashes, chroma)


def speed(count: int, hamming: int) -> Iterator[str]:
    """Yield time and memory of the search among drawn clips."""
    clips = drawn(count)
    before, start, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    repeats = find_repeats(clips, clips.order(), hamming, (0,))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    yield (
        f"{count} clips, {len(repeats)} repeats: {seconds:.0f} s, {cpu:.0f} CPU-s; "
        f"peak {peak_bytes() >> 20} MiB, before the search {before >> 20} MiB"
    )


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--films", type=int, default=0)
    parser.add_argument("--folder", default="")
    parser.add_argument("--hamming", type=int, default=11)
    parser.add_argument("--clips", type=int, default=0)
    options = parser.parse_args()
    if options.films or options.folder:
        for line in recall(options.films, options.folder, options.hamming):
            sys.stdout.write(line + os.linesep)
    if options.clips:
        for line in speed(options.clips, options.hamming):
            sys.stdout.write(line + os.linesep)


if __name__ == "__main__":
    main()
