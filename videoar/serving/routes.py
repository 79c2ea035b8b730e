"""The routes, in the form of the OpenAI videos API: its clients need only another address.

POST   /v1/videos               accept a job; its record is in the store when this answers
GET    /v1/videos               jobs, a page at a time
GET    /v1/videos/{id}          state of a job
GET    /v1/videos/{id}/content  MP4
GET    /v1/videos/{id}/events   server-sent events
GET    /v1/videos/{id}/lineage  what it was made of
DELETE /v1/videos/{id}          delete; cancels a job that is not finished
GET    /v1/models               models
WS     /v1/sessions             see `events`
GET    /healthz, /readyz, /metrics, /openapi.json
GET    /                        the page, see `page`
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import APIRouter, Depends, Header, Query, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.requests import HTTPConnection

from videoar.serving.errors import ApiError, not_found
from videoar.serving.events import Session, server_sent
from videoar.serving.metrics import CONTENT_TYPE
from videoar.serving.openapi import MP4, REQUEST_BODY, errors
from videoar.serving.server import Server
from videoar.serving.service import Readiness
from videoar.serving.video_job import JOB_ID, VideoJob
from videoar.serving.wire import (
    Model,
    ModelList,
    Video,
    VideoDeleted,
    VideoList,
    find_model,
    model_of,
    parse,
    video_of,
)

_PRINTABLE = r"^[ -~]{1,255}$"
_POLL_MS = "500"  # chosen: clips take seconds
operation = APIRouter(tags=["operation"])
"""For those who operate the server; without keys."""
videos = APIRouter(prefix="/v1", tags=["videos"])
"""Jobs and models."""
sessions = APIRouter(prefix="/v1")
"""WebSockets, which are no part of the OpenAPI schema."""


def _server(connection: HTTPConnection) -> Server:
    server: Server = connection.app.state.server
    return server


_Server: TypeAlias = Annotated[Server, Depends(_server)]


def identify_client(connection: HTTPConnection, server: _Server) -> str:
    """Return the name of the client; see `Server.identify_client`."""
    return server.identify_client(connection)


_Client: TypeAlias = Annotated[str, Depends(identify_client)]


async def _job(video_id: str, server: _Server, _: _Client) -> VideoJob:
    job = await server.call("get", server.service.get(video_id))
    if job is None:
        raise not_found(video_id)
    return job


_Job: TypeAlias = Annotated[VideoJob, Depends(_job)]


@operation.get("/healthz", operation_id="health")
async def health() -> dict[str, str]:
    """Return that the process is alive."""
    return {"status": "alive"}


@operation.get(
    "/readyz",
    operation_id="readiness",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not yet, or not any more."}},
)
async def readiness(server: _Server) -> Response:
    """Return whether the server takes requests: every model has done a warm-up pass."""
    try:
        state = await server.state()
    except ApiError:
        state = Readiness(ready=False)
    ready = state.ready and not server.draining
    body = state.model_copy(update={"ready": ready}).model_dump(mode="json")
    return JSONResponse(body, 200 if ready else 503, None if ready else {"Retry-After": "5"})


@operation.get("/metrics", operation_id="metrics", response_class=PlainTextResponse)
async def metrics(server: _Server) -> Response:
    """Return metrics in the text format of Prometheus."""
    try:
        state: Readiness | None = await server.state()
    except ApiError:  # the metrics say that it is not ready
        state = None
    return Response(server.metrics.text(state), headers={"Content-Type": CONTENT_TYPE})


@videos.get("/models", operation_id="list_models")
async def list_models(server: _Server) -> ModelList:
    """Return the models that are loaded; the first is the default."""
    return ModelList(data=[model_of(model) for model in (await server.state()).models])


@videos.get("/models/{model_id}", operation_id="get_model", responses=errors(404))
async def get_model(model_id: str, server: _Server) -> Model:
    """Return a model."""
    return model_of(find_model(model_id, (await server.state()).models))


@videos.post(
    "/videos",
    operation_id="create_video",
    responses=errors(404, 408, 409, 413, 415),
    openapi_extra=REQUEST_BODY,
)
async def create_video(
    request: Request,
    server: _Server,
    client: _Client,
    idempotency_key: Annotated[str | None, Header(pattern=_PRINTABLE)] = None,
) -> Video:
    """Accept a job; a second request with its `Idempotency-Key` returns the same job."""
    server.check_room()
    limits = server.settings.limits
    try:
        parsed = await asyncio.wait_for(parse(request, limits.max_body_bytes), limits.timeout_s)
    except TimeoutError as error:
        raise ApiError(408, "the body did not arrive in time", "timeout") from error
    return video_of(await server.create(parsed, client, idempotency_key))


@videos.get("/videos", operation_id="list_videos", responses=errors(404))
async def list_videos(
    server: _Server,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    """Return jobs by time of creation; `after` is the last id of the page before."""
    if after is not None and not JOB_ID.fullmatch(after):
        raise not_found(after)
    jobs = await server.call("list", server.service.list(after, limit + 1, order))
    data = [video_of(job) for job in jobs[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return VideoList(data=data, first_id=first, last_id=last, has_more=len(jobs) > limit)


@videos.get("/videos/{video_id}", operation_id="get_video", responses=errors(404))
async def get_video(job: _Job, response: Response) -> Video:
    """Return the state of a job."""
    response.headers["openai-poll-after-ms"] = _POLL_MS  # the client's `poll` reads it
    return video_of(job)


@videos.get(
    "/videos/{video_id}/content",
    operation_id="get_video_content",
    response_class=Response,
    responses={**errors(404, 409), **MP4},
)
async def get_content(job: _Job, server: _Server, variant: Literal["video"] = "video") -> Response:
    """Return the MP4 of a finished job; header `videoar-lineage` names what made it."""
    del variant  # the only one
    if job.status != "completed":
        raise ApiError(409, f"the video is {video_of(job).status}", "video_not_available")
    data = await server.call("content", server.service.content(job.id))
    if data is None:
        raise not_found(job.id)
    headers = {
        "Content-Disposition": f'attachment; filename="{job.id}.mp4"',
        "videoar-lineage": f"{job.model_snapshot} {job.sample_id}",
    }
    return Response(data, media_type="video/mp4", headers=headers)


@videos.get(
    "/videos/{video_id}/events",
    operation_id="get_video_events",
    response_class=EventSourceResponse,
    responses=errors(404),
)
async def get_events(job: _Job, server: _Server) -> AsyncGenerator[ServerSentEvent]:
    """Follow a job by server-sent events; the last one is `done` or `failed`."""
    async with aclosing(server_sent(server, job.id)) as events:
        async for event in events:
            yield event


@videos.get("/videos/{video_id}/lineage", operation_id="get_lineage", responses=errors(404))
async def get_lineage(job: _Job, server: _Server) -> dict[str, Any]:
    """Return the graph of snapshots and sources that the model of a video was made of."""
    graph = await server.call("lineage", server.service.lineage(job.id))
    if graph is None:
        raise not_found(job.id)
    return dict(graph)


@videos.delete("/videos/{video_id}", operation_id="delete_video", responses=errors(404))
async def delete_video(job: _Job, server: _Server) -> VideoDeleted:
    """Delete a job and its video; cancels a job that is not finished."""
    if await server.call("delete", server.service.delete(job.id)) is None:
        raise not_found(job.id)
    return VideoDeleted(id=job.id)


@sessions.websocket("/sessions")
async def session(socket: WebSocket, server: _Server) -> None:
    """Answer one session, see `events`."""
    try:
        client = server.identify_client(socket)
    except ApiError as error:
        await socket.send_denial_response(error.response)
        return
    await socket.accept()
    await Session(server, socket, client).run()
