"""Objects that are cut, emptied, swapped or overwritten, by every verb that reads.

An answer is the undisturbed one, or says which object is damaged or missing. `make soak` runs it.
"""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.support.small_pipeline import command, environment, in_a_process, in_this_process
from tests.support.toy_runs import execute, toy_document, write_videos
from videoar import api
from videoar.storage.store import open_store

MUTATIONS = {
    "cut": lambda data, other: data[: len(data) // 2],
    "empty": lambda data, other: b"",
    "object": lambda data, other: b"{}",
    "list": lambda data, other: b"[]",
    "other": lambda data, other: other,
    "noise": lambda data, other: os.urandom(len(data)),
    "bit": lambda data, other: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:] if data[9:] else b"?",
    "gone": None,
}
VERBS = [
    "ls", "status {run}", "logs {run}", "show big", "show model", "diff big few", "refs",
    "refs pinned", "lineage big", "lineage model --up", "lineage big --down", "quarantine ls {run}",
    "explain {run} big", "schedule ls", "plan {pipeline}", "gate {run}", "validate big",
    "report {run} --out {out}", "report --index --out {out}",
    "lineage {run} --format openlineage",
]  # fmt: skip
ADVISORY = ("/progress/", "leases/", "claims/", "report.html", "mlflow", ".tmp/", "events.json")
"""What is rewritten, or made again, without a word."""
UNNAMED = ("refs/", "tables/", "decisions/")
"""Without its newest entry a ref or log is what it was before: only a copy tells."""


def answer(verb, places, run):
    call = command(*verb.format(**places).split(), store=places["store"])
    code, out, err = run(call, environment())
    return code, out, err


@pytest.mark.soak
@pytest.mark.fault(13, "records, logs and files cut, emptied, swapped, overwritten or deleted")
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("count", "run"), [(400, in_this_process), (40, in_a_process)], ids=["in-process", "processes"]
)
def test_mutated_object_is_named_or_changes_nothing(tmp_path: Path, count, run):
    store = open_store((tmp_path / "store").as_uri())
    videos = write_videos(tmp_path / "videos", "a.mp4", "b.mp4", "bad.mp4")
    document = toy_document(videos)
    done = execute(store, document)
    api.freeze(store, done.outputs["big"], "pinned")
    quick = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"
    places = {
        "store": store.url, "run": done.run_id, "out": str(tmp_path / "page.html"),
        "pipeline": str(quick),
    }  # fmt: skip
    calm = {verb: answer(verb, places, run) for verb in VERBS}
    keys = [
        info.key for info in store.objects.list("")
        if not any(part in info.key for part in ADVISORY)
    ]  # fmt: skip
    shutil.copytree(tmp_path / "store", tmp_path / "saved")
    chance, bad, outcomes = random.Random(count), [], Counter()
    for number in range(count):
        # every kind of key and of mutation in turn
        key, (name, change) = keys[number % len(keys)], chance.choice([*MUTATIONS.items()])
        if change is None and key.startswith(UNNAMED):
            continue
        path = tmp_path / "store" / key
        data = path.read_bytes()
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(data, (tmp_path / "store" / chance.choice(keys)).read_bytes()))
        for verb in VERBS if run is in_this_process else chance.sample(VERBS, 1):
            code, out, err = answer(verb, places, run)
            folder = key.rpartition("/_delta_log/")[0] or key  # delta-rs names the table
            says = any(name in out + err for name in (key, path.name, folder))
            if "Traceback" in err or code == 1:
                kind = "untyped"
            elif (code, out) == calm[verb][:2]:
                kind = "equal"
            elif says:
                kind = "named"
            else:
                kind = "silent" if code == 0 else "unnamed"
            outcomes[kind] += 1
            if kind in {"untyped", "silent", "unnamed"}:
                bad.append((kind, name, key, verb, code, err[-300:] or out[:300]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    print(f"{count} mutations of {len(keys)} objects, {len(VERBS)} verbs: {dict(outcomes)}")
    assert not bad, (len(bad), bad[:3])
