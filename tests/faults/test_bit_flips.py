"""A record of other bytes than were written is named, or changes no answer."""

import random
from pathlib import Path

import pytest

from tests.support.toy_runs import execute, toy_document, write_videos
from videoar import api
from videoar.core.errors import VideoARError
from videoar.storage.store import open_store

pytestmark = pytest.mark.slow
ADVISORY = ("/progress/", "leases/", "claims/", "report.html", "/data/", "objects/", "mlflow")


def answers(url, run_id):
    """Return what the reading verbs say, by verb; of an error its text."""
    try:
        store = open_store(url)
    except VideoARError as error:
        return {"open": f"error: {error}"}
    calls = {
        "ls": lambda: [(run.run_id, run.status, run.outputs, run.error) for run in api.ls(store)],
        "status": lambda: api.status(store, run_id).model_dump(),
        "refs": lambda: [api.refs(store), *(api.refs(store, n) for n in store.refs.names())],
        "quarantine": lambda: api.quarantine(store, run_id),
        "logs": lambda: api.logs(store, run_id),
        "snapshots": lambda: [(s.id, s.digest, s.rows, s.commit) for s in store.snapshots()],
        **{
            f"{verb} {name}": lambda verb=verb, name=name: getattr(api, verb)(store, name)
            for name in ("big", "few", "model", "pinned")
            for verb in ("show", "lineage")
        },
    }
    result = {}
    for name, call in calls.items():
        try:
            result[name] = repr(call())
        except VideoARError as error:
            result[name] = f"error: {error}"
    return result


@pytest.mark.fault(13, "single bits of records turned over")
@pytest.mark.parametrize("flips", [60, pytest.param(460, marks=pytest.mark.soak)])
def test_flipped_bit_of_a_record_is_named_or_changes_nothing(tmp_path: Path, flips):
    url = (tmp_path / "store").as_uri()
    store = open_store(url)
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4", "bad.mp4")
    run = execute(store, toy_document(videos))
    api.freeze(store, run.outputs["big"], "pinned")
    calm = answers(url, run.run_id)
    assert not any("error" in answer[:6] for answer in calm.values())
    infos = [i for i in store.objects.list("") if not any(part in i.key for part in ADVISORY)]
    keys = [info.key for info in infos if info.key.endswith(".json")]
    chance, silent, named = random.Random(0), [], 0
    for _ in range(flips):
        key = chance.choice(keys)
        path = tmp_path / "store" / key
        data = path.read_bytes()
        place, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        for verb, answer in answers(url, run.run_id).items():
            if key in answer and answer != calm.get(verb):
                named += 1
            elif answer != calm.get(verb):
                silent.append((key, place, bit, verb, data[max(0, place - 20) : place + 20]))
        path.write_bytes(data)
    print(f"{flips} flips of {len(keys)} records: {named} answers name the record")
    assert not silent, silent[:5]
    assert named > flips // 2
    assert answers(url, run.run_id) == calm
