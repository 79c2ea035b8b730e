"""`bench ingest`: one pass over a source, compared with bare decoding and with three passes.

    null     ffmpeg -threads 1 -f null -: the decoder alone, the limit of one core
    3-pass   the same results from three passes of ffmpeg: cuts; luma and scores; RGB and hashes
    stage    the whole stage: also hash of the file, sandboxed child, references into the source
    clips    the same, with clips encoded and stored instead of references

CPU time, not wall time; the time that a process takes to start is measured and subtracted.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from videoar.bench.films import Film
from videoar.bench.result import BenchResult, compare, cpu_seconds, shuffled
from videoar.core.errors import ConfigError, MediaError
from videoar.core.scratch import Scratch
from videoar.media.clip_scores import phash, score_span
from videoar.media.scan import ScanPlan, scan
from videoar.media.source_decoder import SourceMetadata
from videoar.media.sources import list_sources
from videoar.media.transcode import encode
from videoar.pipeline.context import StageContext
from videoar.stages.ingest.config import IngestConfig
from videoar.stages.ingest.stage import group_rows
from videoar.stages.ingest.worker import IngestWorker
from videoar.storage.store import open_store

_SIZES_PX = ((426, 240), (854, 480), (1280, 720))
_NUM_SHOTS = 22  # about 75 seconds
_SIZE_PX = 128
_PLAN = ScanPlan(rate_fps=8.0, size_px=_SIZE_PX)
_CONTESTANTS = ("ours", "null", "3-pass", "stage", "clips")
_FFMPEG = ("ffmpeg", "-nostdin", "-v", "error", "-threads", "1")


def run(videos: Path | None, rounds: int) -> BenchResult:
    """Measure on synthetic films, or on the files of a folder.

    Raises:
        ConfigError: the folder holds no file that can be read.
    """
    with Scratch() as folder:
        cases = _readable_files(videos) if videos else _synthetic_films(Path(folder))
        # subtracted: it weighs on films of a minute, and not on sources of an hour
        start_s = _start_costs(Path(folder))
        figures: dict[str, list[float]] = {name: [] for name in _CONTESTANTS}
        by_case: dict[str, dict[str, float]] = {}
        for turn in range(rounds):
            frames, spent = 0.0, dict.fromkeys(figures, 0.0)
            for case, paths in cases.items():
                measured = _turn(paths, start_s, turn)
                frames += measured.pop("frames")
                spent = {name: spent[name] + measured[name] for name in figures}
                _keep_best(by_case.setdefault(case, {}), measured)
            for name, seconds in spent.items():
                figures[name].append(frames / seconds)
    table = {
        case: {f"eta_{k}": round(best["null"] / best[k], 3) for k in ("ours", "stage", "clips")}
        | {"x_3-pass": round(best["3-pass"] / best["ours"], 2)}
        for case, best in by_case.items()
    }
    unit = "source frames per CPU-second"
    notes = ("eta: CPU time of null over this, best of turns",)
    return compare("ingest", unit, figures, cases=table, notes=notes)


def _readable_files(folder: Path) -> dict[str, list[Path]]:
    usable: list[Path] = []
    for path in filter(Path.is_file, sorted(folder.rglob("*"))):
        with suppress(MediaError):  # it is no video
            _scan(path)
            usable.append(path)
    if not usable:
        raise ConfigError(str(folder), "no video that can be read")
    return {folder.name: usable}


def _synthetic_films(folder: Path) -> dict[str, list[Path]]:
    cases = {}
    for width, height in _SIZES_PX:
        path = folder / f"{height}p.mp4"
        film = Film(77, _NUM_SHOTS, height, width, rate_fps=24.0)
        encode(film.frames(), path, film.rate_fps, crf=23)
        cases[path.stem] = [path]
    return cases


def _start_costs(folder: Path) -> dict[str, float]:
    """Return the CPU time of starting: ffmpeg once per pass and file, a stage's child once."""
    tiny = folder / "tiny" / "tiny.mp4"
    tiny.parent.mkdir()
    encode(np.zeros((2, 32, 32, 3), np.uint8), tiny, 24.0, crf=23)
    ffmpeg_s = min(cpu_seconds(_start_ffmpeg) for _ in range(5))
    stage_s = min(cpu_seconds(lambda: _stage([tiny], "references")) for _ in range(3))
    return {"null": ffmpeg_s, "3-pass": 3 * ffmpeg_s, "stage": stage_s, "clips": stage_s}


def _turn(paths: list[Path], start_s: dict[str, float], turn: int) -> dict[str, float]:
    """Read the files once per contestant; return CPU seconds and the number of frames."""
    frames = 0

    def ours() -> None:
        nonlocal frames
        frames = sum(_scan(path) for path in paths)

    contestants: dict[str, Callable[[], object]] = {
        "ours": ours,
        "null": lambda: list(map(_null, paths)),
        "3-pass": lambda: list(map(_three_passes, paths)),
        "stage": lambda: _stage(paths, "references"),
        "clips": lambda: _stage(paths, "clips"),
    }
    per_file = {"null", "3-pass"}
    spent = {
        name: cpu_seconds(contestants[name])
        - start_s.get(name, 0.0) * (len(paths) if name in per_file else 1)
        for name in shuffled(list(contestants), turn)
    }
    return spent | {"frames": frames}


def _keep_best(best: dict[str, float], measured: dict[str, float]) -> None:
    # The minimum: other work on the machine can only add CPU time (caches, clock speed).
    for name, value in measured.items():
        best[name] = min(value, best.get(name, value))


def _scan(path: Path) -> int:
    # metadata comes last: it counts the decoded frames
    *_, metadata = scan(path, _PLAN)
    return metadata.decoded_frames if isinstance(metadata, SourceMetadata) else 0


def _stage(paths: list[Path], keep: Literal["clips", "references"]) -> None:
    """Run the stage as a worker does, into a store of its own."""
    with Scratch() as folder:
        config = IngestConfig(
            keep=keep, rate_fps=_PLAN.rate_fps, size_px=_SIZE_PX, max_clips_per_source=64
        )
        worker = IngestWorker(config, StageContext(open_store(Path(folder).as_uri())))
        for parent in sorted({path.parent for path in paths}):
            rows = pa.concat_tables(list_sources(str(parent))).to_pylist()
            names = {str(path) for path in paths}
            rows = [row for row in rows if str(parent / row["name"]) in names]
            for group in group_rows(rows, config.sources_per_shard, config.part_mib << 20):
                worker(pa.Table.from_pylist(group))
        # ends the child: its CPU time counts only after it was waited for
        worker.close()


def _start_ffmpeg() -> None:
    source = ["-f", "lavfi", "-i", "color=size=16x16:duration=0.04"]
    subprocess.run([*_FFMPEG, *source, "-f", "null", "-"], check=True)


def _null(path: Path) -> None:
    # `file:` keeps a name with a colon from being read as a protocol
    subprocess.run([*_FFMPEG, "-i", f"file:{path}", "-f", "null", "-"], check=True)


def _three_passes(path: Path) -> None:
    # 10 is the default of ffmpeg
    _raw(path, "scdet=threshold=10", 0)
    luma = _raw(path, "scale=64:36:flags=area,format=gray", 64 * 36).reshape(-1, 36, 64)
    rate, size = _PLAN.rate_fps, _SIZE_PX
    square = (
        f"scale={size}:{size}:force_original_aspect_ratio=increase:flags=area,crop={size}:{size}"
    )
    rgb = _raw(path, f"fps={rate},{square},format=rgb24", 3 * size**2).reshape(-1, size, size, 3)
    for span in _parts(rgb, _PLAN.num_frames):
        phash(span[[0, len(span) // 2, -1]])
    # as long in time as a clip: luma has all frames of the source, RGB those of the grid
    for span in _parts(luma, max(2, len(luma) * _PLAN.num_frames // max(1, len(rgb)))):
        score_span(span, np.arange(len(span)) * 40_000)


def _raw(path: Path, filters: str, frame_bytes: int) -> np.ndarray:
    form = ["-f", "rawvideo", "-"] if frame_bytes else ["-f", "null", "-"]
    # passthrough: by default ffmpeg may repeat or drop frames to get a constant rate
    command = [*_FFMPEG, "-i", f"file:{path}", "-vf", filters, "-vsync", "passthrough", *form]
    done = subprocess.run(command, check=True, capture_output=True)
    return np.frombuffer(done.stdout, np.uint8)


def _parts(frames: np.ndarray, length: int) -> Iterator[np.ndarray]:
    for start in range(0, len(frames) - length + 1, length):
        yield frames[start : start + length]
