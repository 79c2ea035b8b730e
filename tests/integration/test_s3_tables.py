"""Commits under races and kills, on a file system and on a real S3 server.

The invariant behind every test: each version of the Delta table lists exactly the files of the
snapshot that its commit names, so that no race and no killed writer is ever visible.
"""

import json
import signal
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable

from tests.support.commit_writer import commit_numbers, start_writer
from tests.support.s3_server import REAL, SERVERS
from videoar.storage import open_store
from videoar.storage.layout import PROBE_PASSED_KEY


@pytest.fixture(params=["file", *REAL])
def place(request, tmp_path):
    if request.param == "file":
        return tmp_path.as_uri(), ""
    return new_store(request.getfixturevalue(SERVERS[request.param]))


def new_store(server):
    """Return the address of a store that need not be probed: SeaweedFS takes 15 s for it."""
    url = server.new_url()
    open_store(url, endpoint=server.endpoint).objects.put(PROBE_PASSED_KEY, b"")
    return url, server.endpoint


def exit_code(child):
    child.join(120)
    return child.exitcode


def check_log(store):
    """Compare every Delta version with the commit it carries; return the commits."""
    objects = store.objects
    where = objects.location("tables/videos")
    commits = []
    for info in objects.list("tables/videos/_delta_log/"):
        if not info.key.endswith(".json"):
            continue
        version = int(Path(info.key).stem)
        lines = [json.loads(line) for line in objects.get(info.key).splitlines()]
        commit = next(line["commitInfo"] for line in lines if "commitInfo" in line).get("videoar")
        if commit is None:
            assert version == 0
            continue
        commit = json.loads(commit)
        table = DeltaTable(where, version=version, storage_options=objects.options())
        listed = sorted(Path(uri).stem for uri in table.file_uris())
        assert listed == sorted(file["sha256"] for file in commit["files"])
        assert commit["version"] == version
        commits.append(commit)
    return commits


@pytest.mark.slow
def test_commits_of_many_processes_are_all_kept(place):
    url, endpoint = place
    open_store(url, endpoint=endpoint)
    writers = [
        start_writer(url, endpoint, range(5 * writer, 5 * writer + 5)) for writer in range(4)
    ]
    assert [exit_code(writer) for writer in writers] == [0] * 4
    store = open_store(url, endpoint=endpoint)
    commits = check_log(store)
    assert sorted(commit["metrics"]["number"] for commit in commits) == list(range(20))
    assert [commit["version"] for commit in commits] == list(range(1, 21))
    dataset = store.dataset("videos", "sources@1")
    for number in range(20):
        uris = dataset.find(f"f{number}").table(["uri"], verify=True)["uri"].to_pylist()
        assert uris == [f"own {number}", "shared"]


@pytest.mark.slow
def test_commits_of_equal_fingerprint_racing_give_one(place):
    url, endpoint = place
    open_store(url, endpoint=endpoint)
    writers = [start_writer(url, endpoint, [0]) for _ in range(4)]
    assert [exit_code(writer) for writer in writers] == [0] * 4
    assert len(check_log(open_store(url, endpoint=endpoint))) == 1


@pytest.mark.parametrize("name", REAL)
def test_equal_rows_give_equal_digests_on_s3_and_disk(request, name, tmp_path):
    remote = new_store(request.getfixturevalue(SERVERS[name]))
    snapshots = []
    for url, endpoint in ((tmp_path.as_uri(), ""), remote):
        commit_numbers(url, endpoint, range(2))
        store = open_store(url, endpoint=endpoint)
        snapshots.append(store.dataset("videos", "sources@1").find("f1"))
    local, remote = snapshots
    assert local.commit == remote.commit
    assert local.table(verify=True).equals(remote.table(verify=True))
    assert local.table(["name"]).equals(remote.table(["name"]))
    for file in local.files:
        assert local.objects.get(file.key) == remote.objects.get(file.key)


POINTS = [
    "put.before_publish",
    "write.before_put",
    "write.after_put",
    "commit.before_log",
    "commit.after_log",
    "commit.between_records",
    "commit.after_records",
]


@pytest.mark.fault(5, "SIGKILL at each step of a commit on S3")
@pytest.mark.slow
def test_commit_killed_at_any_step_leaves_old_or_new_state(tmp_path):
    undisturbed = (tmp_path / "undisturbed").as_uri()
    commit_numbers(undisturbed, "", [0])
    expected = open_store(undisturbed).dataset("videos", "sources@1").find("f0")
    children = {}
    for point in POINTS:
        url = (tmp_path / point).as_uri()
        children[url] = start_writer(url, "", [0], VIDEOAR_CRASH_AT=point), point
    for url, (child, point) in children.items():
        assert exit_code(child) == -signal.SIGKILL, point
        dataset = open_store(url).dataset("videos", "sources@1")
        after = dataset.find("f0")
        reached = POINTS.index(point) >= POINTS.index("commit.after_log")
        assert (after is not None) == reached, point
        commit_numbers(url, "", [0])
        again = dataset.find("f0")
        assert (again.id, point) == (expected.id, point), (again.files, expected.files)
        assert again.table(verify=True).equals(expected.table())
        assert open_store(url).snapshot(expected.id).commit == again.commit
        assert len(check_log(open_store(url))) == 1


@pytest.mark.slow
def test_commits_killed_at_random_are_consistent(place):
    url, endpoint = place
    open_store(url, endpoint=endpoint)
    for delay in (0.1, 0.25, 0.4):
        writer = start_writer(url, endpoint, range(200))
        end = time.monotonic() + 60
        store = open_store(url, endpoint=endpoint)
        known = len(list(store.ledger.list("commits/")))
        while len(list(store.ledger.list("commits/"))) <= known and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(delay)
        writer.kill()
        assert exit_code(writer) == -signal.SIGKILL
        done = len(check_log(store))
        assert 0 < done < 200
    commit_numbers(url, endpoint, range(done + 1))
    numbers = [commit["metrics"]["number"] for commit in check_log(store)]
    assert numbers == list(range(len(numbers)))
