"""The process that measures: runs sections one after the other.

It is a child, because a kernel that never ends or a failed device would end the benchmark
otherwise: see `supervisor`.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

import torch

from videoar.bench.gpu.plan import SECTIONS, Options
from videoar.bench.gpu.record import Record, Section, UnusableDeviceError
from videoar.bench.gpu.workload import FULL, TOY
from videoar.model.device import device


def run_sections(options: Options, letters: Sequence[str], seconds: float) -> None:
    """Run sections; a section that fails does not stop the next one."""
    workload = replace(
        TOY if options.is_toy else FULL, latents=options.latents, clips=options.clips
    )
    record, where = Record(options.out), torch.device(device())
    deadline = time.monotonic() + seconds
    for index, letter in enumerate(letters):
        shares = [SECTIONS[each].share for each in letters[index:]]
        limit = max(0.0, deadline - time.monotonic()) * shares[0] / sum(shares)
        section = Section(record, letter, limit, where)
        with section.reporting("section"):
            module = import_module(f"videoar.bench.gpu.sections.{SECTIONS[letter].module}")
            module.run(section, workload)
        section.end()


if __name__ == "__main__":
    try:
        run_sections(
            Options.model_validate_json(sys.argv[1]), sys.argv[2].split(","), float(sys.argv[3])
        )
    except UnusableDeviceError as error:
        sys.exit(f"the device failed in {error}")
