"""Run a pipeline as a Ray job: same verbs, options, output and exit codes as `videoar run`.

    ray job submit -- python jobs/run_pipeline.py pipelines/quickstart.yaml --set inputs.videos=URL

The store comes from VIDEOAR_STORE; the Ray is the one that the job runs on.
"""

import sys

from videoar.cli import main

if __name__ == "__main__":
    sys.argv = ["videoar", "--target", "auto", "--json", "run", *sys.argv[1:]]
    main()
