"""Sections and options of the benchmark, without torch: the parent process has none."""

from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from videoar.core.errors import ConfigError
from videoar.core.types import Frozen


class SectionPlan(NamedTuple):
    """One section."""

    title: str
    module: str
    share: float
    """Of the time; what a section leaves goes to those after it."""


SECTIONS: dict[str, SectionPlan] = {
    "a": SectionPlan("machine", "hardware", 0.03),
    "b": SectionPlan("parity", "parity", 0.15),
    "c": SectionPlan("training step", "training", 0.3),
    "d": SectionPlan("largest preset", "largest", 0.1),
    "e": SectionPlan("sampling", "sampling", 0.09),
    "f": SectionPlan("tokenizer", "tokenizer", 0.08),
    "g": SectionPlan("I3D", "i3d", 0.02),
    "h": SectionPlan("attention", "attention", 0.06),
    "i": SectionPlan("learning", "learning", 0.17),
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
    """Latents to train on, see `LatentFile.read`; random ones by default."""
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
