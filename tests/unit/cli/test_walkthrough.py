"""The walk-through of docs/operators.md: its commands print what the page says they print."""

import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.nightly import two_nights
from tests.support.toys import REGISTRY
from videoar import api
from videoar.cli.app import app
from videoar.pipeline.registry import BUILTIN

pytestmark = pytest.mark.slow  # three runs, each with its mirror in MLflow
PAGE = Path(__file__).parents[3] / "docs" / "operators.md"
TITLE = "## The nightly retrain did not promote: why?\n"
EXIT_CODE = re.compile(r"  # exit code (\d+)$")
# names that differ from one run to the next: firings, runs, digests, the folder
IDS = re.compile(r"\d{8}t\d{6}z-[0-9a-f]{8}|\b0[0-9a-z]{17}\b|\b[0-9a-f]{16,64}\b|/\S+(?=/store)")
HEX = re.compile("[0-9a-f]+")
TIMES = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\b\d+(?= s\b| CPU-s)|(?<=[A-Z]) +\d+\.\d+")


class Masked:
    """Text without times, and with ids replaced by the number of their first appearance."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def __call__(self, text: str) -> list[str]:
        text = IDS.sub(lambda match: f"<{self.number(match[0])}>", TIMES.sub(" <time>", text))
        return [" ".join(line.split()) for line in text.splitlines() if line.strip()]

    def number(self, name: str) -> int:
        if HEX.fullmatch(name):
            name = name[:16]  # digests are printed in full or as their first 16 digits
        if name not in self.ids:
            self.ids.append(name)
        return self.ids.index(name)


def steps() -> Iterator[tuple[str, int, str]]:
    """Yield the commands of the page with their exit codes and outputs."""
    section = PAGE.read_text(encoding="utf-8").partition(TITLE)[2].partition("\n## ")[0]
    for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            code = EXIT_CODE.search(line)
            yield EXIT_CODE.sub("", line), int(code[1]) if code else 0, output


def test_commands_of_the_walkthrough_print_what_the_page_says(tmp_path, monkeypatch):
    for name, stage in REGISTRY.items():
        monkeypatch.setitem(BUILTIN, name, stage)
    monkeypatch.chdir(tmp_path)
    store = api.open_store((tmp_path / "store").as_uri())
    two_nights(store, tmp_path, datetime.now(UTC))
    on_page, here = Masked(), Masked()
    verbs = []
    for command, code, output in steps():
        # ids are copied from what was printed before
        line = IDS.sub(lambda match: here.ids[on_page.number(match[0])], command)
        verb, *arguments = line.split()
        if verb == "videoar":
            options = ["--store", store.url, "--target", "inline"]
            done = CliRunner().invoke(app, [*options, *arguments], prog_name="videoar")
            assert done.exit_code == code, line
            assert here(done.stdout) == on_page(output), line
            verbs.append(arguments[0])
        else:
            subprocess.run(line, shell=True, check=True)
    assert set(verbs) >= {"schedule", "status", "gate", "explain", "compare", "report", "refs"}
    assert Path("nights.html").stat().st_size > 1000
    assert len(store.refs.history("champion")) == 2
