"""Retrain the champion as a Ray job: the pipeline `retrain` on the cluster that the job runs on.

    ray job submit -- python jobs/retrain.py --set inputs.videos=s3://bucket/videos

For cron and for a CronJob of Kubernetes, too: without new videos it ends with 0 and runs nothing.
4: the new model was not promoted; the reason is on the report page and in the last line. The store
comes from VIDEOAR_STORE.
"""

import sys
from pathlib import Path

from run_pipeline import main  # beside this file, so on the path of a script

if __name__ == "__main__":
    pipeline = Path(__file__).parents[1] / "pipelines" / "retrain.yaml"
    sys.exit(main([str(pipeline), *sys.argv[1:]]))
