"""What reading verbs ask a store for does not grow with its data files."""

import pytest

from tests.support.many_runs import WANTED, make
from tests.support.remote_objects import Counting
from videoar import api
from videoar.storage.delta_log import iter_commits
from videoar.storage.store import Store, open_store

VERBS = {
    "promote": lambda store, newest: api.promote(store, newest["model"]),
    "lineage --down": lambda store, newest: api.lineage(store, newest["clips"], down=True),
    "forget": lambda store, _: api.forget(store, WANTED, dry_run=True),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Stores with the same runs, which have 4 and 40 files of clips each."""
    folders = [tmp_path_factory.mktemp(f"{files}-files") for files in (4, 40)]
    for folder, files in zip(folders, (4, 40), strict=True):
        make(folder, 8, files)
    return [open_store(folder.as_uri()) for folder in folders]


@pytest.mark.parametrize("verb", VERBS)
def test_requests_of_verb_do_not_depend_on_the_number_of_files(stores, verb, monkeypatch):
    monkeypatch.setattr("videoar.admin.promotion.mirror_move", lambda *_: None)
    requests = []
    for store in stores:
        counting = Counting(store.objects)
        newest = {c.dataset: c.snapshot for c in iter_commits(store.objects)}
        result = VERBS[verb](Store(counting), newest)
        requests.append(counting.requests)
    assert requests[0] == requests[1] < 150
    if verb == "forget":
        assert (result["deleted"]["files"], result["rewritten"]) == (1, 1)
