"""Measurements against peers and physical limits: interleaved, with ratios.

Machines are noisy, so a number is reported only beside the number that it is compared with, taken
in the same minutes by the same process tree.

    videoar bench NAME                 cuts, damage, fvd, generate, gpu, ingest, loader, runner,
                                       serve, tokenize, train
    python -m videoar.bench.gpu        the same as `videoar bench gpu`, from a bare checkout
    python -m videoar.bench.memory     memory of a training, as Markdown tables

Results are in `benchmarks/results`. Some are of scripts that were run once; they name the commit.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoar.core.errors import ConfigError

if TYPE_CHECKING:
    from videoar.bench.result import BenchResult

BENCHES = {
    "cuts": "cuts", "damage": "damage", "fvd": "fvd", "generate": "generate", "gpu": "gpu",
    "ingest": "ingest", "loader": "loader", "runner": "runner", "serve": "serve",
    "tokenize": "tokens", "train": "train",
}  # fmt: skip
"""Module by the name of the benchmark."""
_WITH_VIDEOS = frozenset({"ingest", "damage"})


def run_benchmark(
    name: str, videos: Path | None, rounds: int, gpu: Mapping[str, Any] | None = None
) -> "BenchResult":
    """Run a benchmark by name.

    Args:
        name: one of `BENCHES`.
        videos: of `ingest` and `damage`; None draws videos.
        rounds: how often each contestant runs.
        gpu: options of `gpu`, the fields of `gpu.plan.Options`.

    Raises:
        ConfigError: there is no such benchmark, or a package to compare with is not installed.
    """
    if name not in BENCHES:
        raise ConfigError(name, "no such benchmark", f"known: {', '.join(BENCHES)}")
    if name == "gpu":
        from videoar.bench.gpu import plan, summary

        options = plan.Options.model_validate(gpu or {})
        return summary.as_bench_result(plan.run_gpu_benchmark(options))
    # imported here: a benchmark loads only what it measures
    module = import_module(f"videoar.bench.{BENCHES[name]}")
    result: BenchResult = module.run(videos, rounds) if name in _WITH_VIDEOS else module.run(rounds)
    return result
