"""The in-process engine: order, retries, concurrent shards, and loops without a result."""

import logging
import threading
from types import SimpleNamespace

import pyarrow as pa
import pytest

from videoar.core.errors import ConfigError, StageError, TransientStorageError
from videoar.core.ids import digest_json
from videoar.core.logging import configure_logging, log_context
from videoar.engine.inline import InlineEngine
from videoar.pipeline.stage import LoopStage, MapStage, Output, Shard, StageConfig
from videoar.pipeline.work.task import StageTask

REGISTRY = {name: f"{__name__}:{name.title()}" for name in ("single", "double", "endless")}
HOOKS = SimpleNamespace()
"""What the stages below call: in this engine they run in the process of the test."""


class Single(MapStage[StageConfig]):
    name, produces, config_type, primary = "single", "sources@1", StageConfig, "sources"
    consumes = {}

    def open(self, inputs, context):
        return self

    def __call__(self, rows):
        HOOKS.work(rows["number"][0].as_py())
        return Output(pa.table({}))

    def stop(self):
        HOOKS.is_stopped.set()


class Double(Single):
    name, overlap = "double", 2


class Endless(LoopStage[StageConfig]):
    name, produces, config_type = "endless", "sources@1", StageConfig
    consumes = {}

    def run(self, inputs, context, rank):
        HOOKS.work(rank.index)


@pytest.fixture(autouse=True)
def fresh_hooks():
    HOOKS.is_stopped = threading.Event()


def task(stage, tmp_path):
    parts = {"config": {}, "inputs": {}, "tools": {}}
    return StageTask(
        run_id="r", dataset="out", stage_type=stage, config={}, inputs={},
        fingerprint_parts=parts, store_url=tmp_path.as_uri(), registry=REGISTRY,
    )  # fmt: skip


def run(stage, tmp_path, num_shards=4):
    """Map shards; return their indices in the order in which they were reported as done."""
    done = []
    shards = [Shard(i, digest_json(i), rows=({"number": i},)) for i in range(num_shards)]
    InlineEngine().map(task(stage, tmp_path), shards, lambda shard, _: done.append(shard.index))
    return done


@pytest.mark.parametrize("stage", ["single", "double"])
def test_shards_are_reported_in_order_and_run_once(stage, tmp_path):
    calls = []
    HOOKS.work = calls.append
    assert run(stage, tmp_path) == [0, 1, 2, 3]
    assert sorted(calls) == [0, 1, 2, 3]
    assert run(stage, tmp_path) == [0, 1, 2, 3]  # from their records
    assert len(calls) == 4


def test_overlap_of_two_runs_two_shards_at_a_time(tmp_path):
    together, running, most = threading.Barrier(2), [], []

    def work(number):
        running.append(number)
        together.wait(30)  # a single thread would never pass
        most.append(len(running))
        together.wait(30)
        running.remove(number)

    HOOKS.work = work
    assert run("double", tmp_path) == [0, 1, 2, 3]
    assert max(most) == 2


def test_concurrent_shards_log_with_the_context_of_the_caller(tmp_path, capsys):
    configure_logging("text", verbose=False)
    HOOKS.work = logging.getLogger("videoar.test").info
    with log_context(run_id="r1"):
        run("double", tmp_path, 2)
    assert sorted(capsys.readouterr().err.splitlines()) == ["info    r1: 0", "info    r1: 1"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["single", "double"])
def test_transient_error_of_a_shard_is_retried(stage, tmp_path):
    calls = []

    def work(number):
        calls.append(number)
        if calls.count(1) == 1 and number == 1:
            raise TransientStorageError("a", "no answer")

    HOOKS.work = work
    assert run(stage, tmp_path) == [0, 1, 2, 3]
    assert sorted(calls) == [0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("error", "raised"), [(ValueError("boom"), StageError), (ConfigError("a", "boom"), ConfigError)]
)
def test_other_error_of_a_shard_is_not_retried(error, raised, tmp_path):
    calls = []

    def work(number):
        calls.append(number)
        raise error

    HOOKS.work = work
    with pytest.raises(raised, match="boom"):
        run("single", tmp_path)
    assert calls == [0]


def test_error_of_a_shard_stops_those_that_run_beside_it(tmp_path):
    both = threading.Barrier(2)

    def work(number):
        both.wait(30)
        if number == 0:
            raise ConfigError("a", "boom")
        assert HOOKS.is_stopped.wait(30)  # else leaving the pool blocks

    HOOKS.work = work
    with pytest.raises(ConfigError, match="boom"):
        run("double", tmp_path, 2)
    assert HOOKS.is_stopped.is_set()


def test_loop_without_a_record_is_an_error(tmp_path):
    indices = []
    HOOKS.work = indices.append
    with pytest.raises(StageError, match="stage out: ended without a result from rank 0"):
        InlineEngine().loop(task("endless", tmp_path))
    assert indices == [0]
