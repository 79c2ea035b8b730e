"""Metrics of the server for Prometheus, in a registry of their own.

The default registry of `prometheus_client` is shared by every library in the process.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from videoar.serving.service import Readiness

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "videoar_http_requests",
            "Requests by route, method and status.",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "videoar_http_request_seconds",
            "Time until the first byte of the answer.",
            ["route", "method"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._service = Histogram(
            "videoar_service_call_seconds",
            "Time of calls to the part that keeps and runs the jobs, by method.",
            ["method"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._queue = Gauge(
            "videoar_queue_length", "Jobs that no replica has begun.", registry=self._registry
        )
        self._in_flight = Gauge(
            "videoar_jobs_in_flight", "Jobs that replicas run.", registry=self._registry
        )
        self._ready = Gauge(
            "videoar_ready", "1 if the server takes requests.", registry=self._registry
        )
        self.streams = Gauge(
            "videoar_streams", "Clients that follow jobs.", registry=self._registry
        )
        """Open streams of events and sessions."""

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route, method).observe(seconds)

    @asynccontextmanager
    async def service_call(self, method: str) -> AsyncIterator[None]:
        """Measure a call to the service."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._service.labels(method).observe(time.perf_counter() - start)

    def text(self, state: Readiness | None) -> bytes:
        """Return all metrics in the text format of Prometheus.

        Args:
            state: of the server; None if it does not answer.
        """
        self._ready.set(int(state is not None and state.ready))
        if state is not None:
            self._queue.set(state.queue_length)
            self._in_flight.set(state.in_flight)
        return generate_latest(self._registry)
