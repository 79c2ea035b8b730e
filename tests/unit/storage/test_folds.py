"""Folds save requests and change no answer."""

import json
import signal

import pytest

from tests.support.child_process import exit_code
from tests.support.commit_writer import commit_numbers
from tests.support.many_runs import make
from tests.support.remote_objects import Counting
from videoar.admin.damage import damage
from videoar.core.errors import DamagedError
from videoar.records.run_folds import fold_runs
from videoar.storage import folds, layout
from videoar.storage.delta_log import iter_commits
from videoar.storage.ledger import seal
from videoar.storage.store import Store, open_store

SIZES, RUNS = (8, 4), 14
CLIPS = "tables/clips/_delta_log"


@pytest.fixture(scope="module", autouse=True)
def small_folds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folds, "SIZES", SIZES)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "store"
    make(folder, RUNS, 1)  # version 0 of each log makes the table
    return folder


@pytest.fixture
def store(folder) -> Store:
    return open_store(folder.as_uri())


def fold_keys(store: Store) -> list[str]:
    return list(store.ledger.list(layout.FOLDS_PREFIX))


def answers(store: Store) -> tuple[list, int]:
    """Return what is read of logs, and the number of requests."""
    counting = Counting(store.objects)
    ledger = Store(counting).ledger
    entries = [e for log in ("decisions", layout.ref_log("r")) for e in ledger.entries(log)]
    return [list(iter_commits(counting)), entries], counting.requests


def test_folds_have_all_whole_blocks_of_each_log(store: Store):
    of_clips = [layout.fold_key(CLIPS, *s) for s in ((0, 4), (0, 8), (4, 4), (8, 4))]
    assert [key for key in fold_keys(store) if CLIPS in key] == of_clips
    counting = Counting(store.objects)
    assert len(list(Store(counting).ledger.entries(layout.DECISIONS_LOG))) == RUNS
    # listings of the log and its folds, the look for a newer entry, folds of 8 and 4, two entries
    assert counting.requests == 7


def test_without_folds_answers_are_equal_and_take_more_requests(store: Store):
    before, few = answers(store)
    saved = {key: store.objects.get(key) for key in fold_keys(store)}
    for size, more in ((8, 5), (4, 40)):
        for key in (key for key in saved if key.endswith(f"-{size}.json")):
            store.objects.delete(key)
        after, requests = answers(store)
        assert after == before
        assert requests >= few + more
    assert store.fold() + fold_runs(store) == len(saved)
    assert {key: store.objects.get(key) for key in fold_keys(store)} == saved


@pytest.mark.parametrize("log", ["decisions", CLIPS])
@pytest.mark.parametrize("kind", ["cut", "flipped", "of another log", "of equal sizes"])
def test_fold_that_cannot_be_trusted_is_ignored(store: Store, log, kind, caplog):
    (before, _), key = answers(store), layout.fold_key(log, 0, 8)
    data = store.objects.get(key)
    if kind.startswith("of"):  # another log was restored from a copy
        record = {k: v for k, v in json.loads(data).items() if k != "record_sha256"}
        longer = kind == "of another log"
        record["entries"][7 - 4 * longer] = [record["entries"][7 - 4 * longer][0] + longer, "{}"]
        record["etag"] = "other"
        store.objects.put(key, json.dumps(seal(key, record)).encode())
    else:
        half = len(data) // 2
        flipped = data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :]
        store.objects.put(key, data[:half] if kind == "cut" else flipped)
        assert next(c.name for c in damage(store) if not c.ok) == f"damage: {key}"
    assert answers(store)[0] == before
    assert key in caplog.text
    store.objects.put(key, data)


def test_fold_of_a_copied_store_costs_one_request_more(store: Store, caplog):
    (before, few), key = answers(store), layout.fold_key("decisions", 0, 8)
    data = store.objects.get(key)
    record = {k: v for k, v in json.loads(data).items() if k != "record_sha256"}
    assert record["etag"]
    store.objects.put(key, json.dumps(seal(key, {**record, "etag": "other"})).encode())
    assert answers(store) == (before, few + 1)
    assert caplog.text == ""
    store.objects.put(key, data)


def test_doctor_makes_damaged_and_missing_folds_again(store: Store):
    lost, cut = layout.fold_key("decisions", 0, 4), layout.fold_key(CLIPS, 0, 8)
    saved = {key: store.objects.get(key) for key in (lost, cut)}
    store.objects.delete(lost)
    store.objects.put(cut, saved[cut][:-9])
    named = [check.name for check in damage(store, fix=True) if "folds/" in check.name]
    assert named == [f"damage: {cut}"]
    assert {key: store.objects.find(key) for key in saved} == saved


def test_entry_that_is_lost_or_changed_is_not_hidden(store: Store):
    key = layout.log_version_key("clips", 3)
    data = store.objects.get(key)
    try:
        store.objects.put(key, data[:-5])
        with pytest.raises(DamagedError, match=key):
            list(iter_commits(store.objects))
        store.objects.delete(key)
        with pytest.raises(DamagedError, match="lost, but"):
            list(iter_commits(store.objects))
    finally:
        store.objects.put(key, data)


def test_entries_of_many_bytes_are_not_folded(tmp_path, monkeypatch):
    monkeypatch.setattr(folds, "_MAX_BYTES", 1000)
    make(tmp_path / "store", 5, 1)
    keys = fold_keys(open_store((tmp_path / "store").as_uri()))
    assert keys == [layout.fold_key("decisions", 0, 4)]


def commit_and_move(url: str, count: int) -> None:
    folds.SIZES = SIZES
    store = open_store(url)
    for number in range(count):
        expect = number - 1 if number else None
        store.refs.advance("r", f"videos:{number:016d}", expect=expect, evidence={})
    commit_numbers(url, "", range(count))


@pytest.mark.parametrize("visit", [1, 3])
@pytest.mark.slow
def test_killed_while_folding_loses_nothing_and_the_next_writer_folds(tmp_path, visit):
    url = (tmp_path / "store").as_uri()
    store = open_store(url)
    # of ref, blocks of 4 at the moves 3 and 7, of 8 at 7
    killed = exit_code(commit_and_move, url, 8, VIDEOAR_CRASH_AT=f"fold.written:{visit}")
    assert killed == -signal.SIGKILL
    (found, _), log = answers(store), layout.ref_log("r")
    assert len(found[1]) == (4 if visit == 1 else 8)
    assert len([key for key in fold_keys(store) if log in key]) == visit
    for number in range(len(found[1]), 9):
        store.refs.advance("r", f"videos:{number:016d}", expect=number - 1, evidence={})
    assert [key for key in fold_keys(store) if log in key] == [
        layout.fold_key(log, *span) for span in ((0, 4), (0, 8), (4, 4))
    ]


def test_commits_fold_their_log(tmp_path):
    url = (tmp_path / "store").as_uri()
    commit_numbers(url, "", range(5))  # and version 0
    (key,) = fold_keys(open_store(url))
    assert key == layout.fold_key("tables/videos/_delta_log", 0, 4)


def test_fold_that_fails_fails_no_write(store: Store, monkeypatch, caplog):
    def fail(*_):
        raise DamagedError("key", "damaged")

    monkeypatch.setattr(folds, "write", fail)
    store.ledger.fold("decisions", 7)
    assert "not folded: key: damaged" in caplog.text
