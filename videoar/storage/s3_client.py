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
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from videoar.core.errors import ConfigError, TransientStorageError, one_line
from videoar.core.retry import RetryPolicy

logger = logging.getLogger(__name__)
TRANSIENT_STATUS = {409, 429, 500, 502, 503, 504}
"""409 ConditionalRequestConflict: a concurrent conditional write of the same key."""
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_TRANSIENT_CODES = {"InternalError", "RequestTimeout", "SlowDown"}
_ENDPOINT_HINT = "set http://HOST:PORT or https://HOST in VIDEOAR_S3_ENDPOINT or AWS_ENDPOINT_URL"
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

    def __init__(self, session: Any, state: Availability, wait_s: float) -> None:
        self._session, self._state = session, state
        self._wait_s, self._policy = wait_s, retry_policy(wait_s)

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
        code, status = _answer(response)
        if response is None and not _is_network(caught_exception):
            return None
        if response is not None and status not in TRANSIENT_STATUS and code not in _TRANSIENT_CODES:
            self._state.answered()
            # of any rejected request: the answer to HEAD has no code, and AWS sends 400
            return 0.0 if status in {400, 401, 403} and _reload(self._session) else None
        reason = type(caught_exception).__name__ if response is None else code
        began = request_dict["context"].setdefault("first_failure", time.monotonic())
        # the first: one key may fail while others are answered
        elapsed_s = max(time.monotonic() - began, self._state.failed(reason, self._wait_s))
        return self._policy.wait_s(attempts, elapsed_s)


def _answer(response: tuple[Any, Mapping[str, Any]] | None) -> tuple[str, int]:
    """Return the error code, empty if there is none, and the HTTP status."""
    parsed: Mapping[str, Any] = response[1] if response else {}
    code = str(parsed.get("Error", {}).get("Code", ""))
    return code, parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _is_network(error: Exception | None) -> bool:
    from botocore import exceptions

    is_network = isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError)
    return is_network and not is_final(error)


def is_final(error: Exception | None) -> bool:
    """Return whether a connection that failed will fail in the same way again."""
    from botocore.exceptions import SSLError

    return isinstance(error, SSLError)  # a certificate that is not trusted stays so


def _reload(session: Any) -> bool:
    """Take over credentials that were changed in their file; return whether they differ.

    Those with a known end (roles, SSO, `credential_process`) are renewed by botocore before it.
    """
    import boto3
    from botocore.credentials import RefreshableCredentials

    used = session.get_credentials()
    if used is None or isinstance(used, RefreshableCredentials):
        return False
    new = boto3.session.Session().get_credentials()
    if new is None or used.get_frozen_credentials() == (fresh := new.get_frozen_credentials()):
        return False
    used.access_key, used.secret_key, used.token = fresh.access_key, fresh.secret_key, fresh.token
    return True


def credentials_error(error: Exception) -> TransientStorageError:
    """Return the error of a program or service that should have given credentials."""
    hint = "check where the AWS credentials come from"
    return TransientStorageError("AWS credentials", one_line(error), hint)


@dataclass(frozen=True)
class S3Connection:
    """A client, and where it is connected to."""

    client: Any
    session: Any
    endpoint: str
    """Empty for AWS."""
    availability: Availability


def connect(endpoint: str, bucket: str, wait_s: float) -> S3Connection:
    """Create a client; without an endpoint the one of the AWS variables and profile, if any.

    Checksums only where S3 requires them: botocore sends them as trailers by default, and Ceph 16
    answers 411 to a request with a trailer.

    Raises:
        ConfigError: the endpoint, the profile or the region cannot be used.
        TransientStorageError: the provider of the credentials failed.
    """
    import boto3
    from botocore import exceptions
    from botocore.config import Config

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
    if "@" in endpoint:  # log lines and errors have the endpoint
        raise ConfigError("S3 endpoint", "has a user name or password", _ENDPOINT_HINT)
    if endpoint and urlsplit(endpoint).scheme not in {"http", "https"}:
        raise ConfigError(endpoint, "not an S3 endpoint", _ENDPOINT_HINT)
    try:
        session = boto3.session.Session()
        # boto3 needs some region to sign requests; servers other than AWS accept any
        region = session.region_name or "us-east-1"
        client = session.client(
            "s3", endpoint_url=endpoint or None, region_name=region, config=config
        )
    except exceptions.CredentialRetrievalError as error:
        raise credentials_error(error) from error
    except exceptions.BotoCoreError as error:  # a profile that does not exist, no name of a region
        hint = "check the AWS_* variables and the files in ~/.aws"
        raise ConfigError("AWS configuration", one_line(error), hint) from error
    except ValueError as error:
        raise ConfigError("AWS_ENDPOINT_URL", one_line(error), _ENDPOINT_HINT) from error
    if not endpoint and (configured := _other_than_aws(client.meta.endpoint_url)):
        return connect(configured, bucket, wait_s)
    state = availability(endpoint, bucket)
    client.meta.events.register("needs-retry.s3", _RetryHandler(session, state, wait_s))
    return S3Connection(client, session, endpoint, state)


def _other_than_aws(endpoint: str) -> str:
    host = urlsplit(endpoint).hostname or ""
    is_aws = host.endswith((".amazonaws.com", ".amazonaws.com.cn")) and ".vpce." not in host
    return "" if is_aws else endpoint
