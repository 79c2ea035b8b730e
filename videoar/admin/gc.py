"""Deletes garbage: what killed and abandoned work has left in the store.

`plan` records what nothing names or needs any more, and is older than a retention time. `apply`
deletes of a plan what is still garbage at that moment. Both walk the store in the same way:

    data, object   not named by a commit, a work record, or a row of what those name
    work           record of a shard, training or reduction that was never committed
    checkpoint     of a training that has finished, or that nobody has continued for long
    progress       of runs that have succeeded
    lease, claim   what newer records of the same log have replaced
    video          of requests that have ended otherwise, or were deleted
    probe, plan    of `doctor` and of this module

Commits and records of runs, refs, schedules and takedowns are never deleted, so neither is what
they name: every snapshot stays readable, and what is cached stays cached.

Runs may go on meanwhile. A run keeps from deletion what is younger than itself, and the work
records and checkpoints of its stages; `storage.collection` says why the rest is safe, too. A call
that was killed at any line has deleted a part; the next `apply` deletes the rest. Records are
deleted before the files that they name.

Firings of schedules and deliveries of hooks are not garbage: because of them a window fires once.
Memory does not grow with the store: keys are in files on disk, and listings are streams.
"""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import groupby, islice

from videoar.admin.garbage import Garbage, GarbageWalk, Retention
from videoar.core.crash_points import crash_point
from videoar.core.errors import ConfigError, StorageError
from videoar.core.ids import canonical_json, is_safe_key, new_run_id, sha256_hex
from videoar.core.prefetch import concurrently
from videoar.core.scratch import Scratch
from videoar.core.types import Json, Stored
from videoar.storage import layout
from videoar.storage.key_set import KeySet
from videoar.storage.lease import Lease
from videoar.storage.ledger import current_user
from videoar.storage.store import Store

logger = logging.getLogger(__name__)
_PART_KEYS = 10_000
"""chosen: a part of a plan is about a megabyte."""


class Kind(Stored):
    """Garbage of one kind."""

    keys: int = 0
    size_bytes: int = 0

    def __add__(self, item: Garbage) -> "Kind":
        return Kind(keys=self.keys + 1, size_bytes=self.size_bytes + item.size_bytes)

    def __str__(self) -> str:
        return f"{self.keys} keys, {self.size_bytes:,} bytes"


class Plan(Stored):
    """What `apply` may delete; its keys are in parts of their own."""

    plan: str
    """Its id."""
    at: float
    by: str
    retention: Retention
    kinds: dict[str, Kind]
    parts: tuple[str, ...]
    """SHA-256 of each part."""
    problems: tuple[str, ...] = ()
    """Why some kinds were left out."""


def plan(store: Store, retention: Retention | None = None) -> Plan:
    """Record what is garbage now; delete nothing.

    Raises:
        StorageError: the store does not respond.
    """
    retention = retention or Retention()
    id_ = new_run_id(after=_plan_ids(store))
    kinds: dict[str, Kind] = defaultdict(Kind)
    digests: list[str] = []
    store.ledger.prepare_write()
    with Scratch() as folder, closing(GarbageWalk(store, id_, retention, folder)) as walk:
        garbage = walk.garbage()
        while part := list(islice(garbage, _PART_KEYS)):
            for item in part:
                kinds[item.kind] += item
            rows: list[Json] = [
                [item.key, item.size_bytes, item.kind, item.reason] for item in part
            ]
            data = canonical_json({"keys": rows}).encode()
            store.objects.put(layout.plan_part_key(id_, len(digests)), data)
            digests.append(sha256_hex(data))
            crash_point("gc.part")
        made = Plan(
            plan=id_, at=time.time(), by=current_user(), retention=retention, kinds=kinds,
            parts=tuple(digests), problems=tuple(walk.problems),
        )  # fmt: skip
    # last: parts without it are the garbage of a killed call
    store.ledger.create(layout.plan_key(id_), made.model_dump(mode="json"))
    return made


def _plan_ids(store: Store) -> Iterator[str]:
    return (layout.plan_of(key) for key in store.ledger.list(layout.PLANS_PREFIX))


def load_plan(store: Store, id_: str) -> Plan:
    """Return a plan.

    Raises:
        ConfigError: there is none of this id.
    """
    record = store.ledger.read(layout.plan_key(id_)) if is_safe_key(id_) else None
    if record is None:
        raise ConfigError(id_ or "''", "no such plan", "videoar gc plan makes one")
    return Plan.model_validate(record)


def apply(store: Store, id_: str) -> tuple[dict[str, Kind], list[str]]:
    """Delete what is in a plan and still garbage; a second call goes on.

    Returns:
        What was deleted, by kind; why some kinds were left out.

    Raises:
        ConfigError: there is no such plan.
        LeaseHeldError: another process applies a plan, or has taken over while this one was
            suspended.
        StorageError: the store does not respond, or a part of the plan is damaged.
    """
    made, deleted = load_plan(store, id_), defaultdict[str, Kind](Kind)
    lease = Lease(store, layout.COLLECTOR_LEASE, f"gc apply {id_}", hint="wait for its end")
    lease.acquire()
    crash_point("gc.acquired")
    try:
        lease.keep(lambda error: logger.error("%s", error))
        with ExitStack() as stack:
            folder = stack.enter_context(Scratch())
            planned = stack.enter_context(closing(KeySet(folder / "planned")))
            for key in _planned_keys(store, made):
                planned.add(key)
            # made after the lease was acquired: see `storage.collection`
            walk = stack.enter_context(closing(GarbageWalk(store, id_, made.retention, folder)))
            found = (item for item in walk.garbage() if item.key in planned)

            def delete(item: Garbage) -> None:
                lease.require_held()
                store.objects.delete(item.key)
                crash_point("gc.deleted")

            for _, group in groupby(found, lambda item: item.kind):  # one kind after the other
                for item, _ in concurrently(delete, group):
                    deleted[item.kind] += item
        store.objects.sweep()  # half-written files and uploads of killed writers
    finally:
        lease.release()
    return deleted, walk.problems


def _planned_keys(store: Store, made: Plan) -> Iterator[str]:
    for number, digest in enumerate(made.parts):
        key = layout.plan_part_key(made.plan, number)
        data = store.objects.get(key)
        if sha256_hex(data) != digest:
            raise StorageError(key, "damaged: wrong SHA-256", "make a new plan")
        yield from (row[0] for row in json.loads(data)["keys"])
