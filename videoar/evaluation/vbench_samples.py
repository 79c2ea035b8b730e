"""Generated clips under the names of VBench: which are missing, what forbids a score."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from videoar.core.errors import ConfigError, DamagedError
from videoar.core.ids import sha256_hex
from videoar.core.types import Json, Row
from videoar.evaluation import vbench_prompts
from videoar.evaluation.scorecard import form_problem, sample_lock
from videoar.evaluation.vbench_constants import DIMENSIONS
from videoar.storage.store import Store

MAX_S = 5.0
"""Clips from this duration on need VBench-Long. Source: VBench README, FAQ."""


class VBenchSamples:
    """Rows of `samples@1` by the name of their video; rows of other prompts are ignored."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: dict[str, Row] = {}
        self.damaged: set[str] = set()
        """Names whose stored video is not what was generated: they count as missing."""
        self._repeated: list[str] = []
        for row in rows:
            prompt = (
                row["prompt_id"] if row["prompt_id"] in vbench_prompts.prompts() else row["prompt"]
            )
            if prompt in vbench_prompts.prompts():
                name = vbench_prompts.video_name(prompt, row["index"])
                self._repeated += [name] if name in self.rows else []
                self.rows[name] = row

    @cached_property
    def problem(self) -> str:
        """Why no dimension can be evaluated; empty if there is no reason."""
        if self._repeated:
            return f"{len(self._repeated)} names have several samples: {self._repeated[0]}"
        if several := form_problem(self.rows.values()):
            return several
        longest = max(
            (row["num_frames"] / row["rate_fps"] for row in self.rows.values()), default=0
        )
        if longest >= MAX_S:
            return f"clips of {longest:.3g} s need VBench-Long, VBench takes less than {MAX_S:g} s"
        return ""

    def missing(self, dimension: str = "") -> list[str]:
        """Return the names that a dimension lacks; of all dimensions by default."""
        names = [n for d in DIMENSIONS for n in vbench_prompts.video_names(d)]
        wanted = vbench_prompts.video_names(dimension) if dimension else dict.fromkeys(names)
        return [name for name in wanted if name not in self.rows or name in self.damaged]

    def lock(self) -> dict[str, Json]:
        """Return the part of the protocol lock that all dimensions share."""
        texts = vbench_prompts.prompts()
        return {
            "suite": vbench_prompts.suite_digest(),
            "rewritten": any(row["prompt"] not in texts for row in self.rows.values()),
            **sample_lock([*self.rows.values()]),
        }

    def export(self, store: Store, folder: Path) -> None:
        """Write the videos into a folder: links where the store is one, copies elsewhere.

        Damaged ones are left out, and noted in `damaged`.

        Raises:
            ConfigError: a name exists already, or differs from one only in the case of its letters
                and the file system does not tell them apart.
            StorageError: the store cannot be read.
        """
        for name, row in self.rows.items():
            try:
                data = store.objects.get(row["video_key"])
            except DamagedError:
                data = b""
            if sha256_hex(data) != row["video_sha256"]:
                self.damaged.add(name)
                continue
            stored = Path(store.objects.location(row["video_key"]))
            try:
                if stored.is_file():
                    (folder / name).symlink_to(stored)
                else:
                    with (folder / name).open("xb") as file:
                        file.write(data)
            except FileExistsError as error:
                hint = "give an empty folder of a case-sensitive file system"
                raise ConfigError(str(folder / name), "exists already", hint) from error
