"""The same pipeline makes the same snapshots on a real S3 server as on files."""

from pathlib import Path

import pytest

from tests.support.s3_server import S3Server
from tests.support.small_pipeline import PIPELINE, sets, videoar


@pytest.mark.slow
@pytest.mark.s3
def test_run_on_s3_gives_the_snapshots_of_a_folder(tmp_path: Path, s3_server: S3Server):
    on_files = videoar("run", str(PIPELINE), *sets(), store=(tmp_path / "store").as_uri())
    url, endpoint = s3_server.new_url(), s3_server.endpoint
    on_s3 = videoar("run", str(PIPELINE), *sets(), store=url, VIDEOAR_S3_ENDPOINT=endpoint)
    assert on_s3["outputs"] == on_files["outputs"]
    again = videoar("run", str(PIPELINE), *sets(), store=url, VIDEOAR_S3_ENDPOINT=endpoint)
    ran = {stage["name"] for stage in again["stages"] if stage["status"] != "CACHED"}
    # of the set that is frozen now, and against the champion that there is now
    assert ran == {"evalset", "champion_scores", "release"}
