"""Run one stage of a pipeline as a Ray job; what comes before it must be finished.

    ray job submit -- python jobs/run_stage.py pipelines/quickstart.yaml tokens

One RayJob per stage gives each its own cluster shape: processors for ingest, GPUs for training.
"""

import sys

from videoar.cli import main

if __name__ == "__main__":
    pipeline, stage, *options = sys.argv[1:]
    only = ["--from", stage, "--until", stage]
    sys.argv = ["videoar", "--target", "auto", "--json", "run", pipeline, *only, *options]
    main()
