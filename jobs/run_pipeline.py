"""Run a pipeline as a Ray job, with the exit codes of `videoar run`.

    ray job submit -- python jobs/run_pipeline.py pipelines/quickstart.yaml --set inputs.videos=URL

The store comes from VIDEOAR_STORE; the Ray cluster is the one that the job runs on.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from videoar import api
from videoar.core.errors import VideoARError
from videoar.core.logging import configure_logging
from videoar.core.printable import printable


def main(arguments: list[str]) -> int:
    """Run the pipeline, print the run as JSON, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, metavar="PIPELINE")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--from", dest="start")
    parser.add_argument("--until")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job is a cancelled run
    configure_logging("json", verbose=False)
    try:
        run = api.run(api.open_store(), target="auto", **vars(parser.parse_args(arguments)))
    except KeyboardInterrupt:
        return 130
    except VideoARError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(run.public()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
