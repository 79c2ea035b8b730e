"""`videoar.testing`: what a test of faults relies on."""

import ast
import os
import pickle
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.child_process import preload, start
from videoar.core.crash_points import crash_point
from videoar.core.errors import ThrottledError, TransientStorageError
from videoar.core.processes import start_ticks
from videoar.storage.store import Store, open_store
from videoar.testing.clocks import SimulatedTime
from videoar.testing.crash_points import crash_points
from videoar.testing.fault_store import FaultPlan, FaultStore, inject
from videoar.testing.processes import descendants, kill_tree, suspended, wait_until_stopped

preload(__name__)
ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_every_crash_point_is_reached_by_a_test():
    texts = set()
    for path in (ROOT / "tests").rglob("*.py"):
        constants = (
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)
        )
        texts |= {n.value.partition(":")[0] for n in constants if isinstance(n.value, str)}
    assert [point for point in crash_points() if point.name not in texts] == []


@pytest.mark.slow
def test_command_lists_the_crash_points_with_their_modules():
    command = [sys.executable, "-m", "videoar.testing"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert ["commit.after_log", "videoar.storage.delta_log"] in [
        x.split() for x in out.splitlines()
    ]


@pytest.mark.parametrize("code", ["crash_point(name)", 'crash_point("a"); crash_point("a")'])
def test_name_that_does_not_say_which_line_is_an_error(tmp_path, monkeypatch, code: str):
    (tmp_path / "package_with_points").mkdir()
    (tmp_path / "package_with_points" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="not a literal name of its own"):
        crash_points("package_with_points")


def visit_points(log: str) -> None:
    for number in range(3):
        crash_point("here")
        with Path(log).open("a") as file:
            file.write(f"{number}")
        crash_point("there")
    time.sleep(60 if log.endswith("sleep") else 0)


@pytest.mark.parametrize(
    ("at", "code", "visits"),
    [
        ("", 0, "012"), ("elsewhere", 0, "012"), ("here", -9, ""), ("there", -9, "0"),
        ("here:3", -9, "01"), ("here:4", 0, "012"), ("there:2:SIGTERM", -15, "01"),
    ],
)  # fmt: skip
def test_crash_point_sends_a_signal_at_a_visit(tmp_path: Path, at: str, code: int, visits: str):
    log = tmp_path / "log"
    log.touch()
    child = start(visit_points, str(log), VIDEOAR_CRASH_AT=at)
    child.join(60)
    assert (child.exitcode, log.read_text()) == (code, visits)


def test_process_that_stops_at_a_crash_point_goes_on(tmp_path: Path):
    child = start(visit_points, str(tmp_path / "log"), VIDEOAR_CRASH_AT="there:2:SIGSTOP")
    assert wait_until_stopped(child.pid, 60)
    with suspended(child.pid):
        assert (tmp_path / "log").read_text() == "01"
    child.join(60)
    assert (child.exitcode, (tmp_path / "log").read_text()) == (0, "012")
    assert not wait_until_stopped(child.pid, 1)


def test_tree_is_killed_with_all_its_descendants():
    script = "sleep 60 & sh -c 'sleep 60 & wait' & wait"
    with subprocess.Popen(["sh", "-c", script]) as shell:
        while len(found := descendants(shell.pid)) < 3:
            time.sleep(0.01)
        kill_tree(shell.pid)
        assert shell.wait(10) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while any(start_ticks(pid) for pid in found):  # "" of a zombie
        assert time.monotonic() < deadline, "a descendant lives"
        time.sleep(0.01)


def test_clocks_of_actors_differ_by_offset_and_rate():
    time_, slept = SimulatedTime(), []
    time_.during = lambda: slept.append(time_.seconds)
    true, ahead, fast = time_.clock(), time_.clock(offset_s=3600), time_.clock(rate=2)
    wall, behind = time_.wall_clock(), time_.wall_clock(offset_s=-3600)
    fast.sleep(10)  # five seconds
    true.sleep(1)
    assert slept == [5, 6]
    assert (true.now(), ahead.now(), fast.now()) == (6, 3606, 12)
    assert wall() - behind() == timedelta(hours=1)
    assert wall().second == 6


@pytest.mark.parametrize(
    ("plan", "fault", "exists"),
    [
        ({"unavailable": 1}, "unavailable", False),
        ({"throttled": 1}, "throttled", False),
        ({"lost_answer": 1}, "lost_answer", True),
        ({"disk_bytes": 3}, "disk full", False),
    ],
)
def test_write_with_a_fault(store: Store, plan: dict, fault: str, exists: bool):
    objects = FaultStore(store.objects, FaultPlan(**plan, most=1))
    kind = ThrottledError if fault == "throttled" else TransientStorageError
    with pytest.raises(kind, match="fewer" if fault == "throttled" else fault):
        objects.put("a", b"data", if_absent=True)
    assert (store.objects.find("a") == b"data") is exists
    assert objects.put("b", b"data", if_absent=True)  # the plan has ended
    assert objects.faults.total() == 1


def test_upload_that_is_cut_leaves_nothing_that_is_listed(store: Store, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"12345678")
    objects = FaultStore(store.objects, FaultPlan(cut_upload=1))
    with pytest.raises(TransientStorageError, match="cut_upload"):
        objects.put_file("a", tmp_path / "file")
    assert list(objects.list("")) == []
    (part,) = (tmp_path / "store" / ".tmp").glob("*")
    assert part.read_bytes() == b"1234"
    store.objects.sweep()
    assert not part.exists()


def test_listing_is_late_and_reads_are_not(store: Store):
    store.objects.put("a", b"old")
    os.utime(store.objects.location("a"), (0, 0))
    store.objects.put("b", b"new")
    objects = FaultStore(store.objects, FaultPlan(late_listing_s=60))
    assert [info.key for info in objects.list("")] == ["a"]
    assert (objects.get("b"), objects.size("b")) == (b"new", 3)


def test_faults_are_those_of_the_seed_in_every_process(store: Store):
    def faults(objects: FaultStore) -> list[bool]:
        found = []
        for number in range(40):
            try:
                found.append(objects.find(f"{number}") is None)
            except TransientStorageError:
                found.append(False)
        return found

    objects = FaultStore(store.objects, FaultPlan(seed=3, unavailable=0.5))
    copied = pickle.loads(pickle.dumps(objects))
    expected = faults(objects)
    assert faults(copied) == expected
    assert 5 < sum(expected) < 35
    assert faults(FaultStore(store.objects, FaultPlan(seed=4, unavailable=0.5))) != expected


def fail_to_open(url: str, log: str) -> None:
    inject(FaultPlan(unavailable=1, log=log))
    open_store(url).objects.find("a")


def test_injected_plan_holds_for_stores_that_are_opened_by_url(store: Store, tmp_path: Path):
    child = start(fail_to_open, store.url, str(tmp_path / "log"))
    child.join(60)
    assert child.exitcode == 1
    assert set((tmp_path / "log").read_text().split()) == {"unavailable"}
