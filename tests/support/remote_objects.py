"""Objects of a store behind a network: the same bytes, and a record of the requests."""

import threading


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
