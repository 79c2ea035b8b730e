"""Research-only data beside the repository; tests that need it are marked `shared`."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3] / "shared"


def shared_json(name):
    """Load a JSON file, or skip the test where there is none."""
    path = ROOT / name
    if not path.is_file():
        pytest.skip(f"no {name} beside the repository")
    return json.loads(path.read_text())
