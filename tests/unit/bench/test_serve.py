"""The accounting of `bench serve`; the server and aiperf are stand-ins."""

import pytest

from videoar.bench.serve import _aiperf, _overload, _server_seconds
from videoar.core.errors import ConfigError
from videoar.serving.metrics import Metrics

REPORT = {
    "completed_request_count": {"avg": 10.0}, "request_count": {"avg": 5.0},
    "benchmark_duration": {"avg": 4.0},
    "request_latency": {"p50": 1000.0, "p90": 2000.0, "p99": 2500.0},
    "error_summary": [{"error_details": {"code": 429}, "count": 5}],
}  # fmt: skip


class Server:
    def __init__(self, completed):
        self.lists = [[], [{"status": "completed"}] * (completed + 1)]

    def jobs(self):
        return self.lists.pop(0)

    def pids(self, deployment):
        return []

    def wait_idle(self, limit_s):
        pass

    def one_video(self, seed):
        return 0.01, 1.0


class Load:
    num = 10
    is_running = False

    def report(self):
        return REPORT


@pytest.mark.parametrize(("completed", "lost"), [(5, 0), (3, 2)])
def test_overload_counts_accepted_jobs_that_are_not_completed(completed, lost):
    case = _overload(Server(completed), Load, 0)
    assert (case["accepted"], case["rejected_429"], case["lost"]) == (5, 5, lost)
    assert (case["p50_s"], case["requests_per_s"]) == (1.0, 2.5)


def test_times_of_requests_are_read_from_the_metrics_of_the_server():
    metrics = Metrics()
    metrics.request("/v1/videos", "POST", 200, 0.5)
    metrics.request("/v1/videos", "GET", 200, 9.0)
    metrics.service_call("get")

    class Answering:
        def call(self, method, path):
            return 200, metrics.text(None)

    assert _server_seconds(Answering()) == (0.5, 0.0)


def test_missing_aiperf_is_named_with_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="pipx install aiperf"):
        _aiperf()
