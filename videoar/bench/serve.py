"""`bench serve`: videos by HTTP requests compared with the sampler alone.

    ours       jobs of a server on Ray Serve with one replica, all requested at once
    sampler    the same videos in batches of the same size, one after the other, in one process

Both make pixels and MP4 files. The load comes from aiperf, which nobody here wrote: it sends
requests at their times whether earlier ones are answered or not (an open loop, Poisson arrivals),
polls every job, and reports percentiles. Cases: the first request after `/readyz` beside later
ones, `POST` alone, half of the sampler's rate, and four times of it while replicas are killed.

    pipx install aiperf==0.13.0
"""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from videoar.bench.result import BenchResult, compare, in_turns, measure_in_child
from videoar.bench.server_process import MODEL, ServerProcess, publish, serving
from videoar.core.errors import ConfigError, StageError
from videoar.core.scratch import Scratch
from videoar.storage.store import open_store

_BATCH, _BATCHES = 8, 4
_QUEUE = 40  # chosen: more than a turn requests at once, less than the overload
_ALONE = 10  # requests of one client
_LOAD_S, _LIMIT_S = 30.0, 600.0
_POLL_S = "0.25"  # chosen: a poll takes a core that the replica needs a millisecond or more
_FIRST, _POST = "first request after ready", "POST, one client"
_KILLED = "four times of it, replicas killed"
_GOALS = {(_FIRST, "ratio"): 1.2, (_POST, "p50_ms"): 25.0}
_TOKENIZER: dict[str, Any] = {
    "version": "1.0", "added_tokens": [], "truncation": None, "padding": None, "normalizer": None,
    "post_processor": None, "decoder": None, "pre_tokenizer": {"type": "WhitespaceSplit"},
    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
}  # fmt: skip
Case = dict[str, float]


def run(rounds: int, load_s: float = _LOAD_S, batches: int = _BATCHES) -> BenchResult:
    """Measure in turns, then under load.

    Args:
        rounds: of the comparison.
        load_s: how long each open loop sends requests.
        batches: of a turn.

    Raises:
        ConfigError: aiperf is not installed.
        StageError: the server or aiperf fails.
    """
    program, num = _aiperf(), batches * _BATCH
    with Scratch() as name:
        folder, store = Path(name), name / "store"
        publish(store)
        with serving(store, _QUEUE) as server:
            cases = _one_client(server)

            def load(name: str, rate: float, num: int) -> "_Load":
                return _Load(program, folder / name, server.port, rate, num)

            contestants = {
                "ours": lambda turn: _rate(load(f"turn{turn}", 100, num).report()),
                "sampler": lambda turn: _sampler(store, num, turn),
            }
            figures = in_turns(contestants, rounds)
            rate = statistics.median(figures["sampler"])
            half = load("half", rate / 2, max(2, round(load_s * rate / 2)))
            cases["half of the sampler's rate"] = _summary(half.report())
            cases[_KILLED] = _overload(
                server, lambda: load("overload", 4 * rate, round(load_s * 4 * rate)), load_s
            )
    unit = f"videos of 17 frames at 64 px per second, {num} at once, one replica"
    failures = [
        f"{case}: {key} is {cases[case][key]}, the goal {goal}"
        for (case, key), goal in _GOALS.items()
        if cases[case][key] > goal
    ]
    if lost := cases[_KILLED]["lost"]:
        failures.append(f"{lost:g} accepted jobs were lost")
    return compare("serve", unit, figures, cases=cases, failures=tuple(failures))


def _aiperf() -> str:
    if path := shutil.which("aiperf"):
        return path
    raise ConfigError("aiperf", "is not installed", "pipx install aiperf==0.13.0")


def _one_client(server: ServerProcess) -> dict[str, Case]:
    """Return the times of requests one after the other."""
    _, first_s = server.one_video(0)
    before = _server_seconds(server)
    posts_s, totals_s = zip(*(server.one_video(seed) for seed in range(1, _ALONE + 1)), strict=True)
    spent_s = (after - b for after, b in zip(_server_seconds(server), before, strict=True))
    http_s, create_s = (seconds / _ALONE for seconds in spent_s)
    steady_s = statistics.median(totals_s)
    return {
        _FIRST: {
            "seconds": round(first_s, 3),
            "later_seconds": round(steady_s, 3),
            "ratio": round(first_s / steady_s, 3),
        },
        _POST: {
            "p50_ms": round(1000 * statistics.median(posts_s), 1),
            "max_ms": round(1000 * max(posts_s), 1),
            "server_ms": round(1000 * http_s, 1),
            "outside_of_store_ms": round(1000 * (http_s - create_s), 1),
        },
    }


def _server_seconds(server: ServerProcess) -> tuple[float, float]:
    """Return the time of all `POST`, and that of their calls to the part that keeps the jobs."""
    text = server.call("GET", "/metrics")[1].decode()
    labels = (r'http_request_seconds_sum{method="POST",route="/v1/videos"}',
              r'service_call_seconds_sum{method="create"}')  # fmt: skip
    found = (
        re.search(rf"^videoar_{re.escape(label)} (\S+)$", text, re.MULTILINE) for label in labels
    )
    http_s, create_s = (float(match.group(1)) if match else 0.0 for match in found)
    return http_s, create_s


class _Load:
    """A run of aiperf."""

    def __init__(self, program: str, folder: Path, port: int, rate: float, num: int) -> None:
        self._folder, self.num = folder, num
        tokenizer = folder / "tokenizer"
        tokenizer.mkdir(parents=True)
        # it counts the tokens of prompts, and would fetch a tokenizer from elsewhere
        (tokenizer / "tokenizer.json").write_text(json.dumps(_TOKENIZER))
        (tokenizer / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "a"})
        )
        (folder / "prompts.jsonl").write_text('{"text": "a red circle moves to the left"}\n')
        options = {
            "--model": MODEL, "--url": f"http://127.0.0.1:{port}",
            "--endpoint-type": "video_generation", "--input-file": folder / "prompts.jsonl",
            "--tokenizer": tokenizer, "--request-rate": rate, "--arrival-pattern": "poisson",
            "--request-count": num, "--random-seed": 0, "--artifact-dir": folder, "--ui": "none",
        }  # fmt: skip
        words = [str(word) for option in options.items() for word in option]
        with (folder / "aiperf.log").open("w") as log:
            self._process = subprocess.Popen(
                ["env", f"AIPERF_HTTP_VIDEO_POLL_INTERVAL={_POLL_S}", program, "profile", *words,
                 "--no-gpu-telemetry", "--no-server-metrics"],
                stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def report(self) -> dict[str, Any]:
        """Wait for the end; return what it has measured.

        Raises:
            StageError: it failed.
        """
        path = self._folder / "profile_export_aiperf.json"
        try:
            code = self._process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code or not path.is_file():
            text = (self._folder / "aiperf.log").read_text()[-1000:]
            raise StageError("aiperf", f"exit code {code}: {text}")
        report: dict[str, Any] = json.loads(path.read_text())
        return report


def _rate(report: dict[str, Any]) -> float:
    """Return completed videos per second.

    Raises:
        StageError: a request failed.
    """
    if report["error_summary"]:
        raise StageError("aiperf", f"requests failed: {report['error_summary']}")
    rate: float = report["request_throughput"]["avg"]
    return rate


def _summary(report: dict[str, Any]) -> Case:
    latency_ms = report["request_latency"]
    return {
        "requests_per_s": round(
            report["completed_request_count"]["avg"] / report["benchmark_duration"]["avg"], 2
        ),
        "completed": report["request_count"]["avg"],
        **{f"{p}_s": round(latency_ms[p] / 1000, 2) for p in ("p50", "p90", "p99")},
    }


def _overload(server: ServerProcess, start: Callable[[], _Load], load_s: float) -> Case:
    """Kill replicas twice under load, and account for every job that was accepted."""
    before = len(server.jobs())
    load = start()
    while load.is_running and len(server.jobs()) == before:
        time.sleep(0.2)  # aiperf takes seconds to start
    for _ in range(2):
        time.sleep(load_s / 3)
        for pid in server.pids("model"):
            os.kill(pid, signal.SIGKILL)
    report = load.report()
    server.wait_idle(_LIMIT_S)
    _, after_s = server.one_video(1)
    jobs = server.jobs()[before:-1]
    errors = report["error_summary"]
    rejected = sum(e["count"] for e in errors if e["error_details"]["code"] == 429)
    other = sum(e["count"] for e in errors) - rejected
    accepted = load.num - rejected
    return {
        **_summary(report),
        "accepted": accepted,
        "rejected_429": rejected,
        "other_errors": other,
        "lost": accepted - sum(job["status"] == "completed" for job in jobs),
        "alone_afterwards_s": round(after_s, 2),
    }


def _sampler(store: Path, num: int, turn: int) -> float:
    """Return videos per second of a process that only makes videos."""
    rate: float = measure_in_child("sampler", "-m", __name__, store, num, turn)
    return rate


def _measure_sampler(store: str, num: str, turn: str) -> float:
    from videoar.admin.loaded_model import load_stored
    from videoar.core.settings import share_cores

    share_cores()
    generator = load_stored(open_store(Path(store).as_uri()), MODEL).generator()
    rows = [
        {"prompt": "a red circle moves to the left", "seed": 1000 * int(turn) + i}
        for i in range(int(num))
    ]
    generator(rows[:_BATCH])  # warm, as the replica is
    start = time.perf_counter()
    for first in range(0, len(rows), _BATCH):
        generator(rows[first : first + _BATCH])
    return len(rows) / (time.perf_counter() - start)


if __name__ == "__main__":
    print(_measure_sampler(*sys.argv[1:]))
