"""How the client of a bucket bears a server that fails: a real proxy before an S3 server."""

import logging
import threading
import time

import pytest

from tests.support.committed_rows import commit_source
from tests.support.s3_proxy import s3_proxy
from tests.support.toy_runs import execute, resume, toy_document, write_videos
from videoar.core.errors import LeaseHeldError, StorageError, TransientStorageError
from videoar.core.settings import settings
from videoar.storage.conformance import race
from videoar.storage.lease import Lease
from videoar.storage.object_store import MULTIPART_BYTES
from videoar.storage.s3_store import S3ObjectStore
from videoar.storage.store import Store, open_store


@pytest.fixture
def proxy(moto_server):
    with s3_proxy(moto_server.endpoint) as running:
        yield running


@pytest.fixture
def connect(moto_server, proxy):
    """Open one more client of the same empty store, through the proxy or directly."""
    bucket, _, prefix = moto_server.new_url().removeprefix("s3://").partition("/")

    def open_client(wait_s=20.0, endpoint=""):
        return S3ObjectStore(bucket, prefix, endpoint or proxy.endpoint, wait_s)

    return open_client


LOST = pytest.mark.parametrize("fault", ["lost", "then 412", "then 503", "then 500", "twice"])


@pytest.mark.fault(8, "a write whose answer is lost, replaced by 412 or 5xx, or sent twice")
@LOST
def test_write_that_was_applied_is_known_as_own(connect, proxy, moto_server, fault):
    objects, direct = connect(), connect(endpoint=moto_server.endpoint)
    direct.put("theirs", b"same", if_absent=True)
    proxy.fail_first(fault, "PUT")
    assert objects.put("mine", b"same", if_absent=True)
    assert not objects.put("theirs", b"same", if_absent=True)  # by chance the same bytes
    assert direct.get("mine") == b"same"
    proxy.fail_first(fault, "PUT", "race-")
    assert race(objects, rounds=2, writers=4) == [1, 1]


@pytest.mark.slow
@pytest.mark.fault(8, "log, ref and lease through a proxy that loses or repeats each write")
@LOST
def test_logs_refs_and_leases_grow_by_what_was_written(connect, proxy, fault):
    store = Store(connect())
    proxy.fail_first(fault, "PUT")
    assert [store.ledger.append("log", {"same": True}) for _ in range(5)] == list(range(5))
    assert list(store.ledger.entries("log")) == [{"same": True}] * 5
    assert store.refs.advance("champion", "models:a", expect=None, evidence={}) == 0
    assert store.refs.advance("champion", "models:b", expect=0, evidence={}) == 1
    assert [record["seq"] for record in store.refs.history("champion")] == [0, 1]
    lease = Lease(store, "serving", "one", ttl_s=60.0)
    assert lease.acquire() == 0
    assert lease.claim("right", lambda _: True) == 0
    with pytest.raises(LeaseHeldError):
        Lease(store, "serving", "two", ttl_s=60.0).adopt(-1)
    paths = (path for method, path in proxy.requests if method == "PUT")
    puts = [path for path in paths if "/doctor/race-" not in path]  # its writers race
    assert len(puts) <= 2 * len(set(puts))


@pytest.mark.fault(8, "an answer 412 to a write that was not applied")
def test_write_refused_without_an_object_is_an_error_at_once(connect, proxy):
    store = Store(connect())
    store.ledger.append("log", {})
    proxy.requests.clear()
    proxy.plan = lambda request: "412" if request.command == "PUT" else "pass"
    with pytest.raises(TransientStorageError, match=r"log/.*1.json: rejected because it exists"):
        store.ledger.append("log", {})
    assert [method for method, _ in proxy.requests].count("PUT") == 1


@pytest.mark.slow
@pytest.mark.fault(8, "the completion of a multipart upload whose answer is lost")
@pytest.mark.parametrize("fault", ["lost", "twice", "then 500"])
def test_upload_whose_completion_was_applied_succeeds(connect, proxy, tmp_path, fault):
    objects, path = connect(), tmp_path / "big"
    path.write_bytes(b"x" * (MULTIPART_BYTES + 1))
    proxy.fail_first(fault, "POST", "uploadId")
    objects.put_file("big", path)
    assert objects.size("big") == MULTIPART_BYTES + 1


@pytest.mark.slow
@pytest.mark.fault(7, "5, 50 and 100 % of 503 or SlowDown, silence, refused connections")
@pytest.mark.parametrize(
    ("fault", "share"), [("503", 0.05), ("503", 0.5), ("503", 1), ("slow", 0.5), ("hang", 1)]
)
def test_outage_shorter_than_the_budget_is_survived(connect, proxy, fault, share):
    store = Store(connect())
    proxy.fail_for(2.0, fault, share)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < 2.5:
        assert store.ledger.append("log", {}) == count
        count += 1
    assert len(list(store.objects.list("log/"))) == count
    assert store.objects.unavailable_s == 0


@pytest.mark.fault(7, "refused connections, then none for longer than the budget")
def test_connection_refused_is_waited_for_and_then_an_error(connect, proxy, caplog):
    objects = connect(wait_s=6.0)
    objects.put("a", b"1")
    proxy.close()
    threading.Timer(3, proxy.open).start()
    with caplog.at_level(logging.WARNING, "videoar"):
        assert objects.get("a") == b"1"
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("videoar")]
    assert len(lines) == 2, lines
    assert f"{proxy.endpoint}/" in lines[0]
    assert "does not answer: waiting (" in lines[0]
    assert "s of 6 s; EndpointConnectionError)" in lines[0]
    assert "answers again, after" in lines[1]
    proxy.close()
    hasty = connect(wait_s=0.5)
    with pytest.raises(TransientStorageError, match=f"{proxy.endpoint}: the S3 endpoint does not"):
        hasty.get("a")
    assert hasty.unavailable_s > 0.5
    # the budget is spent: what follows has one attempt each
    began = time.monotonic()
    with pytest.raises(TransientStorageError):
        hasty.put("a", b"2")
    assert time.monotonic() - began < 0.4
    proxy.open()
    assert hasty.get("a") == b"1"
    assert hasty.unavailable_s == 0


@pytest.mark.fault(8, "commits through a proxy that loses or repeats each write")
@LOST
def test_commit_whose_writes_were_applied_is_committed_once(connect, proxy, fault):
    store = Store(connect())
    for name in ("a", "b"):
        proxy.fail_first(fault, "PUT")
        commit_source(store, name)
    assert [snapshot.commit.provenance.stage for snapshot in store.snapshots()] == ["a", "b"]
    versions = list(store.objects.list("tables/videos/_delta_log/"))
    assert len([info for info in versions if info.key.endswith(".json")]) == 3  # with the table


@pytest.mark.fault(7, "commits during 503, half of the answers and all")
@pytest.mark.parametrize("share", [0.5, 1])
def test_commit_waits_for_the_end_of_an_outage(connect, proxy, share):
    store = Store(connect())
    commit_source(store, "a")
    proxy.fail_for(3.0, "503", share)
    commit_source(store, "b")
    assert [snapshot.commit.provenance.stage for snapshot in store.snapshots()] == ["a", "b"]


@pytest.mark.fault(7, "an access that is denied")
def test_final_error_is_raised_at_once(connect, proxy):
    objects = connect()
    proxy.plan = lambda _: "403"
    for call in (
        lambda: objects.get("a"),
        lambda: objects.size("a"),
        lambda: objects.put("a", b""),
    ):
        before = len(proxy.requests)
        with pytest.raises(StorageError, match="access denied") as caught:
            call()
        assert not caught.value.retryable
        assert len(proxy.requests) == before + 1


@pytest.mark.fault(7, "an access to the Delta log that is denied")
@pytest.mark.parametrize("methods", [{"GET", "PUT"}, {"PUT"}])
def test_final_error_of_delta_is_named(connect, proxy, methods):
    store = Store(connect())
    commit_source(store, "a")
    proxy.plan = lambda r: "403" if "_delta_log" in r.path and r.command in methods else "pass"
    with pytest.raises(StorageError, match="access denied") as caught:
        commit_source(store, "b")
    assert not caught.value.retryable


@pytest.fixture
def run(moto_server, proxy, monkeypatch, tmp_path):
    """Run the toy pipeline on a new store, through the proxy with a budget in seconds."""
    url, document = moto_server.new_url(), toy_document(write_videos(tmp_path / "v", *"abcd"))

    def run_it(wait_s, how=lambda store: execute(store, document, "run")):
        monkeypatch.setenv("VIDEOAR_STORE_WAIT_S", str(wait_s))
        settings.cache_clear()
        return how(open_store(url, endpoint=proxy.endpoint))

    run_it.document, run_it.store = document, open_store(f"memory://{tmp_path.name}")
    run_it.undisturbed = snapshots(execute(run_it.store, document, "run"))
    yield run_it
    settings.cache_clear()


def snapshots(run):
    assert run.status == "SUCCEEDED"
    return {stage.name: stage.snapshot for stage in run.stages}


class Outage:
    """Answers 503 from the first write of a path with `part` on, for some seconds."""

    def __init__(self, part, seconds):
        self.part, self.seconds, self.end = part, seconds, 0.0

    def __call__(self, request):
        if not self.end and request.command == "PUT" and self.part in request.path:
            self.end = time.monotonic() + self.seconds
        return "503" if time.monotonic() < self.end else "pass"


SELDOM = [pytest.param(part, marks=pytest.mark.soak) for part in ("/shards/", "/checkpoints/")]
PARTS = ["/events/", "_delta_log", *SELDOM]


@pytest.mark.slow
@pytest.mark.fault(7, "an outage in the middle of a run")
@pytest.mark.parametrize("part", PARTS)
def test_run_goes_on_after_an_outage(run, proxy, part):
    proxy.plan = Outage(part, 4.0)
    assert snapshots(run(30)) == run.undisturbed
    assert proxy.plan.end


@pytest.mark.slow
@pytest.mark.fault(7, "an outage in the middle of a run that is longer than the budget")
@pytest.mark.parametrize("part", PARTS)
def test_run_ends_with_code_7_and_resumes_to_the_same_digests(run, proxy, part):
    proxy.plan = Outage(part, 1e9)
    began = time.monotonic()
    with pytest.raises(TransientStorageError) as caught:
        run(1)
    assert caught.value.exit_code == 7
    assert time.monotonic() - began < 45
    proxy.plan = lambda _: "pass"
    assert snapshots(run(30, lambda store: resume(store, "run"))) == run.undisturbed


@pytest.mark.slow
@pytest.mark.fault(8, "a run whose writes are all sent twice, or lose their answer")
@pytest.mark.parametrize("fault", ["twice", "lost"])
def test_run_whose_answers_are_lost_writes_what_an_undisturbed_one_does(run, proxy, fault):
    proxy.fail_first(fault, "PUT")
    kept = []

    def execute_and_list(store):
        result = execute(store, run.document, "run")
        kept.extend(info.key for info in store.objects.list("runs/run/events/"))
        return result

    assert snapshots(run(30, execute_and_list)) == run.undisturbed
    assert len(kept) == len(list(run.store.objects.list("runs/run/events/")))
