"""`bench loader`: shuffled batches of tokens, compared with other formats and plain reads.

Payloads of two shapes: A, of clips of UCF-101 at 128 px, and B, of clips of 384 x 672 px. Each
contestant reads in a fresh process, from the page cache, into recycled buffers; contestants are
shuffled within a turn and compared with `raw` of that turn. Peers need not be installed here:
`VIDEOAR_BENCH_PEERS` names a Python interpreter that has them, because they pin other packages.
"""

import json
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from videoar.bench import loader_cell
from videoar.bench.result import BenchResult, compare, in_turns, measure_in_child
from videoar.core.errors import StageError
from videoar.core.scratch import Scratch
from videoar.core.settings import settings

Shape = tuple[tuple[int, ...], int, int, int]
"""Latent shape, bytes of bits, rows, batch size."""
SHAPES: dict[str, Shape] = {
    "A": ((5, 48, 8, 8), 3900, 16_384, 64),
    "B": ((9, 48, 24, 42), 141_912, 640, 8),
}


def run(rounds: int) -> BenchResult:
    """Measure in turns."""
    figures: dict[str, list[float]] = {"ours": []}
    cases: dict[str, dict[str, float]] = {}
    notes: set[str] = set()
    for shape, sizes in SHAPES.items():
        with Scratch() as name:
            measured = measure_shape(Path(name), sizes, rounds, notes)
        for contestant, turns in measured.items():
            rates = [turn["samples_per_s"] for turn in turns]
            if shape == "A":
                figures[contestant] = rates
            raw = [turn["samples_per_s"] for turn in measured["raw"]]
            ratios = [rate / limit for rate, limit in zip(rates, raw, strict=True)]
            means = {key: float(np.median([turn[key] for turn in turns])) for key in turns[0]}
            cases[f"{shape} {contestant}"] = {"to_raw": float(np.median(ratios)), **means}
    return compare(
        "loader", "shuffled samples (shape A) per second", figures,
        cases={case: {k: round(v, 3) for k, v in row.items()} for case, row in cases.items()},
        notes=tuple(sorted(notes)),
    )  # fmt: skip


def measure_shape(
    folder: Path,
    shape: Shape,
    rounds: int,
    notes: set[str],
    contestants: Iterable[str] = tuple(loader_cell.CONTESTANTS),
) -> dict[str, list[dict[str, float]]]:
    """Measure contestants in turns on rows of one shape; add to `notes` who is not installed."""
    latent_shape, bits_bytes, rows, batch_size = shape
    random = np.random.default_rng(0)
    for name, width in (("bits", bits_bytes), ("latent", int(np.prod(latent_shape)) * 2)):
        # random bytes: no format may gain by compressing them
        np.save(folder / f"{name}.npy", random.integers(0, 256, (rows, width), np.uint8))
    (folder / "shape.json").write_text(json.dumps(latent_shape))
    readers: dict[str, Callable[[int], dict[str, float]]] = {}
    for name in contestants:
        try:
            _cell("write", name, folder, batch_size)
            readers[name] = partial(_read, name, folder, batch_size)
        except StageError as error:
            # only peers may be missing: without these two there is nothing to compare
            if name in {"raw", "ours"}:
                raise
            notes.add(f"{name} is missing: {str(error).splitlines()[-1][:200]}")
    return in_turns(readers, rounds)


def _read(name: str, folder: Path, batch_size: int, _turn: int) -> dict[str, float]:
    return _cell("read", name, folder, batch_size)


def _cell(action: str, name: str, folder: Path, batch_size: int) -> dict[str, float]:
    is_peer = name not in {"raw", "ours"}
    python = (settings().bench_peers if is_peer else "") or sys.executable
    # -P: the script's folder stays out of sys.path, where its modules would shadow packages
    arguments = ("-P", loader_cell.__file__, action, name, folder, batch_size)
    result: dict[str, float] = measure_in_child(f"bench loader, {name}", *arguments, python=python)
    return result
