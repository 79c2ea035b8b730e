"""Jobs while they run: server-sent events, and sessions over a WebSocket.

A session makes one video at a time. Messages of the client are JSON objects:

    {"type": "create", "prompt": ..., ...}        the fields of `POST /v1/videos`
    {"type": "prompt", "prompt": ...}             the prompt of what has not been generated yet
    {"type": "continue", "seconds": ..., ...}     the last video, and so many seconds more
    {"type": "cancel"}                            cancel the running job

Messages of the server are `{"type": "video", "video": {...}}` when the state of a job changes, the
events `progress`, `frames`, `prompt`, `done` and `failed`, and `{"type": "error", "error": {...}}`.
A job is kept and goes on when the connection is lost: `GET /v1/videos/{id}` has it.

A prompt that is sent during a job holds from the next latent frame of its video on; the event
`prompt` says from which second, and `prompt_changes` of the job lists it. It holds for what is
continued, too. A video is continued after its latent frames, which the store keeps; after its
decoded and encoded frames if the model has another tokenizer now: `begins_with` says which.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi.sse import ServerSentEvent
from starlette.websockets import WebSocket, WebSocketDisconnect

from videoar.serving.errors import ApiError, not_found
from videoar.serving.server import Server
from videoar.serving.video_job import VideoJob
from videoar.serving.wire import Parsed, find_model, parse_json, video_of

_COMMANDS = ("create", "prompt", "continue", "cancel")


async def server_sent(server: Server, job_id: str) -> AsyncGenerator[ServerSentEvent]:
    """Yield the events of a job; the last one is `done`, `failed` or `error`."""
    try:
        async with server.stream(), aclosing(server.service.events(job_id)) as events:
            async for event in events:
                yield ServerSentEvent(event=event.kind, raw_data=event.model_dump_json())
    except Exception as error:  # the status is sent, so it becomes an event
        yield ServerSentEvent(event="error", data=server.api_error(error).body)


class Session:
    """One WebSocket."""

    def __init__(self, server: Server, socket: WebSocket, client: str) -> None:
        self._server = server
        self._socket = socket
        self._client = client
        self._prompt: str | None = None
        self._last: VideoJob | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Answer messages until the client leaves."""
        try:
            async with self._server.stream():
                while True:
                    await self._answer(await self._socket.receive_text())
        except WebSocketDisconnect:
            pass
        finally:
            if self._watcher is not None:
                self._watcher.cancel()
                await asyncio.gather(self._watcher, return_exceptions=True)

    async def _answer(self, text: str) -> None:
        try:
            self._server.identify_client(self._socket)
            await self._execute(_message(text))
        except WebSocketDisconnect:
            raise
        except Exception as error:  # a wrong message does not end the session
            await self._send("error", self._server.api_error(error).body)

    async def _execute(self, message: dict[str, Any]) -> None:
        match message.pop("type"):
            case "create":
                await self._create(parse_json(json.dumps(message)))
            case "continue":
                await self._continue(message)
            case "prompt":
                self._prompt = parse_json(json.dumps(message)).create.prompt
                if self._last is not None:
                    sent = self._server.service.change_prompt(self._last.id, self._prompt)
                    await self._server.call("change_prompt", sent)
            case _:
                await self._cancel()

    async def _create(self, parsed: Parsed) -> None:
        if self._watcher is not None and not self._watcher.done():
            raise ApiError(409, "a video is being made; cancel it or wait", "busy")
        self._server.check_room()
        job = await self._server.create(parsed, self._client, stream=True)
        self._prompt, self._last = parsed.create.prompt, job
        await self._send("video", {"video": video_of(job).model_dump()})
        self._watcher = asyncio.create_task(self._watch(job.id))

    async def _continue(self, message: dict[str, Any]) -> None:
        """Create a job that begins with the last video and is longer by `seconds`."""
        service, last = self._server.service, self._last
        job = last and await self._server.call("get", service.get(last.id))
        if job is None or job.status != "completed":
            raise ApiError(409, "there is no finished video to continue", "nothing_to_continue")
        fields = {"model": job.request.model, "prompt": self._prompt, **message}
        create = parse_json(json.dumps(fields)).create
        model = find_model(create.model, (await self._server.state()).models)
        init = None
        if job.tokenizer_digest == model.tokenizer_digest:
            init = await self._server.call("tokens", service.tokens(job.id))
        tokenizer = job.tokenizer_digest if init else None
        init = init or await self._server.call("content", service.content(job.id))
        if init is None:
            raise not_found(job.id)
        seconds = job.request.seconds + (create.seconds or job.request.seconds)
        longer = create.model_copy(update={"seconds": seconds})
        await self._create(Parsed(longer, init, tokenizer))

    async def _cancel(self) -> None:
        if self._last is None or self._watcher is None or self._watcher.done():
            raise ApiError(409, "no video is being made", "nothing_to_cancel")
        self._watcher.cancel()
        job = await self._server.call("delete", self._server.service.delete(self._last.id))
        if job is not None:
            cancelled = job if job.finished else job.model_copy(update={"status": "cancelled"})
            await self._send("video", {"video": video_of(cancelled).model_dump()})
        self._last = None

    async def _watch(self, job_id: str) -> None:
        try:
            async with aclosing(self._server.service.events(job_id)) as events:
                async for event in events:
                    await self._send(event.kind, event.model_dump(mode="json", exclude={"kind"}))
            job = await self._server.call("get", self._server.service.get(job_id))
            if job is not None:
                await self._send("video", {"video": video_of(job).model_dump()})
        except WebSocketDisconnect:
            pass
        except Exception as error:  # the client is told, the job goes on
            await self._send("error", self._server.api_error(error).body)

    async def _send(self, kind: str, content: dict[str, Any]) -> None:
        await self._socket.send_text(json.dumps({"type": kind, **content}))


def _message(text: str) -> dict[str, Any]:
    """Return a message of a client.

    Raises:
        ApiError: 400, it is none.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the message is not JSON", "invalid_body") from error
    if not isinstance(message, dict) or message.get("type") not in _COMMANDS:
        what = f"a message is an object with a type: {', '.join(_COMMANDS)}"
        raise ApiError(400, what, "invalid_value", param="type")
    return message
