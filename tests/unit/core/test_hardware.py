"""The line about this machine."""

import os
import re

from videoar.core.hardware import _read_field, hardware


def test_hardware_names_processor_cores_memory_and_gpus():
    match = re.fullmatch(r"(.+), (\d+) cores, (\d+) GiB, (no GPU|\d+ x .+)", hardware())
    assert int(match[2]) == len(os.sched_getaffinity(0))
    assert int(match[3]) >= 1


def test_field_of_a_driver_file_is_its_text_and_of_a_missing_file_empty(tmp_path):
    path = tmp_path / "information"
    path.write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   96\n")
    assert _read_field(path, "Model") == "NVIDIA H100 80GB HBM3"
    assert _read_field(path, "Serial") == ""
    assert _read_field(tmp_path / "absent", "Model") == ""
