"""Calls of replicas by the driver of a batch, with a handle in place of Ray Serve's."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray.exceptions import ActorDiedError

from videoar.core.errors import ConfigError, WorkerLostError
from videoar.core.types import Retries
from videoar.engine.ray_serve import _Calls
from videoar.pipeline.stage import Shard
from videoar.pipeline.work.task import WorkRecord

SHARD = Shard(0, "digest")


class Handle:
    """Answers with what it is given, in order; an exception is raised."""

    def __init__(self, *answers):
        self.answers, self.inside, self.most, self.is_shut = list(answers), 0, 0, False
        self.lock = threading.Lock()

    def remote(self, shard):
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.01)
        self.inside -= 1
        return self

    def result(self):
        with self.lock:
            answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def shutdown(self):
        self.is_shut = True


def test_shard_of_a_dead_replica_is_sent_again_and_one_of_an_error_is_not():
    record = WorkRecord(rows_out=1)
    handle = Handle(ActorDiedError(), record)
    with ThreadPoolExecutor(1) as pool, _Calls(handle, pool, Retries()) as calls:
        assert calls.submit(SHARD).result() == record
    assert handle.is_shut
    with (
        ThreadPoolExecutor(1) as pool,
        _Calls(Handle(ConfigError("a", "b"), record), pool, Retries()) as calls,
        pytest.raises(ConfigError),
    ):
        calls.submit(SHARD).result()


def test_nothing_is_sent_again_after_the_end_and_threads_do_not_call_a_handle_at_once():
    records = [WorkRecord(rows_out=i) for i in range(8)]
    handle = Handle(*records)
    with ThreadPoolExecutor(8) as pool:
        with _Calls(handle, pool, Retries()) as calls:
            done = [calls.submit(SHARD) for _ in records]
            assert sorted(each.result().rows_out for each in done) == list(range(8))
        assert handle.most == 1
        handle.answers = [ActorDiedError(), records[0]]
        with pytest.raises(WorkerLostError):
            calls.submit(SHARD).result()
    assert handle.answers == records[:1]
