"""A shard that crashes, hangs or starves its process is known, tried a few times, and named."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from ray._private.internal_api import memory_summary

from tests.support.child_process import exit_code
from tests.support.poison import REGISTRY, document, tries
from videoar.core.errors import (
    DiskError,
    OutOfMemoryError,
    TimedOutError,
    WorkerLostError,
)
from videoar.core.retry import RetryPolicy
from videoar.engine import base
from videoar.engine.inline import InlineEngine
from videoar.engine.ray_engine import RayEngine
from videoar.pipeline.spec import parse_pipeline
from videoar.records.run_record import load_run
from videoar.runner.execute import Execution, resume_spec
from videoar.storage.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.soak]
GOOD = [f"{letter}-good" for letter in "abcdefgh"]
ONCE = {"infra": 1, "memory": 1}
RUN = "run1"


def names(fault):
    return [name if name[0] != "f" else f"f-{fault}" for name in GOOD]


def execute(url, doc, engine=None):
    """Start the run, or resume it."""
    store = open_store(url)
    is_new = store.ledger.read(f"runs/{RUN}/run.json") is None
    spec = parse_pipeline(doc, "t", REGISTRY) if is_new else resume_spec(RUN, store, REGISTRY)
    return Execution(spec, store, engine or InlineEngine(), RUN, registry=REGISTRY).run()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(base, "_RETRY", RetryPolicy(0, 0, sleep=lambda _: None))


@pytest.mark.fault(12, "a row that crashes or exits the driver, resumed")
@pytest.mark.parametrize("fault", ["exit", "crash"])
def test_row_that_ends_the_driver_is_named_after_two_strikes(tmp_path, fault):
    url, doc = tmp_path.as_uri(), document(tmp_path / "v", *names(fault), retries=ONCE)
    ends = [exit_code(execute, url, doc) for _ in range(2)]
    assert 0 not in ends
    assert load_run(open_store(url), RUN).stage("big").shards.planned == 2
    with pytest.raises(WorkerLostError, match=rf"shard 1, row 1 .*/f-{fault}.mp4") as error:
        execute(url, doc)
    assert "its process ended" in str(error.value)
    # two drivers, two isolated tries, and at most three to find the row
    assert tries(open_store(url), f"f-{fault}") <= 7


@pytest.mark.fault(12, "a row that hangs, resumed")
def test_shard_that_hangs_is_named_after_two_strikes(tmp_path):
    url = tmp_path.as_uri()
    doc = document(tmp_path / "v", *names("hang"), stall_s=1)
    where = ["stage big", "stage big", "stage big, shard 1"]
    for expected in where:
        began = time.monotonic()
        with pytest.raises(TimedOutError, match=f"{expected}: made no progress in stall_s: 1"):
            execute(url, doc)
        assert time.monotonic() - began < 10
    assert tries(open_store(url), "f-hang") <= 3  # a child may be ended before it gets there


def test_driver_that_was_killed_twice_by_others_goes_on(tmp_path):
    """The shard that is suspected does nothing wrong: it runs isolated, then all others."""
    url, doc = tmp_path.as_uri(), document(tmp_path / "v", *names("exit"), at_most=2)
    assert [exit_code(execute, url, doc) for _ in range(2)] == [7, 7]
    assert execute(url, doc).stage("big").shards.done == 1


@pytest.fixture(scope="module")
def engine():
    engine = RayEngine("local")
    yield engine
    engine.close()


@pytest.mark.ray
@pytest.mark.fault(12, "a row that crashes or exits its Ray worker")
@pytest.mark.parametrize(
    ("fault", "error", "most"),
    [
        ("exit", WorkerLostError, 6),
        ("crash", WorkerLostError, 6),
        ("starve", OutOfMemoryError, 5),
        ("fill", DiskError, 2),
    ],
)
def test_row_that_ends_its_worker_is_named_and_all_others_are_kept(
    tmp_path, engine, fault, error, most
):
    resources = {"workers": 2, "cpus": 0.5}
    doc = document(tmp_path / "v", *names(fault), retries=ONCE, resources=resources)
    row = "" if fault == "fill" else f", row 1 .*/f-{fault}.mp4"
    with pytest.raises(error, match=f"stage big, shard 1{row}"):
        execute(tmp_path.as_uri(), doc, engine)
    store = open_store(tmp_path.as_uri())
    assert 2 <= tries(store, f"f-{fault}") <= most
    assert load_run(store, RUN).stage("big").shards.done == 1


@pytest.mark.ray
@pytest.mark.fault(16, "a row for which there is too little memory beside others")
@pytest.mark.parametrize("fault", ["starve", "die"])
def test_shard_without_memory_runs_by_itself(tmp_path, engine, fault):
    most = {"starve": 1, "die": 2}[fault]  # by Ray, a worker that was killed runs it once more
    doc = document(tmp_path / "v", *names(fault), at_most=most, resources={"workers": 2})
    run = execute(tmp_path.as_uri(), doc, engine)
    assert (run.status, run.stage("big").rows.out) == ("SUCCEEDED", 8)
    assert tries(open_store(tmp_path.as_uri()), f"f-{fault}") == most + 1


@pytest.mark.fault(14, "less free space than a shard needs, before it begins")
def test_shard_does_not_begin_without_its_scratch_space(tmp_path):
    doc = document(tmp_path / "v", *GOOD, resources={"scratch_gib": 1e9}, retries={"infra": 1})
    with pytest.raises(DiskError, match="GiB are free, shard 0 needs 1000000000"):
        execute(tmp_path.as_uri(), doc)
    assert not list(open_store(tmp_path.as_uri()).ledger.list("stages/"))


@pytest.mark.ray
@pytest.mark.fault(16, "a memory hog under RLIMIT_AS")
@pytest.mark.parametrize(("memory_gib", "is_enough"), [(0.25, True), (0.125, False)])
def test_second_try_has_twice_the_memory(tmp_path, engine, memory_gib, is_enough):
    resources = {"workers": 2, "memory_gib": memory_gib}
    doc = document(tmp_path / "v", *names("hog"), resources=resources)
    store = open_store(tmp_path.as_uri())
    if is_enough:
        assert execute(tmp_path.as_uri(), doc, engine).stage("big").rows.out == 8
        assert tries(store, "f-hog") == 2
        return
    with pytest.raises(OutOfMemoryError, match=r"stage big, shard 1, row 1 .* had \d.\d GiB"):
        execute(tmp_path.as_uri(), doc, engine)
    assert load_run(store, RUN).code == "OUT_OF_MEMORY"


@pytest.mark.ray
@pytest.mark.fault(15, "32 shards of 16 MiB each, on two workers")
def test_object_store_of_ray_holds_keys_and_no_payloads(tmp_path, engine):
    """512 MiB of rows go from workers to the store, and none of them through Ray."""
    doc = document(
        tmp_path / "v", *[f"{n:03}-large" for n in range(128)],
        resources={"workers": 2, "cpus": 0.5},
    )  # fmt: skip
    peaks, is_over = [0], threading.Event()

    def watch():
        while not is_over.wait(0.2):
            if ray.is_initialized():
                # without the address, another Ray of this machine would be an error
                own = ray.get_runtime_context().gcs_address
                summary = memory_summary(address=own, stats_only=True)
                assert "Spilled" not in summary
                peaks.append(int(re.search(r"Plasma memory usage (\d+) MiB", summary)[1]))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            run = execute(tmp_path.as_uri(), doc, engine)
        finally:
            is_over.set()
        watching.result()
    big = open_store(tmp_path.as_uri()).snapshot(run.outputs["big"])
    assert big.rows == 128
    assert len(peaks) > 3
    assert max(peaks) <= 8, peaks  # MiB


@pytest.mark.fault(
    16, "a row for which there is too little memory beside another shard, in the driver"
)
def test_shard_without_memory_runs_with_nothing_beside_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tests.support.poison.Poison.overlap", 2)
    doc = document(tmp_path / "v", *names("starve"), at_most=1)
    run = execute(tmp_path.as_uri(), doc)
    assert (run.status, run.stage("big").rows.out) == ("SUCCEEDED", 8)
    assert tries(open_store(tmp_path.as_uri()), "f-starve") == 2
    assert "runs with nothing beside it after: stage big, shard 1: MemoryError" in caplog.text
