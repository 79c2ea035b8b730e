"""Run one stage of a pipeline as a Ray job; the stages before it must be finished.

    ray job submit -- python jobs/run_stage.py pipelines/quickstart.yaml tokens

One RayJob per stage gives each its own cluster shape: CPUs for ingest, GPUs for training.
"""

import sys

from run_pipeline import main  # beside this file, so on the path of a script

if __name__ == "__main__":
    pipeline, stage, *options = sys.argv[1:]
    sys.exit(main([pipeline, "--from", stage, "--until", stage, *options]))
