"""Generate videos as a Ray job: the pipeline `generate` on the cluster that the job runs on.

    ray job submit -- python jobs/generate.py --model champion --prompts s3://bucket/prompts.jsonl

The store comes from VIDEOAR_STORE. Options of the stage: --set num_per_prompt=4, for example, or
--set resources='{workers: [1, 8], gpus: 1}'.
"""

import argparse
import sys
from pathlib import Path

from run_pipeline import main as run_pipeline  # beside this file, so on the path of a script

PIPELINE = Path(__file__).parents[1] / "pipelines" / "generate.yaml"


def main(arguments: list[str]) -> int:
    """Run the pipeline, print the run as JSON, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="champion", help="a ref or a snapshot")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="a path or an address")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    scheme = "snapshot" if ":" in given.model else "ref"
    settings = [f"inputs.model={scheme}://{given.model}", f"inputs.prompts={given.prompts}"]
    settings += [f"stages.generated.{override}" for override in given.overrides]
    return run_pipeline([str(PIPELINE), *(word for s in settings for word in ("--set", s))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
