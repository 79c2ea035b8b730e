"""What a walk of a folder store cannot read is an error, what is linked is followed."""

import json
from pathlib import Path

import pytest

from tests.support.clip_rows import clip_row, clips_of
from tests.support.small_pipeline import command, environment, in_this_process
from tests.support.toy_runs import toy_run, write_videos
from tests.support.unprivileged import unprivileged
from videoar.core.ids import sha256_hex
from videoar.storage.store import open_store

SOURCE = sha256_hex(b"a")
VERBS = {
    "ls": "runs",
    f"forget --source {SOURCE}": "tables/clips",
    f"forget --source {SOURCE} --dry-run": "tables/clips",
    "gc plan": "tables/clips",
    "doctor --verify": "tables/clips",
    "show clips": "tables/clips",
    "refs": "refs/champion",
    "lineage clips --down": "tables/big",
    "report --index --out page.html": "tables/big",
    "store copy {copy}": "objects",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    tmp_path = tmp_path_factory.mktemp("hidden")
    store = open_store((tmp_path / "store").as_uri())
    toy_run(store, write_videos(tmp_path / "videos", "a.mp4"))
    ref = store.put_object(b"video", ".mp4")
    video = {"video_key": ref.key, "video_sha256": ref.sha256, "video_size_bytes": 5}
    clips_of(store, [clip_row("a", **video)])
    return tmp_path / "store"


def call(root: Path, verb: str) -> tuple[int, str, str]:
    verb = verb.format(copy=(root.parent / "copy").as_uri())
    return in_this_process(command(*verb.split(), store=root.as_uri()), environment())


@pytest.mark.parametrize("how", ["unreadable", "link to nothing"])
@pytest.mark.parametrize("verb", VERBS)
def test_folder_that_cannot_be_walked_is_an_error_that_names_it(
    root: Path, verb: str, how: str, monkeypatch
):
    monkeypatch.chdir(root.parent)
    folder = root / VERBS[verb]
    if how == "unreadable":
        folder.chmod(0)
    else:
        folder.rename(root.parent / "moved")
        folder.symlink_to(root.parent / "not mounted")
    try:
        with unprivileged():
            code, out, err = call(root, verb)
    finally:
        if how == "unreadable":
            folder.chmod(0o755)
        else:
            folder.unlink()
            (root.parent / "moved").rename(folder)
    assert code == 7, (out, err)
    assert str(folder) in out + err
    assert not list(root.glob("forgotten/*")), "a tombstone of what is still there"


def test_linked_folder_is_read_and_emptied_like_its_target(root: Path):
    calm = call(root, f"forget --source {SOURCE} --dry-run")
    (folder := root / "tables" / "clips").rename(root.parent / "moved")
    folder.symlink_to(root.parent / "moved")
    assert call(root, f"forget --source {SOURCE} --dry-run") == calm
    code, out, _ = call(root, f"forget --source {SOURCE}")
    assert (code, json.loads(out)["deleted"]["objects"]) == (0, 1)
    assert not list((root.parent / "moved").rglob("*.parquet"))
