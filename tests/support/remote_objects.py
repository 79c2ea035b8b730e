"""Objects of a store behind a network: the same bytes, and a record of the requests."""

import threading
import time
from functools import partial


class RemoteObjects:
    """Objects that are not local, as far as a reader can tell; records the ranges it reads."""

    is_local = False

    def __init__(self, objects):
        self.objects, self.url, self.reads = objects, objects.url, []
        self._lock = threading.Lock()

    def __getattr__(self, name):
        return getattr(self.objects, name)

    def read_into(self, key, spans):
        with self._lock:
            self.reads += [(key, start, len(target)) for start, target in spans]
        self.objects.read_into(key, spans)


class ConcurrentRanges(RemoteObjects):
    """Records ranged reads; those of columns block until `together` of them are in flight."""

    def __init__(self, objects, together=8):
        super().__init__(objects)
        self.sizes = {info.key: info.size_bytes for info in objects.list("")}
        self.footers, self.spans, self._now = 0, [], 0
        self._together, self._is_reached = together, threading.Event()

    def get_range(self, key, start, length):
        if start + length == self.sizes[key]:
            self.footers += 1
            return self.objects.get_range(key, start, length)
        with self._lock:
            self.spans.append(length)
            self._now += 1
            if self._now == self._together:
                self._is_reached.set()
        assert self._is_reached.wait(30), "one after the other"
        with self._lock:
            self._now -= 1
        return self.objects.get_range(key, start, length)


class Counting:
    """A store whose requests take time and are counted; listings have 1,000 entries a page."""

    def __init__(self, objects, request_s: float = 0.0) -> None:
        self._objects, self._request_s = objects, request_s
        self.is_local, self.requests, self._lock = False, 0, threading.Lock()

    def __getattr__(self, name: str):
        attribute = getattr(self._objects, name)
        return partial(self._call, name, attribute) if callable(attribute) else attribute

    def _call(self, name: str, method, *args, **options):
        result = method(*args, **options)
        if name in ("list", "folders"):
            result = list(result)
        with self._lock:
            pages = 1 + len(result) // 1000 if name in ("list", "folders") else 1
            self.requests += pages
        time.sleep(self._request_s * pages)
        return iter(result) if name in ("list", "folders") else result
