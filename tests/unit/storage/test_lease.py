"""One owner per lease, and the rights that hang on it."""

import os
import subprocess
import sys

import pytest

from tests.support.child_process import exit_code
from videoar.core.errors import LeaseHeldError
from videoar.core.processes import this_process
from videoar.storage.layout import lease_log, log_entry_key
from videoar.storage.lease import HolderWatch, Lease
from videoar.storage.store import open_store
from videoar.testing.clocks import SimulatedTime as Time

ELSEWHERE = this_process().model_copy(update={"host": "other", "machine": "other"})


def lease(store, time, name="a", owner="me"):
    return Lease(store, name, owner, ttl_s=10, clock=time.clock())


def test_second_owner_is_rejected_while_the_first_one_beats(store):
    first = lease(store, Time())
    assert first.acquire() == 0
    clock = Time(during=first.renew)
    with pytest.raises(LeaseHeldError, match="lease a: is held by me on"):
        lease(store, clock).acquire()
    assert clock.seconds < 10


def test_owner_that_stopped_is_replaced_after_its_time_to_live(store):
    lease(store, Time()).acquire()
    clock = Time()
    assert lease(store, clock).acquire() == 1
    assert clock.seconds == pytest.approx(10)


@pytest.mark.fault(7, "an outage longer than a lease")
def test_owner_that_could_not_renew_during_an_outage_is_not_replaced(store):
    first, outage = lease(store, Time()), [30.0]
    first.acquire()
    clock = Time()
    watch = HolderWatch(store, "a", 0, clock.clock())
    find = store.objects.find

    def find_late(key):
        clock.seconds += outage.pop() if outage else 0
        return find(key)

    store.objects.find = find_late
    assert not watch.has_ended()
    clock.seconds += 9
    assert not watch.has_ended()
    clock.seconds += 1
    assert watch.has_ended()


def take(url):
    lease(open_store(url), Time()).acquire()
    os.kill(os.getpid(), 9)


@pytest.mark.slow
def test_owner_whose_process_is_known_to_be_gone_is_replaced_at_once(store):
    assert exit_code(take, store.url) == -9
    clock = Time()
    assert lease(store, clock).acquire() == 1
    assert clock.seconds == 0


def test_owner_of_another_machine_is_never_taken_for_gone(store, monkeypatch):
    monkeypatch.setattr("videoar.storage.lease.this_process", lambda: ELSEWHERE)
    lease(store, Time()).acquire()
    clock = Time()
    lease(store, clock).acquire()
    assert clock.seconds == pytest.approx(10)


def test_process_of_another_pid_namespace_is_not_known_to_be_gone():
    code = "import sys; from videoar.core.processes import this_process;"
    code += "sys.stdout.write(this_process().model_dump_json())"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    ended = type(ELSEWHERE).model_validate_json(found.stdout)
    assert ended.is_gone()
    for unknown in ({"machine": "same host name, other namespace"}, {"machine": ""}, {"born": ""}):
        assert not ended.model_copy(update=unknown).is_gone()
    assert not this_process().is_gone()


def test_owner_that_released_is_replaced_at_once(store):
    first, clock = lease(store, Time()), Time()
    first.acquire()
    first.release()
    assert lease(store, clock).acquire() == 1
    assert clock.seconds == 0


def test_owner_that_is_interrupted_while_its_beats_begin_can_release(store, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("threading.Thread.start", interrupted)
    first = lease(store, Time())
    first.acquire()
    with pytest.raises(KeyboardInterrupt):
        first.keep(pytest.fail)
    first.release()
    assert lease(store, Time(), owner="you").acquire() == 1


def test_only_one_of_two_that_wait_takes_over(store):
    lease(store, Time()).acquire()
    second, taken = lease(store, Time(), owner="second"), []
    clock = Time(during=lambda: taken or taken.append(second.acquire()))
    with pytest.raises(LeaseHeldError, match="held by second"):
        lease(store, clock).acquire()
    assert taken == [1]


def test_suspended_owner_notices_that_another_one_took_over(store):
    clock = Time()
    first = lease(store, clock)
    first.acquire()
    lease(store, Time(), owner="second").acquire()
    first.require_held()  # its own heartbeat is young: no request
    clock.seconds += 6
    for look in (first.require_held, first.renew):
        with pytest.raises(LeaseHeldError, match="held by second"):
            look()


def test_lease_is_kept_in_a_thread_until_it_is_lost(store):
    first, lost, heartbeats = Lease(store, "a", "first", ttl_s=0.05), [], []
    first.acquire()
    first.keep(lost.append, lambda: heartbeats.append(1))
    with pytest.raises(LeaseHeldError, match="held by first"):
        Lease(store, "a", "second", ttl_s=0.05).acquire()
    store.ledger.create(log_entry_key(lease_log("a"), 1), {"owner": "third", "ttl_s": 1})
    first._thread.join(5)
    assert [error.what for error in lost] == ["is held by third on another host"]
    assert heartbeats


def test_claim_of_a_living_owner_is_waited_for_and_one_of_its_end_is_taken_over(store):
    first, second = lease(store, Time(), "one"), lease(store, Time(), "two")
    first.acquire()
    second.acquire()
    never = pytest.fail
    assert first.claim("loop/x", never) == 0
    assert first.claim("loop/x", never) == 0  # its own: nothing to wait for
    waits = []
    assert None is second.claim(
        "loop/x", lambda holder: waits.append(str(holder)) or len(waits) == 3
    )
    assert waits == [f"me on {this_process().host}"] * 3
    first.release()
    assert second.claim("loop/x", never) == 1
    resumed = lease(store, Time(), "one")
    resumed.acquire()
    assert resumed.claim("loop/x", lambda holder: True) is None
    sleeper = Time()  # the owner "two" is asleep: no heartbeat for the time to live
    waiting = lease(store, sleeper, "three")
    waiting.acquire()
    assert waiting.claim("loop/x", lambda holder: sleeper.clock().sleep(holder.poll_s)) == 2
    assert sleeper.seconds == pytest.approx(10)


def race(url, number, tried):
    own = Lease(open_store(url), f"run{number}", f"run{number}")
    own.acquire()
    won = own.claim("equal/x", lambda holder: True)
    tried.wait(60)  # alive until all have tried: the right of one that has ended is free
    sys.exit(5 if won is None else 0)


def test_one_of_many_processes_gets_a_claim(store):
    import multiprocessing

    context = multiprocessing.get_context("fork")
    tried = context.Barrier(8)
    racers = [context.Process(target=race, args=(store.url, n, tried)) for n in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(racer.exitcode for racer in racers) == [0] + [5] * 7
