"""A damaged record costs its own row: verbs that list name it, show the rest and exit with 7."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.schedules import FakeLauncher, tick, write_pipeline
from tests.support.small_pipeline import command, environment, in_this_process
from tests.support.toy_runs import execute, toy_document, write_videos
from videoar import api
from videoar.storage import layout
from videoar.storage.store import Store, open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Two runs of which the second promoted, two refs, and a schedule that has fired twice."""
    root = tmp_path_factory.mktemp("damaged")
    store = open_store((root / "store").as_uri())
    videos = write_videos(root / "videos", "a.mp4", "b.mp4")
    run = execute(store, toy_document(videos, model={"steps": 2}), "r1")
    execute(store, toy_document(videos), "r2")
    api.freeze(store, run.outputs["big"], "pinned")
    path, launcher = write_pipeline(root, "nightly", trigger={"cron": "0 3 * * *"}), FakeLauncher()
    for day in (1, 2, 3):
        tick(store, path, launcher, datetime(2026, 11, day, 3, tzinfo=UTC))
    return store


def keys(store: Store, prefix: str) -> list[str]:
    return [key for key in store.ledger.list(prefix) if key.endswith(".json")]


def call(store: Store, verb: str) -> tuple[int, dict, str]:
    run = in_this_process(command(*verb.split(), store=store.url), environment())
    return run[0], json.loads(run[1]), run[2]


RUN, EVENT = layout.run_key("r1"), layout.log_entry_key(layout.run_events("r1"), 3)
FIRST_MOVE = layout.log_entry_key(layout.ref_log("champion"), 0)
CASES = [
    (RUN, "ls", ["r1", "r2", "DAMAGED", "SUCCEEDED"]),
    (EVENT, "ls", ["r1", "r2", "toy"]),
    (RUN, "status r1", ["big:", "few:", "SUCCEEDED"]),
    (EVENT, "status r1", ["few:", "model:"]),
    (RUN, "explain r2 model", ['"previous_run": null']),
    (EVENT, "explain r2 model", ['"previous_run": null']),
    (layout.log_entry_key(layout.ref_log("champion"), 1), "refs", ["pinned", "big:"]),
    (FIRST_MOVE, "refs champion", ["champion"]),
    ("triggers/nightly/", "schedule ls", ["20261102t030000z", "20261103t030000z", "SUCCEEDED"]),
    ("schedules/nightly/", "schedule ls", ["20261102t030000z", "SUCCEEDED"]),
    (RUN, "report --index --out {page}", ["r1", "r2", "pinned", "nightly", "few"]),
    ("refs/champion/", "report --index --out {page}", ["r2", "pinned", "nightly", "few"]),
    ("tables/few/_delta_log/", "report --index --out {page}", ["r2", "pinned", "nightly", "model"]),
    ("triggers/nightly/", "report --index --out {page}", ["r2", "pinned", "few"]),
]  # fmt: skip


_BEFORE_OTHERS = {RUN, EVENT, FIRST_MOVE}
_UNSEEN = (RUN, "explain r2 model")
LOST = [case for case in CASES if case[0] in _BEFORE_OTHERS and case[:2] != _UNSEEN]
"""Without its newest entry a log is what it was before: only what later ones name is missed."""


@pytest.mark.fault(13, "a damaged or lost record, by verbs that list")
@pytest.mark.parametrize(
    ("prefix", "verb", "shown", "is_lost"),
    [*((*case, False) for case in CASES), *((*case, True) for case in LOST)],
)
def test_damaged_record_is_named_and_the_rest_is_shown(
    store: Store, tmp_path: Path, prefix, verb, shown, is_lost
):
    page = tmp_path / "page.html"
    # what is derived from the events would answer in their place
    (key, *_) = keys(store, prefix)
    saved = {k: store.objects.get(k) for k in (key, layout.folded_events_key("r1"))}
    store.objects.delete(layout.folded_events_key("r1"))
    if is_lost:
        store.objects.delete(key)
    else:
        store.objects.put(key, saved[key][:-9])
    try:
        code, document, err = call(store, verb.format(page=page))
    finally:
        for k, data in saved.items():
            store.objects.put(k, data)
    text = json.dumps(document) + (page.read_text() if page.exists() else "")
    assert code == 7, (document, err)
    assert key in text
    assert not [word for word in shown if word not in text]
    assert call(store, verb.format(page=page))[0] == 0


def test_damaged_record_of_an_earlier_run_stops_no_new_run(store: Store, tmp_path: Path, caplog):
    key = layout.run_key("r2")
    data = store.objects.get(key)
    store.objects.put(key, b"{")
    execute(store, toy_document(write_videos(tmp_path, "c.mp4")), "r3")
    store.objects.put(key, data)
    assert f"{key}: damaged" in caplog.text
    assert api.status(store, "r3").status == "SUCCEEDED"
