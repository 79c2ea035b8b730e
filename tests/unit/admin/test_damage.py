"""`doctor --verify` finds what is lost or damaged, and `--fix` makes the next run make it again."""

from pathlib import Path

import pytest

from tests.support.child_process import exit_code, preload
from tests.support.clip_rows import clip_row, clips_of
from tests.support.small_pipeline import command, environment, in_this_process
from tests.support.toy_runs import execute, execute_at, resume, toy_document
from videoar import api
from videoar.admin.damage import damage
from videoar.admin.doctor import file_system
from videoar.core.errors import DamagedError
from videoar.records.run_record import load_run
from videoar.storage import layout
from videoar.storage.store import open_store

preload(__name__)

DRAWN = {"draw": {"stage": "draw", "from": {"model": "model"}}}


def resume_at(url: str, run_id: str) -> None:
    resume(open_store(url), run_id)


def flip(store, key: str) -> None:
    data = store.objects.get(key)
    store.objects.put(key, bytes([data[0] ^ 1]) + data[1:])


def key_of(store, what: str) -> str:
    """Return the key of the data file of a stage, or of an object that its row names."""
    stage, _, column = what.partition(" ")
    snapshot = store.snapshot(api.show(store, stage)["snapshot"])
    if not column:
        return snapshot.files[0].key
    row = snapshot.table().to_pylist()[0]
    return row["files"][0]["key"] if column == "files" else row[column]


@pytest.mark.fault(
    13, "a data file, an object that a row names, or a model file is lost or damaged"
)
@pytest.mark.parametrize("how", ["lost", "damaged"])
@pytest.mark.parametrize("what", ["big", "model", "draw video_key", "model files"])
def test_damage_is_found_and_mended_by_the_next_run(store, videos, what, how):
    document = toy_document(videos, **DRAWN)
    run = execute(store, document)
    assert [check.ok for check in damage(store)] == [True]
    key = key_of(store, what)
    if how == "lost":
        store.objects.delete(key)
    else:
        flip(store, key)
    *found, summary = damage(store)
    assert [check.name for check in found] == [f"damage: {key}"]
    assert what.partition(" ")[0] + ":" in found[0].detail
    assert not summary.ok
    assert not found[0].ok
    assert all(check.ok for check in damage(store, fix=True))
    again = execute(store, document)
    for name in ("big", "few", "draw"):
        assert again.outputs[name] == run.outputs[name]
    assert again.stage(what.partition(" ")[0]).status == "SUCCEEDED"  # not CACHED
    assert [check.ok for check in damage(store)] == [True]


def test_damaged_records_are_listed_and_derived_ones_removed(store, videos):
    document = toy_document(videos)
    run = execute(store, document)
    keys = [info.key for info in store.objects.list("")]
    derived = next(k for k in keys if k.startswith("stages/big/"))
    flipped = next(k for k in keys if k.startswith("stages/model/"))
    text = store.objects.get(flipped)
    store.objects.put(flipped, text.replace(b'"rows_out":1', b'"rows_out":2'))
    commit = store.snapshot(run.outputs["few"]).commit
    kept = [layout.run_key(run.run_id), layout.log_version_key("few", commit.version)]
    for key in (derived, *kept):
        store.objects.put(key, b"{")
    assert api.status(store, run.run_id).status == "DAMAGED"
    with pytest.raises(DamagedError, match=r"run\.json: damaged: no JSON object"):
        load_run(store, run.run_id)
    with pytest.raises(DamagedError, match="damaged: no version of a Delta log"):
        list(store.snapshots())
    found = {check.name: check for check in damage(store, fix=True)}
    for key in (derived, flipped):
        assert found[f"damage: {key}"].ok
        assert store.objects.size(key) is None
    for key in kept:
        assert not found[f"damage: {key}"].ok
        assert "restore it from a copy" in found[f"damage: {key}"].detail
        assert store.objects.get(key) == b"{"


@pytest.mark.fault(13, "a checkpoint of a Delta log is cut or deleted")
@pytest.mark.parametrize("mutate", [lambda data: data[: len(data) // 2], None])
def test_damaged_checkpoint_of_a_log_is_named_as_derived_and_removed(store, mutate):
    reference = dict.fromkeys(("video_key", "video_sha256", "video_size_bytes"))
    for name in "abcdefghijkl":
        snapshot = clips_of(store, [clip_row(name, **reference)])
    (key,) = (i.key for i in store.objects.list("tables/") if layout.is_log_checkpoint(i.key))
    last = layout.last_checkpoint_key("clips")
    if mutate is None:
        store.objects.delete(key)
    else:
        store.objects.put(key, mutate(store.objects.get(key)))
    named = last if mutate is None else key
    with pytest.raises(DamagedError, match=rf"{named}: damaged: .*derived: .*doctor --verify"):
        clips_of(store, [clip_row("z", **reference)])
    assert store.snapshot(snapshot.id).rows == 1  # from the log
    assert {f"damage: {named}"} < {c.name for c in damage(store, fix=True)}
    assert [check.ok for check in damage(store)] == [True]
    assert clips_of(store, [clip_row("z", **reference)]).rows == 1
    assert store.snapshot(snapshot.id).rows == 1


@pytest.mark.slow
def test_objects_of_work_that_was_not_committed_are_looked_at(store, videos):
    document = toy_document(videos, **DRAWN)
    code = exit_code(execute_at, store.url, document, "killed", VIDEOAR_CRASH_AT="reduce-written")
    assert code == -9
    assert exit_code(resume_at, store.url, "killed", VIDEOAR_CRASH_AT="before-commit") == -9
    lost = {info.key for info in store.objects.list("tables/few/data/")}
    for key in lost:
        store.objects.delete(key)
    assert [check.ok for check in damage(store)] == [True]  # it is made again without help
    assert resume(store, "killed").status == "SUCCEEDED"
    assert lost <= {info.key for info in store.objects.list("tables/few/data/")}


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/data/a/b", "nfs4"), ("/data", "nfs4"), ("/database", "ext4"), ("/over", "tmpfs"),
        ("/my data/x", "fuse.s3fs"), ("/", "ext4"),
    ],
)  # fmt: skip
def test_file_system_of_a_folder_is_that_of_its_mount(tmp_path: Path, folder, expected):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nhost:/x /data nfs4 rw 0 0\ns3fs /my\\040data fuse.s3fs rw 0 0\n"
        "a /over ext4 rw 0 0\nb /over tmpfs rw 0 0\n"
    )
    assert file_system(Path(folder), mounts) == expected
    assert file_system(Path(folder), tmp_path / "none") == "unknown"


@pytest.mark.fault(13, "an entry of a log is lost, or the snapshot that a ref points at")
@pytest.mark.parametrize(
    ("key", "verbs"),
    [
        ("refs/champion/00000000.json", ["refs champion", "rollback champion"]),
        ("runs/r1/events/00000004.json", ["status r1", "logs r1", "resume r1"]),
        ("decisions/00000000.json", ["promote r1/model"]),
        ("ref champion", ["show champion", "lineage champion", "promote champion"]),
    ],
)
def test_what_later_records_tell_of_is_named(store, videos, key, verbs):
    execute(store, toy_document(videos), "r1")
    execute(store, toy_document(videos, model={"steps": 2}), "r2")
    first = store.refs.history("champion")[0]["snapshot"]
    store.refs.advance("champion", first, expect=1, evidence={})
    if key.startswith("ref "):
        head = "model:" + "0" * 16
        store.refs.advance("champion", head, expect=2, evidence={})
    else:
        store.objects.delete(layout.folded_events_key("r1"))
        store.objects.delete(key)
    *found, _ = damage(store, fix=True)
    assert [check.name for check in found] == [f"damage: {key}"]
    for verb in verbs:
        code, out, err = in_this_process(command(*verb.split(), store=store.url), environment())
        assert (code, key in out + err) == (7, True), (verb, out, err)
