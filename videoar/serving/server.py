"""What all routes share: who asks, what is allowed, and calls to the service."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from pydantic import Field
from starlette.requests import HTTPConnection

from videoar.core.types import Frozen
from videoar.serving.auth import check_key, check_origin
from videoar.serving.errors import ApiError, as_api_error
from videoar.serving.init_check import check_init
from videoar.serving.limits import Buckets, Limits
from videoar.serving.metrics import Metrics
from videoar.serving.service import Readiness, VideoService
from videoar.serving.video_job import VideoJob
from videoar.serving.wire import Parsed, resolve

T = TypeVar("T")
_STATE_S = 1.0  # chosen: how old the list of models may be
_QUEUE_RETRY_S = 5  # chosen: some seconds, the time of a job is not known here
_DECODERS = 2  # chosen: processes at once that decode images and videos of requests
logger = logging.getLogger(__name__)


class ServerSettings(Frozen):
    """Options of the API."""

    keys: Mapping[str, str] = Field(default_factory=dict)
    """API keys, SHA-256 to name, see `read_keys`; empty: everybody may do everything."""
    limits: Limits = Limits()
    deadline_s: float | None = None
    """Deadline of jobs whose request has none."""
    drain_s: float = 30.0
    """What clients are told to wait when the server ends."""


class Server:
    """State of one HTTP server."""

    def __init__(self, service: VideoService, settings: ServerSettings) -> None:
        self.service = service
        self.settings = settings
        self.metrics = Metrics()
        self.draining = False
        """Set it to reject new jobs; those that are accepted go on."""
        self._buckets = Buckets(settings.limits)
        self._accepting: set[asyncio.Future[VideoJob]] = set()
        self._streams = 0
        self._decoders = asyncio.Semaphore(_DECODERS)
        self._state: tuple[float, Readiness] | None = None

    def identify_client(self, connection: HTTPConnection) -> str:
        """Return the name of the client of a request.

        Raises:
            ApiError: 401, 403 or 429.
        """
        check_origin(connection.headers)
        if self.settings.keys:
            client = check_key(connection.headers, self.settings.keys)
        else:
            client = connection.client.host if connection.client else ""
        self._buckets.take(client)
        return client

    def check_room(self) -> None:
        """Check that one more job can be accepted.

        Raises:
            ApiError: 503, the server ends; or 429, the queue is full.
        """
        if self.draining:
            what = "the server ends; it takes no more jobs"
            raise ApiError(503, what, "draining", retry_after_s=self.settings.drain_s)
        length = self.service.queue_length + len(self._accepting)
        if length >= self.settings.limits.max_queue:
            what = f"{length} videos wait already"
            raise ApiError(429, what, "queue_full", retry_after_s=_QUEUE_RETRY_S)

    async def create(
        self, parsed: Parsed, client: str, key: str | None = None, *, stream: bool = False
    ) -> VideoJob:
        """Accept a job.

        Args:
            parsed: the request.
            client: whose idempotency key it is.
            key: idempotency key.
            stream: send every frame as an event, not only previews.

        Raises:
            ApiError: the request cannot be accepted.
        """
        state = await self.state()
        if not state.ready or not state.models:
            raise ApiError(503, "the model is being loaded", "not_ready", retry_after_s=5)
        try:
            request = resolve(parsed, state.models)
        except Exception as error:
            raise as_api_error(error) from error
        if parsed.init is not None and parsed.init_tokenizer is None:
            model = next(model for model in state.models if model.id == request.model)
            async with self._decoders:
                check = partial(check_init, parsed.init, model, request.seconds)
                await self.call("decode", asyncio.to_thread(check))
        deadline_s = request.deadline_s or self.settings.deadline_s
        request = request.model_copy(update={"deadline_s": deadline_s, "stream": stream})
        if key is not None:
            key = f"{client}:{key}"  # clients do not know each other's keys
        self.check_room()  # again: others came while the body arrived
        # A client that leaves cancels its request, but not the job: its record may exist already.
        task = asyncio.ensure_future(self.service.create(request, key, parsed.init))
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)
        return await self.call("create", asyncio.shield(task))

    async def state(self) -> Readiness:
        """Return the state of the service, at most a second old.

        Raises:
            ApiError: see `call`.
        """
        if self._state is None or time.monotonic() - self._state[0] > _STATE_S:
            state = await self.call("readiness", self.service.readiness())
            self._state = (time.monotonic(), state)
        return self._state[1]

    async def call(self, method: str, answer: Awaitable[T]) -> T:
        """Return the answer of the service.

        Raises:
            ApiError: it failed, or took too long.
        """
        try:
            async with self.metrics.service_call(method):
                return await asyncio.wait_for(answer, self.settings.limits.timeout_s)
        except Exception as error:
            raise as_api_error(error) from error

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """Count a client that follows jobs.

        Raises:
            ApiError: 429, there are too many.
        """
        if self._streams >= self.settings.limits.max_streams:
            raise ApiError(429, "too many open streams", "too_many_streams", retry_after_s=5)
        self._streams += 1
        self.metrics.streams.set(self._streams)
        try:
            yield
        finally:
            self._streams -= 1
            self.metrics.streams.set(self._streams)

    @staticmethod
    def api_error(error: Exception, where: str = "stream") -> ApiError:
        """Return the answer to an exception; log what it does not tell the client."""
        result = as_api_error(error)
        cause = error.__cause__ if isinstance(error, ApiError) else error
        if result.status >= 500 and cause is not None:
            logger.error("%s: %s: %s", where, type(cause).__name__, cause, exc_info=cause)
        return result
