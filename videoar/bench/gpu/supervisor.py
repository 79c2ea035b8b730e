"""Runs the sections in a child process, and in a new one if a child hangs or fails.

The result file tells how far a child has come.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from videoar.bench.gpu.plan import SECTIONS, Options
from videoar.core.errors import StageError

_POLL_S = 0.2
# A case is not interrupted when its section's time is up; only one that takes far longer is.
_GRACE, _GRACE_S = 2.0, 30.0


_WORKER = (sys.executable, "-m", "videoar.bench.gpu.worker")


def run_gpu_benchmark(options: Options, worker: Sequence[str] = _WORKER) -> dict[str, Any]:
    """Run the benchmark; return the content of the result file.

    Args:
        options: what to run.
        worker: command of the child; it gets options, letters and seconds.

    Raises:
        ConfigError: there is no such section.
        StageError: a child ended before its first section.
    """
    letters, deadline = options.letters, time.monotonic() + 60 * options.minutes
    _write(options, {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": options.model_dump(mode="json"),
        "titles": {letter: SECTIONS[letter].title for letter in letters},
        "sections": {},
    })  # fmt: skip
    while left := [letter for letter in letters if letter not in _read(options)["sections"]]:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            break
        arguments = [options.model_dump_json(), ",".join(left), str(seconds)]
        child = subprocess.Popen([*worker, *arguments])
        why = _watch(child, options, deadline)
        if not _close_running(options, why) and left[0] not in _read(options)["sections"]:
            raise StageError("bench gpu", f"nothing was measured: {why}", "see its output above")
    return _read(options)


def failed(result: dict[str, Any]) -> list[str]:
    """Return one line per error."""
    return [
        f"{letter} {SECTIONS[letter].title}, {error['case']}: {error['type']}: {error['message']}"
        for letter, section in result["sections"].items()
        for error in section["errors"]
    ]


def _watch(child: "subprocess.Popen[bytes]", options: Options, deadline: float) -> str:
    """Wait until a child has ended; end one whose section takes far too long."""
    section, since = "", time.monotonic()
    while child.poll() is None:
        time.sleep(_POLL_S)
        running, limit_s = _running(options)
        if running != section:
            section, since = running, time.monotonic()
        now = time.monotonic()
        if (running and now - since > _GRACE * limit_s + _GRACE_S) or now > deadline + _GRACE_S:
            child.kill()
            child.wait()
            return f"ended after {now - since:.0f} s, its limit was {limit_s:.0f} s"
    return f"the process ended with code {child.returncode}"


def _running(options: Options) -> tuple[str, float]:
    for letter, section in _read(options)["sections"].items():
        if section["status"] == "running":
            return letter, section["limit_s"]
    return "", 0.0


def _close_running(options: Options, why: str) -> bool:
    """Record why a section has not ended; return whether there is one."""
    result = _read(options)
    running = [each for each in result["sections"].values() if each["status"] == "running"]
    for section in running:
        section["status"] = "failed"
        last = [*section["cases"], ""][-2:][0]
        section["errors"].append({"case": last, "type": "Ended", "message": why})
    _write(options, result)
    return bool(running)


def _read(options: Options) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(options.out.read_text())
    return result


def _write(options: Options, result: dict[str, Any]) -> None:
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))
