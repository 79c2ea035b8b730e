"""Records are created once, logs have no gaps, and a ref moves only from the head that was read."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from videoar.core.errors import SnapshotConflictError
from videoar.storage import open_store
from videoar.storage.ledger import Ledger, Refs
from videoar.testing.fault_store import FaultPlan, FaultStore


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path.as_uri())


def test_record_created_twice_is_adopted(store):
    assert store.ledger.read("a/b.json") is None
    assert store.ledger.create("a/b.json", {"by": 1})
    assert not store.ledger.create("a/b.json", {"by": 2})
    assert store.ledger.create_or_adopt("a/b.json", {"by": 3}) == {"by": 1}
    assert store.ledger.create_or_adopt("a/c.json", {"by": 3}) == {"by": 3}
    assert list(store.ledger.list("a/")) == ["a/b.json", "a/c.json"]


def test_log_appends_racing_get_consecutive_numbers(store):
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: store.ledger.append("log", {"same": True}), range(40)))
    assert sorted(numbers) == list(range(40))
    keys = list(store.ledger.list("log/"))
    assert [store.ledger.read(key) for key in keys] == [{"same": True}] * 40
    assert store.ledger.length("log") == 40


@pytest.mark.fault(10, "a listing without the newest records")
def test_append_with_stale_listing_finds_the_end(store):
    stale = Ledger(FaultStore(store.objects, FaultPlan(late_listing_s=60)))
    assert list(stale.list("")) == []
    assert [stale.append("log", {"n": n}) for n in range(3)] == [0, 1, 2]
    refs = Refs(stale)
    refs.advance("champion", "models:a", expect=None, evidence={})
    refs.advance("champion", "models:b", expect=0, evidence={})
    assert refs.head("champion") == "models:b"


def test_ref_advance_on_stale_head_is_rejected(store):
    refs = store.refs
    assert refs.head("champion") is None
    assert refs.advance("champion", "models:a", expect=None, evidence={"fvd": 2.0}) == 0
    assert refs.advance("champion", "models:b", expect=0, evidence={}, by_run="run1") == 1
    with pytest.raises(SnapshotConflictError, match="models:b"):
        refs.advance("champion", "models:c", expect=0, evidence={})
    with pytest.raises(SnapshotConflictError):
        refs.advance("champion", "models:c", expect=None, evidence={})
    with pytest.raises(SnapshotConflictError):
        refs.advance("champion", "models:c", expect=7, evidence={})
    assert refs.head("champion") == "models:b"
    history = refs.history("champion")
    times = [record.pop("at") for record in history]
    assert times == sorted(times)
    assert all("@" in record.pop("user") for record in history)
    assert history == [
        {"seq": 0, "snapshot": "models:a", "prev": None, "by_run": "", "evidence": {"fvd": 2.0}},
        {"seq": 1, "snapshot": "models:b", "prev": "models:a", "by_run": "run1", "evidence": {}},
    ]


def test_ref_advance_racing_has_one_winner(store):
    def promote(candidate):
        try:
            store.refs.advance("champion", f"models:{candidate}", expect=None, evidence={})
        except SnapshotConflictError:
            return None
        return f"models:{candidate}"

    with ThreadPoolExecutor(8) as pool:
        winners = [winner for winner in pool.map(promote, range(8)) if winner]
    assert winners == [store.refs.head("champion")]
