"""Gates fail closed, also when a person promotes by hand."""

from pathlib import Path

import pytest

from tests.support.remote_objects import Counting
from tests.support.toy_runs import toy_run, write_videos
from videoar import api
from videoar.core.errors import ConfigError, GateError
from videoar.storage.store import Store


def test_gate_decision_has_keys_of_contract(store: Store, videos: Path):
    run = toy_run(store, videos)
    decision = api.gate(store)
    assert decision["passed"]
    assert decision["candidate"] == run.outputs["model"]
    (rule,) = decision["rules"]
    assert rule.keys() == {"name", "value", "bound", "passed", "reason"}


def test_gate_run_without_gate_raises(store: Store, videos: Path):
    toy_run(store, videos, gate=None)
    with pytest.raises(GateError, match="has no gate decision"):
        api.gate(store)


def test_promote_newest_decision_holds_whatever_its_stage_name(store: Store, videos: Path):
    # `zgate` comes after `gate` in any listing by name, and was decided before it
    passing = {"stage": "judge", "from": {"model": "model"}}
    run = toy_run(store, videos, zgate=passing, gate=None)
    model = run.outputs["model"]
    assert api.promote(store, model)["snapshot"] == model
    with pytest.raises(GateError):
        toy_run(store, videos, gate={"bound": 2.0})
    with pytest.raises(GateError, match="blocked by its gate: rows >= 2"):
        api.promote(store, model)


def test_promote_takes_requests_by_decisions_and_not_by_data(store: Store, videos: Path):
    model = toy_run(store, videos).outputs["model"]

    def requests() -> int:
        counting = Counting(store.objects)
        api.promote(Store(counting), model)
        return counting.requests

    before = requests()
    for name in ("c.mp4", "d.mp4", "e.mp4"):
        write_videos(videos, name)
        toy_run(store, videos, model=None, gate=None)
    assert requests() == before


def test_promote_without_decision_raises(store: Store, videos: Path):
    toy_run(store, videos)
    with pytest.raises(GateError, match="no gate has evaluated it for production"):
        api.promote(store, "model", "production")
    with pytest.raises(GateError, match="no gate has evaluated it"):
        api.promote(store, "few")


def test_rollback_returns_to_previous_snapshot(store: Store, videos: Path):
    first = toy_run(store, videos).outputs["model"]
    with pytest.raises(ConfigError, match="no earlier snapshot"):
        api.rollback(store, "champion")
    second = toy_run(store, videos, model={"steps": 4}).outputs["model"]
    moved = api.rollback(store, "champion", reason="worse on hands")
    assert (moved["was"], moved["snapshot"]) == (second, first)
    assert api.refs(store, "champion")["refs"][-1]["evidence"] == {
        "rolled_back_from": second,
        "reason": "worse on hands",
    }
    with pytest.raises(ConfigError, match="known: champion"):
        api.rollback(store, "nosuch")


def test_rollback_again_goes_one_further_back_and_to_names_any_earlier(store: Store, videos: Path):
    models = {
        name: toy_run(store, videos, model={"steps": steps}).outputs["model"]
        for name, steps in (("a", 3), ("b", 4), ("c", 5), ("d", 6))
    }
    names = {snapshot: name for name, snapshot in models.items()}

    def rolled_back(**options: str) -> str:
        return names[api.rollback(store, "champion", **options)["snapshot"]]

    assert [rolled_back() for _ in range(3)] == ["c", "b", "a"]
    with pytest.raises(ConfigError, match="no earlier snapshot"):
        rolled_back()
    assert rolled_back(to=models["d"]) == "d"
    # `d` was set again after `a`, so one back is `a`
    assert rolled_back() == "a"
    toy_run(store, videos, model={"steps": 7})
    assert rolled_back() == "a"
    with pytest.raises(ConfigError, match="points at it already"):
        rolled_back(to=models["a"])
    with pytest.raises(ConfigError, match="never pointed at it"):
        rolled_back(to="few")
