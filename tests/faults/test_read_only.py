"""Verbs that read need no permission to write."""

import os
import subprocess

import pytest

from tests.support.small_pipeline import command, environment, in_a_process
from tests.support.toy_runs import toy_run, write_videos
from videoar import api
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow
VERBS = [
    "ls", "status", "status {run}", "logs {run}", "show {big}", "show big --rows 2",
    "diff {big} {few}", "lineage {big} --up", "lineage {big} --down", "refs", "refs pinned",
    "quarantine ls", "explain {run} big", "validate {big} --deep", "schedule ls", "stages",
    "lineage {run} --format openlineage", "report {run} --out {out}", "report --index --out {out}",
    "store verify {copy}",
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A store that nobody may write, and what the verbs are given."""
    root = tmp_path_factory.mktemp("read-only")
    store = open_store((root / "store").as_uri())
    run = toy_run(store, write_videos(root / "videos", "a.mp4", "bad.mp4"))
    api.freeze(store, run.outputs["big"], "pinned")
    copy = (root / "copy").as_uri()
    api.store_copy(store, copy)
    subprocess.run(["chmod", "-R", "a-w", root / "store"], check=True)
    yield {
        "store": store.url, "run": run.run_id, "big": run.outputs["big"],
        "few": run.outputs["few"], "out": str(root / "page.html"), "copy": copy,
    }  # fmt: skip
    subprocess.run(["chmod", "-R", "u+w", root / "store"], check=True)


@pytest.mark.parametrize("verb", VERBS)
def test_reading_verb_works_on_a_store_that_cannot_be_written(places, verb):
    # root writes everywhere, unless it gives up this capability
    drop = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    as_user = drop if os.geteuid() == 0 else []
    arguments = verb.format(**places).split()
    call = [*as_user, *command(*arguments, store=places["store"])]
    code, _, err = in_a_process(call, environment())
    assert code == 0, err
    assert "ermission denied" not in err
