"""Measure all that only a GPU can show; exit code 1 if any section failed.

Runs from a bare checkout, with torch, einops, numpy, safetensors and pydantic alone.
"""

import argparse
import sys
from pathlib import Path

from videoar.bench.gpu.plan import SECTIONS, Options, failed, run_gpu_benchmark
from videoar.bench.gpu.summary import summary


def main(arguments: list[str]) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m videoar.bench.gpu", description=__doc__)
    sections = ", ".join(f"{letter} {plan.title}" for letter, plan in SECTIONS.items())
    parser.add_argument("--minutes", type=float, default=8.0, help="wall time")
    parser.add_argument("--out", type=Path, default=Path("bench_gpu.json"), help="result, JSON")
    parser.add_argument("--only", default="", help=f"letters with commas: {sections}")
    parser.add_argument("--latents", type=Path, help="safetensors: latents to train on")
    parser.add_argument("--clips", type=Path, help="safetensors: clips to train a tokenizer on")
    parser.add_argument(
        "--toy", dest="is_toy", action="store_true", help="toy shapes, for a test on a CPU"
    )
    given = parser.parse_args(arguments)
    only = tuple(filter(None, given.only.split(",")))
    result = run_gpu_benchmark(Options.model_validate(vars(given) | {"only": only}))
    print("\n".join(summary(result)))
    return 1 if failed(result) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
