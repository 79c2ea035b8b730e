"""Measurements against peers and physical limits: interleaved, with ratios.

Machines are noisy, so a number is reported only beside the number that it is compared with, taken
in the same minutes by the same process tree.

    videoar bench NAME                 cuts, ingest, loader, runner, tokenize: see `BENCHES`
    python -m videoar.bench.NAME       duplicate_speed, loader_s3, near_duplicates, reconstruction:
                                       print a Markdown table or lines of text

Results are in `benchmarks/results`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from videoar.core.errors import ConfigError

if TYPE_CHECKING:
    from videoar.bench.result import BenchResult

BENCHES = ("cuts", "ingest", "loader", "runner", "tokenize")


def run_benchmark(name: str, videos: Path | None, rounds: int) -> "BenchResult":
    """Run a benchmark by name.

    Raises:
        ConfigError: there is no such benchmark, or a package to compare with is not installed.
    """
    # One import per branch: a benchmark loads only what it measures.
    if name == "ingest":
        from videoar.bench import ingest

        return ingest.run(videos, rounds)
    if name == "cuts":
        from videoar.bench import cuts

        return cuts.run(rounds)
    if name == "loader":
        from videoar.bench import loader

        return loader.run(rounds)
    if name == "runner":
        from videoar.bench import runner

        return runner.run(rounds)
    if name == "tokenize":
        from videoar.bench import tokens

        return tokens.run(rounds)
    raise ConfigError(name, "no such benchmark", f"known: {', '.join(BENCHES)}")
