"""Sections and options of the benchmark, and its run: a process per section.

A kernel that never ends, or a device that has failed, ends the process of its section only.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from videoar.core.errors import ConfigError
from videoar.core.types import Frozen

_WORKER = (sys.executable, "-c", "from videoar.bench.gpu.section import main; main()")
# A case is not interrupted when its section's time is up; only one that takes far longer is.
_GRACE, _GRACE_S = 2.0, 30.0


class SectionPlan(NamedTuple):
    """One section."""

    title: str
    module: str
    share: float
    """Of the time; what a section leaves goes to those after it."""


SECTIONS: dict[str, SectionPlan] = {
    "a": SectionPlan("machine", "hardware", 0.03),
    "b": SectionPlan("parity", "parity", 0.2),
    "c": SectionPlan("training step", "training", 0.22),
    "d": SectionPlan("largest preset", "largest", 0.08),
    "e": SectionPlan("sampling", "sampling", 0.18),
    "f": SectionPlan("tokenizer", "tokenizer", 0.1),
    "g": SectionPlan("features", "features", 0.02),
    "h": SectionPlan("attention", "attention", 0.08),
    "i": SectionPlan("learning", "learning", 0.1),
}
"""In order of value."""


class Options(Frozen):
    """What to run."""

    out: Path = Path("bench_gpu.json")
    """The result; replaced after every case."""
    minutes: float = Field(default=8.0, gt=0)
    """Wall time of the whole benchmark."""
    only: tuple[str, ...] = ()
    """Letters of sections; all by default."""
    is_toy: bool = False
    """Run toy shapes: a test of the benchmark, on a CPU in seconds."""
    latents: Path | None = None
    """Latents to train on, see `ClipFile.read`; random ones by default."""
    clips: Path | None = None
    """Clips to train a tokenizer on, see `ClipFile.read`."""

    @property
    def letters(self) -> list[str]:
        """Sections that run, in order of value.

        Raises:
            ConfigError: there is no such section.
        """
        if unknown := sorted(set(self.only) - SECTIONS.keys()):
            known = ", ".join(f"{letter} {plan.title}" for letter, plan in SECTIONS.items())
            raise ConfigError("only", f"unknown section {unknown[0]!r}", f"known: {known}")
        return [letter for letter in SECTIONS if letter in (self.only or SECTIONS)]


def run_gpu_benchmark(options: Options, worker: Sequence[str] = _WORKER) -> dict[str, Any]:
    """Run the benchmark; return the content of the result file.

    Args:
        options: what to run.
        worker: command that runs a section; it gets options, the section's letter and seconds.

    Raises:
        ConfigError: there is no such section.
    """
    letters, deadline = options.letters, time.monotonic() + 60 * options.minutes
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": options.model_dump(mode="json"),
        "titles": {letter: SECTIONS[letter].title for letter in letters},
        "sections": {},
    }
    for index, letter in enumerate(letters):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        shares = [SECTIONS[each].share for each in letters[index:]]
        limit_s = left_s * shares[0] / sum(shares)
        result["sections"][letter] = {
            "status": "running", "limit_s": round(limit_s, 1), "seconds": 0.0,
            "cases": {}, "errors": [], "skipped": [],
        }  # fmt: skip
        write_result(options.out, result)
        arguments = [options.model_dump_json(), letter, str(limit_s)]
        why = _run([*worker, *arguments], min(_GRACE * limit_s, left_s) + _GRACE_S)
        result = json.loads(options.out.read_text())
        _close(result["sections"][letter], why)
        write_result(options.out, result)
    return result


def failed(result: dict[str, Any]) -> list[str]:
    """Return one line per error."""
    return [
        f"{letter} {SECTIONS[letter].title}, {error['case']}: {error['type']}: {error['message']}"
        for letter, section in result["sections"].items()
        for error in section["errors"]
    ]


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Replace the result file atomically: a run that is cut off leaves its figures."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(path)


def _run(command: Sequence[str], timeout_s: float) -> str:
    """Run a process to its end; return how it ended."""
    try:
        done = subprocess.run(command, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"killed after {timeout_s:.0f} s"
    return f"the process ended with code {done.returncode}"


def _close(section: dict[str, Any], why: str) -> None:
    """Record a section that its process has not ended."""
    if section["status"] == "running":
        section["status"] = "failed"
        last = next(reversed(section["cases"]), "")
        section["errors"].append({"case": last, "type": "Ended", "message": why})
