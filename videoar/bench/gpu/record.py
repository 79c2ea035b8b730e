"""The result file: written after every case, so that a run that is cut off leaves its figures.

A case that runs out of memory has that as its result. Any other error is recorded with its place,
and the next case runs; an error after which the device is unusable ends the process, and the parent
starts another one for the sections that are left.
"""

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from videoar.bench.gpu.measure import release

Result = dict[str, Any]
"""Figures of a case, JSON values."""


class UnusableDeviceError(Exception):
    """The device has failed; this process cannot use it any more."""


class ParityError(Exception):
    """Two computations of the same numbers differ by more than their tolerance."""


class Record:
    """A JSON file that is replaced atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def save(self) -> None:
        """Replace the file."""
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.write_text(json.dumps(_without_nan(self.values), indent=1))
        partial.replace(self.path)


class Section:
    """The results of one section, under its letter.

    Args:
        record: of the run.
        letter: of the section.
        seconds: after which no further case begins.
        device: where cases run.
    """

    def __init__(self, record: Record, letter: str, seconds: float, device: torch.device) -> None:
        self.device = device
        self.deadline = time.monotonic() + seconds
        self._record = record
        self.cases: dict[str, Result] = {}
        self.errors: list[dict[str, str]] = []
        self.skipped: list[str] = []
        self._started = time.monotonic()
        self._values: dict[str, Any] = {
            "status": "running", "limit_s": round(seconds, 1), "seconds": 0.0,
            "cases": self.cases, "errors": self.errors, "skipped": self.skipped,
        }  # fmt: skip
        record.values.setdefault("sections", {})[letter] = self._values
        record.save()

    @property
    def seconds_left(self) -> float:
        """Seconds until no further case begins."""
        return max(0.0, self.deadline - time.monotonic())

    def case(self, name: str, measure: Callable[[Result], None]) -> bool:
        """Measure a case into its result; return whether it was measured.

        Raises:
            UnusableDeviceError: the device failed.
        """
        if not self.seconds_left:
            self.skipped.append(name)
            return False
        result = self.cases[name] = {}
        started = time.monotonic()
        with self.reporting(name):
            try:
                measure(result)
            except torch.OutOfMemoryError as error:
                result["out_of_memory"] = str(error).split(". ")[0]
        result["case_s"] = round(time.monotonic() - started, 2)
        release(self.device)
        self.save()
        has_failed = any(error["case"] == name for error in self.errors)
        return not has_failed and "out_of_memory" not in result

    @contextmanager
    def reporting(self, case: str) -> Iterator[None]:
        """Record an error instead of raising it, so that what follows is measured.

        Raises:
            UnusableDeviceError: the device failed.
        """
        try:
            yield
        except UnusableDeviceError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._add_error(case, error)

    def figure(self, letter: str, case: str, key: str) -> float | None:
        """Return a figure of another section of this run, None if there is none."""
        sections = self._record.values.get("sections", {})
        value = sections.get(letter, {}).get("cases", {}).get(case, {}).get(key)
        return value if isinstance(value, float | int) else None

    def end(self) -> None:
        """Write the outcome."""
        self._values["status"] = "failed" if self.errors else "done"
        self.save()

    def save(self) -> None:
        """Write what has been measured so far."""
        self._values["seconds"] = round(time.monotonic() - self._started, 1)
        self._record.save()

    def _add_error(self, case: str, error: Exception) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        self.errors.append({
            "case": case, "type": type(error).__name__, "message": str(error)[:2000],
            "where": f"{'/'.join(last.filename.split('/')[-3:])}:{last.lineno}",
            "trace": "".join(traceback.format_exception(error))[-4000:],
        })  # fmt: skip
        if "CUDA error" in str(error):
            self.end()
            raise UnusableDeviceError(case) from error


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - JSON values
    """Return a JSON value with NaN and infinity as text: JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return [_without_nan(each) for each in value] if isinstance(value, list) else value
