"""Metrics in the text format, checked by Prometheus's own tool."""

import subprocess

import pytest

from tests.support.system_packages import install


def test_metrics_promtool_finds_no_problem(http):
    if reason := install({"promtool": "prometheus"}):
        pytest.skip(reason)
    http.get("/v1/videos")
    http.get("/v1/videos/none")
    text = http.get("/metrics").content
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_metrics_have_only_our_names_and_routes_as_labels(http):
    http.get("/v1/videos/video_0")
    http.get("/elsewhere/1")
    lines = [line for line in http.get("/metrics").text.splitlines() if line[0] != "#"]
    assert all(line.startswith("videoar_") for line in lines)
    assert not [line for line in lines if "video_0" in line or "elsewhere" in line]
    request = 'videoar_http_requests_total{method="GET",route="/v1/videos/{video_id}",status="404"}'
    assert any(line.startswith(request) for line in lines)
    assert "videoar_ready 1.0" in lines
