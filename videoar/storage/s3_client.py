"""The client of an S3 server: how it connects, and how long it waits for a server without answers.

Every request is tried again with full jitter until the server has not answered this process for
the setting `store_wait_s`. From then on each request has one attempt, until one is answered: what
comes after the failure, such as giving a lease back, does not wait all over again.
"""

import functools
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from videoar.core.retry import RetryPolicy

logger = logging.getLogger(__name__)
TRANSIENT_STATUS = {409, 429, 500, 502, 503, 504}
"""409 ConditionalRequestConflict: a concurrent conditional write of the same key."""
_TRANSIENT_CODES = {"InternalError", "RequestTimeout", "SlowDown"}
_REPORT_AFTER_S = 1.0
_REPORT_EVERY_S = 15.0


class Availability:
    """Whether a bucket answers this process; one object per bucket, see `availability`.

    Args:
        where: named in log lines.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._since: float | None = None
        self._last_failure = 0.0
        self._next_report_s = _REPORT_AFTER_S

    @property
    def unavailable_s(self) -> float:
        """For how long all requests have failed; 0 if the newest one was answered."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def answered(self) -> None:
        """Note a request that was answered."""
        with self._lock:
            if self._since is not None and self._next_report_s > _REPORT_AFTER_S:
                took = time.monotonic() - self._since
                logger.warning("%s: answers again, after %.0f s", self._where, took)
            self._since, self._next_report_s = None, _REPORT_AFTER_S

    def failed(self, reason: str, wait_s: float) -> float:
        """Note a request that was not answered; return for how long that has been so, in seconds.

        Args:
            reason: of the failure, for the log line that comes every 15 s.
            wait_s: how long requests wait.
        """
        with self._lock:
            now = time.monotonic()
            if self._since is None or now - self._last_failure > wait_s:
                self._since, self._next_report_s = now, _REPORT_AFTER_S  # nobody asked for long
            self._last_failure = now
            elapsed_s = now - self._since
            if self._next_report_s <= elapsed_s <= wait_s:
                self._next_report_s = elapsed_s + _REPORT_EVERY_S
                what = "does not answer: waiting"
                logger.warning(
                    "%s: %s (%.0f s of %.0f s; %s)", self._where, what, elapsed_s, wait_s, reason
                )
            return elapsed_s


@functools.cache
def availability(endpoint: str, bucket: str) -> Availability:
    """Return the state of a bucket that all clients of this process share."""
    return Availability(f"{endpoint or 's3:/'}/{bucket}")


def retry_policy(wait_s: float) -> RetryPolicy:
    """Return how requests are tried again for about `wait_s` seconds."""
    return RetryPolicy(first_wait_s=0.1, max_wait_s=min(5.0, wait_s / 10), max_seconds=wait_s)


class _RetryHandler:
    """Decides for botocore whether and when a request is sent again."""

    def __init__(self, state: Availability, wait_s: float) -> None:
        self._state, self._wait_s, self._policy = state, wait_s, retry_policy(wait_s)

    def __call__(
        self,
        *,
        response: tuple[Any, Mapping[str, Any]] | None,
        caught_exception: Exception | None,
        attempts: int,
        request_dict: dict[str, Any],
        **_: object,
    ) -> float | None:
        """Return the wait in seconds; None ends the attempts. The arguments are botocore's."""
        reason = _transient_reason(response, caught_exception)
        if reason is None:
            if response is not None:
                self._state.answered()
            return None
        began = request_dict["context"].setdefault("first_failure", time.monotonic())
        # the first: one key may fail while others are answered
        elapsed_s = max(time.monotonic() - began, self._state.failed(reason, self._wait_s))
        return self._policy.wait_s(attempts, elapsed_s)


def _transient_reason(
    response: tuple[Any, Mapping[str, Any]] | None, error: Exception | None
) -> str | None:
    from botocore import exceptions

    if response is None:
        is_network = isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError)
        # a certificate that is not trusted stays so
        return type(error).__name__ if is_network and not is_final(error) else None
    parsed = response[1]
    code = str(parsed.get("Error", {}).get("Code", ""))
    status = parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status in TRANSIENT_STATUS or code in _TRANSIENT_CODES:
        return f"{status} {code}".removesuffix(f" {status}")
    return None


def is_final(error: Exception | None) -> bool:
    """Return whether a connection that failed will fail in the same way again."""
    from botocore.exceptions import SSLError

    return isinstance(error, SSLError)


def connect(endpoint: str, state: Availability, wait_s: float) -> tuple[Any, Any]:
    """Create a client and its session.

    Checksums only where S3 requires them: botocore sends them as trailers by default, and Ceph 16
    answers 411 to a request with a trailer.
    """
    import boto3
    from botocore.config import Config

    session = boto3.session.Session()
    config = Config(
        # adaptive: after SlowDown the rate of requests shrinks, and grows again with successes
        retries={"mode": "adaptive", "total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # other servers rarely have DNS names per bucket
        s3={"addressing_style": "path"} if endpoint else None,
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=32,  # more than the 16 concurrent reads of one reader
    )
    # boto3 needs some region to sign requests; servers other than AWS accept any
    region = session.region_name or "us-east-1"
    client = session.client("s3", endpoint_url=endpoint or None, region_name=region, config=config)
    client.meta.events.register("needs-retry.s3", _RetryHandler(state, wait_s))
    return client, session
