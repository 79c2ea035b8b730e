"""State of the HTTP server: what happens between a request and the service."""

import asyncio

import pytest

from videoar.serving.errors import ApiError
from videoar.serving.limits import Buckets, Limits
from videoar.serving.server import Server, ServerSettings
from videoar.serving.service import Readiness, ServedModel
from videoar.serving.video_job import VideoJob
from videoar.serving.wire import CreateVideo, Parsed

MODEL = ServedModel(
    id="m", snapshot="m:1", created_at=0, size_px=(32, 32), rate_fps=8, num_scales=3,
    tokenizer_digest="0",    seconds=1, max_seconds=2,
)  # fmt: skip
PARSED = Parsed(CreateVideo(prompt="a circle"), None)


class Slow:
    """Accepts jobs when it is told to."""

    queue_length = 0

    def __init__(self):
        self.go_on = asyncio.Event()
        self.jobs = []

    async def readiness(self):
        return Readiness(ready=True, models=(MODEL,))

    async def create(self, request, idempotency_key, init=None):
        await self.go_on.wait()
        self.jobs.append(VideoJob(id="video_1", created_at=0, request=request))
        return self.jobs[-1]


def test_create_of_a_client_that_leaves_is_completed():
    async def main():
        service = Slow()
        request = asyncio.create_task(Server(service, ServerSettings()).create(PARSED, "one"))
        await asyncio.sleep(0.05)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        service.go_on.set()
        await asyncio.sleep(0.05)
        return request.cancelled(), len(service.jobs)

    assert asyncio.run(main()) == (True, 1)


def test_create_at_once_does_not_exceed_the_queue():
    async def main():
        service = Slow()
        server = Server(service, ServerSettings(limits=Limits(max_queue=2)))
        requests = [asyncio.create_task(server.create(PARSED, "one")) for _ in range(5)]
        await asyncio.sleep(0.05)
        service.go_on.set()
        return await asyncio.gather(*requests, return_exceptions=True)

    answers = asyncio.run(main())
    rejected = [answer.status for answer in answers if isinstance(answer, ApiError)]
    assert rejected == [429, 429, 429]


def test_buckets_refill_at_the_rate_per_client():
    buckets = Buckets(Limits(requests_per_s=2, burst=2))
    buckets.take("a", 10.0)
    buckets.take("a", 10.0)
    buckets.take("b", 10.0)
    with pytest.raises(ApiError) as error:
        buckets.take("a", 10.1)
    assert error.value.retry_after_s == pytest.approx(0.4)
    buckets.take("a", 10.5)
    with pytest.raises(ApiError):
        buckets.take("a", 10.6)
