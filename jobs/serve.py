"""Serve models as a Ray job, with the options and exit codes of `videoar serve`.

    ray job submit -- python jobs/serve.py --model champion --host 0.0.0.0

The store comes from VIDEOAR_STORE; the Ray cluster is the one that the job runs on. To stop the job
drains the server.
"""

import sys

from videoar.cli.app import main

if __name__ == "__main__":
    sys.argv[1:] = ["--target", "auto", "serve", *sys.argv[1:]]
    main()
