"""Result of a benchmark: medians of interleaved runs, ratios, hardware and commit."""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import Field

from videoar.core.errors import ConfigError, StageError
from videoar.core.hardware import hardware
from videoar.core.ids import seed_from
from videoar.core.processes import used_cpu_s
from videoar.core.software import commit_id
from videoar.core.types import Frozen, Json

T = TypeVar("T")


class Measured(Frozen):
    """One contestant's runs."""

    median: float
    runs: tuple[float, ...]


class BenchResult(Frozen):
    """Our figure beside those of baselines, measured in turns."""

    name: str
    unit: str
    ours: Measured
    baselines: dict[str, Measured]
    ratios: dict[str, float]
    """Ours over each baseline."""
    cases: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Ratios and other figures by case, e.g. by size of the picture."""
    hardware: str
    commit: str
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    """Parts that could not be measured."""


def compare(name: str, unit: str, figures: Mapping[str, list[float]], **more: Json) -> BenchResult:
    """Return medians and ratios.

    Args:
        name: of the benchmark.
        unit: of the figures; more is better.
        figures: runs by contestant; `ours` is compared with every other one.
        more: further fields of `BenchResult`.
    """
    measured = {
        key: Measured(median=statistics.median(runs), runs=tuple(runs))
        for key, runs in figures.items()
    }
    ours = measured.pop("ours")
    ratios = {key: round(ours.median / other.median, 3) for key, other in measured.items()}
    return BenchResult(
        name=name, unit=unit, ours=ours, baselines=measured, ratios=ratios,
        hardware=hardware(), commit=commit_id(), **more,
    )  # fmt: skip


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time that work takes in this process and in children that it waits for."""
    before = used_cpu_s()
    work()
    return used_cpu_s() - before


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def processes() -> dict[int, tuple[str, list[str]]]:
    """Return the title of each process, and what proc(5) says of it, from its state on."""
    found: dict[int, tuple[str, list[str]]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            found[int(folder.name)] = (folder / "cmdline").read_text(), fields
    return found


def measure_in_child(what: str, *arguments: object, python: str = sys.executable) -> Any:  # noqa: ANN401 - JSON
    """Run a contestant in a process of its own; return the JSON value of its last line.

    Args:
        what: of the error.
        arguments: of the interpreter.
        python: interpreter.

    Raises:
        StageError: it fails.
    """
    call = [python, *map(str, arguments)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError(what, done.stderr.strip()[-1000:] or f"exit {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])  # peers may print before it


def shuffled(names: list[str], turn: int) -> list[str]:
    """Return the contestants in the order of a turn, so that none always runs first."""
    # a hash instead of a random number: the order of a turn can be repeated
    return sorted(names, key=lambda name: seed_from("turn", turn, name))


def in_turns(contestants: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """Call each contestant once per turn, with the turn's number; return what it returned."""
    measured: dict[str, list[T]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in shuffled(list(contestants), turn):
            measured[name].append(contestants[name](turn))
    return measured


def import_peer(bench: str, module: str) -> ModuleType:
    """Import a package that a benchmark compares with.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(bench, f"{error.name} is missing", "install videoar[bench]") from None
