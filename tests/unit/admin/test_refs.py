"""Freezing snapshots under names, and the history of refs."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.published_model import published
from tests.support.toy_runs import toy_run
from videoar import api
from videoar.core.errors import ConfigError, SnapshotNotFoundError
from videoar.storage.layout import log_entry_key, ref_log
from videoar.storage.store import Store


def test_freeze_pins_once_and_is_idempotent(store: Store, videos: Path):
    run = toy_run(store, videos)
    before = time.time()
    (entry,) = api.freeze(store, "last/few", "holiday")["refs"]
    assert (entry["name"], entry["target"], entry["seq"]) == ("holiday", run.outputs["few"], 0)
    assert before - 1 <= entry["at"] <= time.time() + 1
    assert "@" in entry["by"]
    assert api.freeze(store, run.outputs["few"], "holiday")["refs"] == [entry]
    assert store.snapshot("holiday").id == run.outputs["few"]
    with pytest.raises(ConfigError, match=f"points at {run.outputs['few']} already"):
        api.freeze(store, "last/big", "holiday")
    assert api.refs(store, "holiday")["refs"] == [entry]


def test_freeze_in_a_race_pins_one_snapshot(store: Store, videos: Path):
    toy_run(store, videos)

    def freeze(name: str) -> str | None:
        try:
            return api.freeze(store, name, "holiday")["refs"][0]["target"]
        except ConfigError:
            return None

    with ThreadPoolExecutor(8) as pool:
        targets = list(pool.map(freeze, ["last/few", "last/big"] * 4))
    assert {target for target in targets if target} == {store.refs.head("holiday")}
    assert None in targets
    assert len(store.refs.history("holiday")) == 1


@pytest.mark.parametrize("ref", ["", "last", "a/b", "../x", "A"])
def test_freeze_under_a_text_that_is_no_name_is_rejected(store: Store, videos: Path, ref: str):
    toy_run(store, videos)
    with pytest.raises(ConfigError, match="cannot be the name of a ref"):
        api.freeze(store, "last/few", ref)


def test_freeze_of_a_transformer_is_rejected_and_of_a_tokenizer_is_not(store: Store):
    model = published(store)
    with pytest.raises(ConfigError, match="moved by gates"):
        api.freeze(store, model.id, "champion")
    api.freeze(store, "tokenizer", "coder")
    with pytest.raises(SnapshotNotFoundError):
        api.freeze(store, "nosuch", "other")


def test_refs_show_who_moved_when_and_why(store: Store, videos: Path):
    first, second = toy_run(store, videos), toy_run(store, videos, model={"steps": 4})
    history = api.refs(store, "champion")["refs"]
    assert [(entry["seq"], entry["by"]) for entry in history] == [
        (0, first.run_id),
        (1, second.run_id),
    ]
    assert history[1]["evidence"]["decision"] == second.outputs["gate"]
    assert history[0]["at"] <= history[1]["at"]
    api.freeze(store, "last/few", "holiday")
    heads = api.refs(store)["refs"]
    assert [(entry["name"], entry["seq"]) for entry in heads] == [("champion", 1), ("holiday", 0)]
    with pytest.raises(ConfigError, match="did you mean champion"):
        api.refs(store, "champoin")


def test_refs_of_an_earlier_version_are_read(store: Store):
    record = {"seq": 0, "snapshot": "m:1", "prev": None, "by_run": "", "evidence": {}}
    store.ledger.create(log_entry_key(ref_log("champion"), 0), record)
    (entry,) = api.refs(store)["refs"]
    assert (entry["by"], entry["at"]) == (None, None)
