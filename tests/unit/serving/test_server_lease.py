"""One server per queue."""

import pytest
from typer.testing import CliRunner

from tests.support.published_model import published
from videoar.cli.app import app
from videoar.core.errors import LeaseHeldError
from videoar.serving.server_lease import ServerLease
from videoar.storage.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store((tmp_path / "store").as_uri())


class Clock:
    """Time that passes only while someone sleeps; `during` runs in every sleep."""

    def __init__(self, during=lambda: None):
        self.now, self.during = 0.0, during

    def sleep(self, seconds):
        self.now += seconds
        self.during()


def lease(store, clock):
    return ServerLease(store, ttl_s=10, clock=lambda: clock.now, sleep=clock.sleep)


def test_second_server_is_rejected_while_the_first_one_beats(store):
    first = lease(store, Clock())
    assert first.acquire() == 0
    clock = Clock(first.beat)
    with pytest.raises(LeaseHeldError, match="server 0 on"):
        lease(store, clock).acquire()
    assert clock.now < 10


def test_killed_server_is_replaced_after_its_time_to_live(store):
    lease(store, Clock()).acquire()
    clock = Clock()
    assert lease(store, clock).acquire() == 1
    assert clock.now == pytest.approx(10)


def test_server_that_was_released_is_replaced_at_once(store):
    first, clock = lease(store, Clock()), Clock()
    first.acquire()
    first.release()
    assert lease(store, clock).acquire() == 1
    assert clock.now == 0


def test_only_one_of_two_waiting_servers_takes_over(store):
    lease(store, Clock()).acquire()
    second, taken = lease(store, Clock()), []
    clock = Clock(lambda: taken or taken.append(second.acquire()))
    with pytest.raises(LeaseHeldError, match="server 1 on"):
        lease(store, clock).acquire()
    assert taken == [1]


def test_suspended_server_notices_that_another_one_took_over(store):
    first = lease(store, Clock())
    first.acquire()
    lease(store, Clock()).acquire()
    with pytest.raises(LeaseHeldError, match="server 1 on"):
        first.beat()


def test_lease_is_kept_in_a_thread_until_it_is_lost(store):
    first, lost = ServerLease(store, ttl_s=0.05), []
    first.acquire()
    first.keep(lost.append)
    with pytest.raises(LeaseHeldError):
        ServerLease(store, ttl_s=0.05).acquire()
    store.ledger.create("serving/servers/00000001.json", {"host": "other", "ttl_s": 1})
    first._thread.join(5)
    assert [error.what for error in lost] == ["server 1 on other works on its jobs"]


@pytest.mark.slow
def test_command_beside_a_running_server_is_rejected_before_it_loads_a_model(store):
    store.refs.advance("champion", published(store).id, expect=None, evidence={})
    first = ServerLease(store)
    first.acquire()
    first.keep(lambda error: None)
    options = ["--store", store.url, "--target", "inline", "serve", "--model", "champion"]
    done = CliRunner().invoke(app, options)
    first.release()
    assert isinstance(done.exception, LeaseHeldError)
    assert done.exception.exit_code == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--model", "nosuch"], "no such"),
        (["--model", "champion", "--model", "champion"], "is given twice"),
        (["--model", "champion", "--keys", "/nosuch"], "cannot be read"),
        (["--model", "champion", "--target", "ray://x"], "Ray Client"),
        (["--model", "champion", "--port", "0"], "port"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_are_checked_before_anything_starts(store, options, what):
    if "nosuch" not in options:
        store.refs.advance("champion", published(store).id, expect=None, evidence={})
    done = CliRunner().invoke(app, ["--store", store.url, "serve", *options])
    assert done.exit_code != 0
    assert what in str(done.exception) + done.output
    assert list(store.objects.list("serving/")) == []
