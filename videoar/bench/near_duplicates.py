"""Recall and false positives of near-duplicate detection, by Hamming bound.

    python -m videoar.bench.near_duplicates [--distinct 1250] [--copies 105] [--folder VIDEOS]

Distinct: the first clip of each file of one synthetic corpus, all pairs compared. Copies: files of
another seed, changed and encoded again, each compared with its own original. Folder: the first clip
of each of its files, all pairs compared. A pair is near at the bound b if all three hashes differ
in at most b bits and, as in the filter, some hash shares one of its four 16-bit bands. Mirrored
hashes are compared after flipping the bits that mirroring flips (the filter's `dedup_mirrored`).
Every file is processed as by ingest: encoded, read from disk, scanned. Results are in
`benchmarks/results/near_duplicates.md`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

from videoar.core.errors import MediaError
from videoar.media.clip_scores import MIRROR
from videoar.media.fetch import SOURCE, fetch
from videoar.media.scan import DecodedClip, ScanPlan, scan
from videoar.media.sources import list_sources
from videoar.media.synthetic import Entry, render_file
from videoar.media.transcode import encode

BOUNDS = (0, 2, 4, 6, 8, 10, 12, 16)
_PLAN = ScanPlan(num_frames=17, rate_fps=8.0, size_px=64)
_DISTINCT_SEED, _COPIES_SEED = 11, 12


def _resized(frames_THWC: np.ndarray, size_px: int) -> np.ndarray:
    """Resize: enlarge to four times the target size, then take means of 4 x 4 pixels."""
    scale = np.linspace(0, frames_THWC.shape[1], 4 * size_px, endpoint=False).astype(int)
    big = frames_THWC[:, scale][:, :, scale].astype(np.float32)
    count, _, _, colours = big.shape
    cells = big.reshape(count, size_px, 4, size_px, 4, colours)
    resized: np.ndarray = cells.mean((2, 4)).round().astype(np.uint8)
    return resized


def _cropped(frames_THWC: np.ndarray, share: float) -> np.ndarray:
    """Crop `share` of the height and width, evenly on both sides, to even lengths."""
    side = frames_THWC.shape[1]
    cut = max(1, round(side * share / 2))
    kept = frames_THWC[:, cut:-cut, cut:-cut]
    return kept[:, : kept.shape[1] // 2 * 2, : kept.shape[2] // 2 * 2]


Copies = dict[str, tuple[list[int], list[int] | None]]
Change = Callable[[np.ndarray, float], tuple[np.ndarray, float]]
COPIES: dict[str, tuple[Change, str, str, int]] = {
    "H.264 crf 30": (lambda f, r: (f, r), "libx264", "mp4", 30),
    "H.264 crf 36": (lambda f, r: (f, r), "libx264", "mp4", 36),
    "H.265 crf 32": (lambda f, r: (f, r), "libx265", "mp4", 32),
    "VP9 crf 40": (lambda f, r: (f, r), "libvpx-vp9", "webm", 40),
    "MPEG-4 q 12": (lambda f, r: (f, r), "mpeg4", "avi", 12),
    "half size": (lambda f, r: (_resized(f, f.shape[1] // 2), r), "libx264", "mp4", 23),
    "1.5 x size": (lambda f, r: (_resized(f, f.shape[1] * 3 // 2), r), "libx264", "mp4", 23),
    "crop 5 %": (lambda f, r: (_cropped(f, 0.05), r), "libx264", "mp4", 23),
    "crop 10 %": (lambda f, r: (_cropped(f, 0.10), r), "libx264", "mp4", 23),
    "flip": (lambda f, r: (f[:, :, ::-1], r), "libx264", "mp4", 23),
    "1.25 x speed": (lambda f, r: (f, r * 1.25), "libx264", "mp4", 23),
}


def _hashes(path: Path) -> list[int] | None:
    """Return the three hashes of a file's first clip, None if ingest would reject the file."""
    try:
        first = next(iter(scan(path, _PLAN)))
    except MediaError:
        return None
    return first.columns["phash"] if isinstance(first, DecodedClip) else None


def _hashes_of_uri(uri: str, folder: Path) -> list[int] | None:
    try:
        list(fetch(uri, folder))
    except MediaError:
        return None
    return _hashes(folder / SOURCE)


def distinct(index: int) -> list[int] | None:
    """Hash one file of the corpus of distinct clips."""
    entry = Entry(_DISTINCT_SEED, index)
    if entry.broken:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return _hashes(render_file(entry.uri, Path(folder)))


def copies(index: int) -> Copies | None:
    """Hash one file and its changed copies."""
    entry = Entry(_COPIES_SEED, index)
    if entry.broken:
        return None
    frames, rate_fps = entry.frames()
    with tempfile.TemporaryDirectory() as folder:
        original = _hashes(render_file(entry.uri, Path(folder)))
        if original is None:
            return None
        hashed = {}
        for name, (change, codec, suffix, crf) in COPIES.items():
            path = Path(folder) / f"copy.{suffix}"
            changed, rate = change(frames, rate_fps)
            encode(changed, path, rate, codec=codec, crf=crf)
            hashed[name] = (original, _hashes(path))
    return hashed


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the largest of the three Hamming distances, 64 where no band is shared.

    Args:
        a: uint64 hashes [..., 3].
        b: the same, broadcast against `a`.
    """
    differing = a ^ b
    bits = np.bitwise_count(differing).max(-1)
    bands = differing[..., None] >> np.array([0, 16, 32, 48], np.uint64) & np.uint64(0xFFFF)
    return np.where((bands == 0).any((-1, -2)), bits, 64)  # the filter compares within bands only


def _array(hashes: Iterable[list[int]]) -> np.ndarray:
    # stored as int64; unsigned here, because shifts of negative numbers copy the sign
    return np.array(list(hashes), dtype=np.int64).view(np.uint64)


def false_rates(hashes: np.ndarray, mask: int = 0) -> tuple[list[int], list[int]]:
    """Return, per bound, the number of clips near another clip, and of near pairs."""
    # 64: all bits of a hash, more than every bound
    nearest = np.full(len(hashes), 64)
    pairs = np.zeros(65, dtype=int)
    for i in range(len(hashes)):
        row = distance(hashes[i] ^ np.uint64(mask), hashes)
        row[i] = 64  # not a pair with itself
        nearest[i] = row.min()
        # only the clips before it: each pair counts once
        pairs += np.bincount(row[:i], minlength=65)
    return [int((nearest <= b).sum()) for b in BOUNDS], [int(pairs[: b + 1].sum()) for b in BOUNDS]


def copies_table(results: list[Copies]) -> Iterator[str]:
    """Yield a line per kind of copy: the share that is found."""
    for name in COPIES:
        # copies that ingest rejects are no misses of the search
        pairs = [r[name] for r in results if r[name][1] is not None]
        before, after = _array(a for a, _ in pairs), _array(b for _, b in pairs if b)
        yield _recall_line(f"{name}, n = {len(pairs)}", distance(before, after))
        if name == "flip":
            mirrored = distance(before ^ np.uint64(MIRROR), after)
            yield _recall_line(f"flip, `dedup_mirrored`, n = {len(pairs)}", mirrored)


def _recall_line(name: str, apart: np.ndarray) -> str:
    return _line(name, [f"{100 * (apart <= b).mean():.0f} %" for b in BOUNDS])


def distinct_table(hashes: np.ndarray) -> Iterator[str]:
    """Yield the numbers of false positives among clips of which none is a copy."""
    count = len(hashes)
    for kind, mask in (("false", 0), ("false, mirrored", MIRROR)):
        clips, pairs = false_rates(hashes, mask)
        shares = [f"{1000 * n / count:.1f}" for n in clips]
        yield _line(f"{kind}, per 1,000 of {count} clips", shares)
        yield _line(f"{kind} pairs", map(str, pairs))


def folder_table(url: str) -> Iterator[str]:
    """Yield the numbers of real clips near one of another file, and of another group."""
    hashes, groups = [], []
    for row in list_sources(url).to_pylist():
        with tempfile.TemporaryDirectory() as folder:
            hashed = _hashes_of_uri(row["uri"], Path(folder))
        if hashed:
            hashes.append(hashed)
            groups.append(row["group"] or row["uri"])
    of_all = _array(hashes)
    kinds = product(
        (("near", 0), ("mirrored", MIRROR)),
        (("file", np.arange(len(groups))), ("group", np.array(groups))),
    )
    for (kind, mask), (what, own) in kinds:
        masked = of_all ^ np.uint64(mask)
        nearest = [
            np.where(own == own[i], 64, distance(masked[i], of_all)).min()
            for i in range(len(of_all))
        ]
        counts = [str(sum(n <= b for n in nearest)) for b in BOUNDS]
        yield _line(f"of {len(of_all)} clips, {kind} one of another {what}", counts)


def _line(*cells: str | Iterable[str]) -> str:
    flat = [cell for part in cells for cell in ([part] if isinstance(part, str) else part)]
    return f"| {' | '.join(flat)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--distinct", type=int, default=1250)
    parser.add_argument("--copies", type=int, default=105)
    parser.add_argument("--folder", default="")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.workers) as pool:
        results = [r for r in pool.map(copies, range(arguments.copies), chunksize=2) if r]
        hashes = [h for h in pool.map(distinct, range(arguments.distinct), chunksize=8) if h]
    lines = [_line("Hamming bound", map(str, BOUNDS)), "|---" * (1 + len(BOUNDS)) + "|"]
    lines += copies_table(results) if results else []
    lines += distinct_table(_array(hashes)) if hashes else []
    lines += folder_table(arguments.folder) if arguments.folder else []
    sys.stdout.write(os.linesep.join(lines) + os.linesep)


if __name__ == "__main__":
    main()
