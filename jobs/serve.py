r"""Serve models as a Ray job, with the options and exit codes of `videoar serve`.

    ray job submit --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}' \\
        -- python jobs/serve.py --model champion --host 0.0.0.0

The store comes from VIDEOAR_STORE; the Ray cluster is the one that the job runs on. `ray job stop`
drains the server; Ray kills a job after 3 seconds unless that variable gives it more.
"""

import sys

from videoar.cli.app import main

if __name__ == "__main__":
    sys.argv[1:] = ["--target", "auto", "serve", *sys.argv[1:]]
    main()
