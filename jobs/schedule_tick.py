"""Tick schedules as a Ray job, with the options and exit codes of `videoar schedule tick`.

    ray job submit -- python jobs/schedule_tick.py pipelines/retrain.yaml

The store comes from VIDEOAR_STORE; the Ray cluster is the one that the job runs on. Kubernetes:
`docs/scheduling.md`.
"""

import sys

from videoar.cli.app import main

if __name__ == "__main__":
    sys.argv[1:] = ["--target", "auto", "schedule", "tick", *sys.argv[1:]]
    main()
