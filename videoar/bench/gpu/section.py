"""One section, in its own process: measures cases and writes the result file after each.

A case that runs out of memory has that as its result. Any other error is recorded with its place,
and the next case runs.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any, Concatenate, ParamSpec

import torch

from videoar.bench.gpu.measure import release
from videoar.bench.gpu.plan import SECTIONS, Options, write_result
from videoar.bench.gpu.workload import FULL, TOY
from videoar.model.device import device

P = ParamSpec("P")
Result = dict[str, Any]
"""Figures of a case, JSON values."""


class ParityError(Exception):
    """Two computations of the same numbers differ by more than their tolerance."""


class Section:
    """The results of one section, under its letter.

    Args:
        options: of the benchmark; its result file has an entry for this section.
        letter: of the section.
        seconds: after which no further case begins.
    """

    def __init__(self, options: Options, letter: str, seconds: float) -> None:
        workload = TOY if options.is_toy else FULL
        self.workload = replace(workload, latents=options.latents, clips=options.clips)
        self.device = torch.device(device())
        self._started, self._seconds = time.monotonic(), seconds
        self._path, self._letter = options.out, letter
        self._result = json.loads(options.out.read_text())
        self._values: dict[str, Any] = self._result["sections"][letter]

    @property
    def seconds_left(self) -> float:
        """Seconds until no further case begins."""
        return max(0.0, self._started + self._seconds - time.monotonic())

    def run(self) -> None:
        """Run the cases; an error is part of the result."""
        try:
            module = import_module(f"videoar.bench.gpu.sections.{SECTIONS[self._letter].module}")
            module.run(self)
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._add_error("section", error)
        self._values["status"] = "failed" if self._values["errors"] else "done"
        self.save()

    def case(
        self,
        name: str,
        measure: Callable[Concatenate["Section", Result, P], object],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> bool:
        """Measure a case into its result; return whether it was measured.

        Args:
            name: of the case.
            measure: gets the section, the result to fill in, and the other arguments.
            args: for it.
            kwargs: for it.
        """
        if not self.seconds_left:
            self._values["skipped"].append(name)
            return False
        result: Result = {}
        self._values["cases"][name] = result
        self.save()  # names the case if its process is killed
        started, is_measured = time.monotonic(), False
        try:
            measure(self, result, *args, **kwargs)
            is_measured = True
        except torch.OutOfMemoryError as error:
            result["out_of_memory"] = str(error).split(". ")[0]
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._add_error(name, error)
        result["case_s"] = round(time.monotonic() - started, 2)
        release(self.device)
        self.save()
        return is_measured

    def figure(self, letter: str, case: str, key: str) -> float | None:
        """Return a figure of another section of this run, None if there is none."""
        cases = self._result["sections"].get(letter, {}).get("cases", {})
        value = cases.get(case, {}).get(key)
        return value if isinstance(value, float | int) else None

    def save(self) -> None:
        """Write what has been measured so far."""
        self._values["seconds"] = round(time.monotonic() - self._started, 1)
        # NaN and infinity as text: JSON has neither
        as_text = json.dumps(self._result)
        result = json.loads(as_text, parse_constant=lambda value: str(float(value)))
        write_result(self._path, result)

    def _add_error(self, case: str, error: Exception) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        self._values["errors"].append({
            "case": case, "type": type(error).__name__, "message": str(error)[:2000],
            "where": f"{'/'.join(last.filename.split('/')[-3:])}:{last.lineno}",
            "trace": "".join(traceback.format_exception(error))[-4000:],
        })  # fmt: skip


def main() -> None:
    """Run the section that the command line names: options, letter, seconds."""
    options, letter, seconds = sys.argv[1:]
    Section(Options.model_validate_json(options), letter, float(seconds)).run()
