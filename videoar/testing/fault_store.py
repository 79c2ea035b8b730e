"""An object store with faults: any store, wrapped, and a seeded plan of what goes wrong.

The faults are those that a client lets through after its own retries. They are drawn per request,
in the order of the requests: equal for equal seeds, as long as one thread uses the store.
"""

import dataclasses
import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from videoar.core.errors import ThrottledError, TransientStorageError
from videoar.storage import store as opening
from videoar.storage.layout import TEMPORARY_FOLDER
from videoar.storage.object_store import ObjectInfo, ObjectStore

_READS = ("find", "get", "get_range", "read_into", "size", "age_s", "list")
_WRITES = ("put", "put_file", "delete", "purge", "purge_older")


@dataclass(frozen=True)
class FaultPlan:
    """What goes wrong, and how often: probabilities per request that can have the fault."""

    seed: int = 0
    unavailable: float = 0.0
    """The request has no effect and ends in an error (HTTP 500, 503, a connection that is cut)."""
    throttled: float = 0.0
    """The request has no effect; the store asks for fewer."""
    lost_answer: float = 0.0
    """A write has its effect and ends in an error."""
    cut_upload: float = 0.0
    """The upload of a file ends in an error, half of its content is left where nobody lists it."""
    late_listing_s: float = 0.0
    """Seconds for which a listing lacks a new object."""
    disk_bytes: float = float("inf")
    """Room for new objects; after that, the disk is full."""
    most: float = float("inf")
    """Number of errors after which nothing goes wrong any more."""
    log: str = ""
    """Path of a file that gets a line with the name of each fault, from all processes."""


class FaultStore:
    """An object store with the faults of a plan.

    Pickles as the store and its plan, so that it reaches other processes; each of them begins at
    the start of the plan. `FaultStore(...).protocol` is for code that is checked for types.

    Args:
        objects: the store below.
        plan: what goes wrong.
    """

    def __init__(self, objects: ObjectStore, plan: FaultPlan) -> None:
        self.objects, self.plan = objects, plan
        self.faults: Counter[str] = Counter()
        """How often each fault has happened here."""
        self._random = random.Random(plan.seed)  # noqa: S311 - repeatable, keeps no secret
        self._lock = threading.Lock()
        self._written_bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return FaultStore, (self.objects, self.plan)

    @property
    def protocol(self) -> ObjectStore:
        """This object, with the type of what it wraps."""
        return cast(ObjectStore, self)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.objects, name)
        if name in _READS:
            return partial(self._list if name == "list" else self._read, value)
        return partial(self._write, name, value) if name in _WRITES else value

    def _draw(self, **rates: float) -> str:
        """Draw at most one of some faults, and count it."""
        with self._lock:
            if self.faults.total() >= self.plan.most:
                return ""
            names = (*rates, "")
            weights = (*rates.values(), max(0.0, 1.0 - sum(rates.values())))
            (fault,) = self._random.choices(names, weights)
        self._count(fault)
        return fault

    def _count(self, fault: str) -> None:
        if not fault:
            return
        with self._lock:
            self.faults[fault] += 1
        if self.plan.log:
            with Path(self.plan.log).open("a", encoding="utf-8") as log:
                log.write(f"{fault}\n")

    def _error(self, fault: str, key: object) -> TransientStorageError:
        where = f"{self.objects.url}/{key}"
        if fault == "throttled":
            return ThrottledError(where, "asks for fewer requests", "run again")
        if fault == "disk_full":  # as `local_store` says it
            return TransientStorageError(where, "disk full", "free space, then resume")
        return TransientStorageError(where, f"a planned fault: {fault}", "run again")

    def _before(self, key: object, **more: float) -> str:
        """Raise a fault that prevents a request; return one that comes later, "" without."""
        plan = self.plan
        fault = self._draw(unavailable=plan.unavailable, throttled=plan.throttled, **more)
        if fault in {"unavailable", "throttled"}:
            raise self._error(fault, key)
        return fault

    def _read(self, request: Callable[..., Any], key: str, *args: Any) -> Any:
        self._before(key)
        return request(key, *args)

    def _list(
        self, request: Callable[..., Iterator[ObjectInfo]], prefix: str, after: str = ""
    ) -> Iterator[ObjectInfo]:
        self._before(prefix)
        late_s = self.plan.late_listing_s
        for info in request(prefix, after):
            if late_s and (self.objects.age_s(info.key) or 0.0) < late_s:
                self._count("late_listing")
            else:
                yield info

    def _write(
        self, name: str, request: Callable[..., Any], key: str, *args: Any, **options: Any
    ) -> Any:
        rates = {"lost_answer": self.plan.lost_answer}
        if name == "put_file":
            rates["cut_upload"] = self.plan.cut_upload
        fault = self._before(key, **rates)
        if name in {"put", "put_file"}:
            self._take_room(key, args[0])
        if fault == "cut_upload":
            data = Path(args[0]).read_bytes()
            self.objects.put(f"{TEMPORARY_FOLDER}/cut-{os.getpid()}", data[: len(data) // 2])
            raise self._error(fault, key)
        result = request(key, *args, **options)
        if fault:
            raise self._error(fault, key)
        return result

    def _take_room(self, key: str, data: bytes | memoryview | Path) -> None:
        size_bytes = data.stat().st_size if isinstance(data, Path) else len(data)
        with self._lock:
            self._written_bytes += size_bytes
            is_full = self._written_bytes > self.plan.disk_bytes
        if is_full and self.faults.total() < self.plan.most:
            self._count("disk_full")
            raise self._error("disk_full", key)


def inject(plan: FaultPlan) -> None:
    """Give every store that this process opens from now on the faults of a plan.

    For a child process of a test: stages open their store by its URL.
    """
    open_objects, seeds = opening._open_objects, itertools.count(plan.seed)

    def open_with_faults(url: str, endpoint: str) -> ObjectStore:
        # another seed for each: the stores of a process would all fail at their first request
        own = dataclasses.replace(plan, seed=next(seeds))
        return FaultStore(open_objects(url, endpoint), own).protocol

    opening._open_objects = open_with_faults
