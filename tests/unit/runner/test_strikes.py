"""Which shards run isolated, by the record of a run; and how a row that ends a process is found."""

from types import SimpleNamespace

import pytest

from tests.support.poison import REGISTRY, document
from videoar.core.errors import WorkerLostError
from videoar.engine.base import waits_unseen
from videoar.engine.inline import InlineEngine
from videoar.engine.isolated import run_isolated
from videoar.pipeline.spec import parse_pipeline
from videoar.runner import strikes
from videoar.runner.execute import Execution
from videoar.runner.strikes import suspects
from videoar.storage.store import open_store


def begins(cached):
    shards = {"planned": 9, "cached": cached}
    stage = {"name": "x", "status": "RUNNING", "shards": shards}
    return {"kind": "stage", "stage": stage, "parts": {}}


def ends(status):
    return {"kind": "stage", "stage": {"name": "x", "status": status, "shards": {}}}


@pytest.mark.parametrize(
    ("events", "isolated"),
    [
        ([begins(0)], False),
        ([begins(0), begins(0)], False),
        ([begins(0), begins(0), begins(0)], True),
        ([begins(0), begins(3), begins(3)], True),
        ([begins(0), begins(3), begins(4)], False),
        ([begins(0), ends("WAITING"), begins(3), ends("TIMED_OUT"), begins(3)], True),
        ([begins(0), begins(0), ends("FAILED"), begins(0)], False),
        ([begins(0), begins(0), ends("CANCELLED"), begins(0)], False),
        ([begins(0), begins(0), begins(0), begins(1)], False),
    ],
)
def test_shards_are_suspects_after_two_attempts_that_did_not_get_past_them(
    monkeypatch, events, isolated
):
    monkeypatch.setattr(strikes, "events_of", lambda *_: [{"kind": "driver"}, *events])
    stage = SimpleNamespace(
        overlap=1, config=SimpleNamespace(resources=SimpleNamespace(max_workers=2))
    )
    assert list(suspects(None, "r", stage, "x", "abc")) == (["a", "b"] if isolated else [])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("abcd", None),
        ("abCd", "row 2 "),
        ("Abcd", "row 0 "),
        ("abcD", "row 3 "),
        ("aBcD", "row 1 "),
        ("AB", None),  # only both together
    ],
)
def test_row_that_ends_its_process_is_found_by_halving(tmp_path, names, found):
    seen = []

    class Engine(InlineEngine):
        def map(self, task, shards, done):
            with pytest.raises(WorkerLostError) as error:
                run_isolated(task, shards[0], run, waits_unseen)
            seen.append(str(error.value))
            super().map(task, shards, done)

    def run(call, _):
        first, last = call.args[2:] or (0, len(names))
        bad = [name for name in names[first:last] if name.isupper()]
        if len(call.args) == 2 or (bad and names != "AB"):
            raise WorkerLostError("x", "its process ended by SIGSEGV")

    doc = document(tmp_path / "v", *names, retries={"infra": 0})
    spec = parse_pipeline(doc, "t", REGISTRY)
    Execution(spec, open_store(tmp_path.as_uri()), Engine(), registry=REGISTRY).run()
    assert seen[0].startswith(f"stage big, shard 0, {found}" if found else "stage big, shard 0: ")
