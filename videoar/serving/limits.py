"""What one client may ask of the server."""

import time
from collections import OrderedDict

from fastapi import Request
from pydantic import Field

from videoar.core.types import Frozen
from videoar.serving.errors import ApiError

_MAX_CLIENTS = 10_000  # chosen: some MB of memory


class Limits(Frozen):
    """Limits of the API."""

    max_body_bytes: int = Field(default=32 << 20, gt=0)
    """Of a request, with its image or video."""
    requests_per_s: float = Field(default=20, gt=0)
    """Per API key, or per address if the server has no keys."""
    burst: int = Field(default=40, ge=1)
    """Requests at once, after a pause."""
    max_queue: int = Field(default=100, ge=0)
    """Jobs that wait; then `POST` answers 429."""
    max_streams: int = Field(default=200, ge=1)
    """Clients that follow jobs by events or have a session."""
    timeout_s: float = Field(default=30, gt=0)
    """For the body of a request, and for the answer of the store or the cluster."""


class Buckets:
    """One token bucket per client: `burst` tokens, `requests_per_s` new ones per second.

    Source: the generic cell rate algorithm, ITU-T I.371: a bucket is the one time at which it will
    be full again.
    """

    def __init__(self, limits: Limits) -> None:
        self._interval_s = 1 / limits.requests_per_s
        self._burst_s = limits.burst * self._interval_s
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, client: str, now_s: float | None = None) -> None:
        """Take one token.

        Raises:
            ApiError: 429, there is none.
        """
        now = time.monotonic() if now_s is None else now_s
        full_at = max(now, self._full_at.get(client, now)) + self._interval_s
        if (wait := full_at - now - self._burst_s) > 1e-9:
            raise ApiError(429, "too many requests", "rate_limit_exceeded", retry_after_s=wait)
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        if len(self._full_at) > _MAX_CLIENTS:  # forgets the client that was idle for longest
            self._full_at.popitem(last=False)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: 413, it is too large.
    """
    too_large = ApiError(413, f"the body has more than {max_bytes} bytes", "body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > max_bytes:
            raise too_large
    return bytes(data)
