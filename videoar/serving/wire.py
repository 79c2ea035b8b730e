"""Requests and answers in the form of the OpenAI videos API, with fields of our own.

Own fields of a request: `OwnFields`; of an answer: the same and `lineage`. Clients of OpenAI send
multipart bodies, others may send JSON.
"""

import base64
import binascii
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from videoar.core.errors import did_you_mean
from videoar.core.ids import sha256_hex
from videoar.core.types import Frozen
from videoar.serving.errors import ApiError
from videoar.serving.limits import read_body
from videoar.serving.service import ServedModel
from videoar.serving.video_job import JobError, OwnFields, PromptChange, VideoJob, VideoRequest
from videoar.training.prompts import MAX_CHARS, Prompt

MAX_SECONDS = 600
_MAX_FIELDS = 32
_REFERENCE_URL = "input_reference[image_url]"  # how the client of OpenAI writes a nested field
_DECIMAL = r"^([1-9][0-9]{0,2}(\.[0-9]{1,3})?|0\.[0-9]{0,2}[1-9])$"
# No character that `printable` escapes, and one that is no white space.
_TEXT = r"[^\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069"
_PROMPT = rf"^{_TEXT}]*{_TEXT}\s]{_TEXT}]*$"


def _decimal(value: object) -> object:
    """Return the number of a decimal text, which clients of OpenAI send; other values unchanged."""
    return float(value) if isinstance(value, str) and re.fullmatch(_DECIMAL, value) else value


_Seconds: TypeAlias = Annotated[
    float,
    BeforeValidator(_decimal),
    Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False),
    WithJsonSchema({
        "anyOf": [
            {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SECONDS},
            {"type": "string", "pattern": _DECIMAL},
        ]
    }),
]


class ImageReference(Frozen):
    """An image or a video as text."""

    image_url: str = Field(max_length=1 << 30, pattern=r"^data:[^,]*;base64,")
    """`data:image/png;base64,...`; addresses are not fetched."""


class CreateVideo(OwnFields):
    """A video to generate."""

    prompt: str = Field(min_length=1, max_length=MAX_CHARS, json_schema_extra={"pattern": _PROMPT})
    """One line of text."""
    model: str | None = None
    """One of `/v1/models`; default: the first of them."""
    seconds: _Seconds | None = None
    """Default: the longest duration that the model was trained on."""
    size: str | None = Field(default=None, pattern=r"^[0-9]{1,5}x[0-9]{1,5}$")
    """Width x height in pixels, the one of the model."""
    input_reference: ImageReference | None = None
    """Image or video that the video begins with."""
    prompt_changes: tuple[PromptChange, ...] = Field(default=(), max_length=100)
    """Other prompts from some second on."""


class Lineage(BaseModel):
    """What made a video; `videoar lineage MODEL` continues from here."""

    sample_id: str | None
    model_snapshot: str | None
    tokenizer_digest: str | None


class Video(OwnFields):
    """A job."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: None = None
    error: JobError | None
    prompt: str
    seconds: str
    size: str
    begins_with: Literal["file", "latents"] | None
    """An image or a video that is encoded; or the latent frames of a video of a session."""
    remixed_from_video_id: None = None
    lineage: Lineage


class VideoList(BaseModel):
    """A page of jobs."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """A job that no longer exists."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(BaseModel):
    """A model that the server has loaded."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["videoar"] = "videoar"
    snapshot: str
    size: str
    rate_fps: float
    seconds: float
    max_seconds: float


class ModelList(BaseModel):
    """All models that the server has loaded."""

    object: Literal["list"] = "list"
    data: list[Model]


class Parsed(NamedTuple):
    """The body of a request."""

    create: CreateVideo
    init: bytes | None
    """The image or video."""
    init_tokenizer: str | None = None
    """Digest: `init` is tokens of this tokenizer instead."""


def video_of(job: VideoJob) -> Video:
    """Return a job as clients read it; they know no cancelled jobs, these are failed ones."""
    request, cancelled = job.request, job.status == "cancelled"
    error = job.error
    if cancelled and error is None:
        error = JobError(code="cancelled", message="the job was cancelled")
    return Video(
        id=job.id,
        model=request.model,
        status="failed" if cancelled else job.status,
        progress=job.progress,
        created_at=int(job.created_at),
        completed_at=None if job.completed_at is None else int(job.completed_at),
        error=error,
        seconds=f"{request.seconds:g}",
        begins_with="latents" if request.init_tokenizer else request.init_sha256 and "file",
        lineage=Lineage.model_validate(job, from_attributes=True),
        **request.model_dump(include=_ECHOED),
    )


_ECHOED = {"prompt", "size", *OwnFields.model_fields}


def model_of(model: ServedModel) -> Model:
    """Return a model as clients read it."""
    values = model.model_dump(include={"id", "snapshot", "rate_fps", "seconds", "max_seconds"})
    return Model(created=int(model.created_at), size=_size(model), **values)


def _size(model: ServedModel) -> str:
    height, width = model.size_px
    return f"{width}x{height}"


async def parse(request: Request, max_bytes: int) -> Parsed:
    """Read and check the body of a request for a video.

    Raises:
        ApiError: 400, a field is wrong; 413; or 415, it is neither JSON nor multipart.
    """
    header = request.headers.get("content-type", "")
    kind, options = parse_options_header(header)
    if kind == b"application/json":
        return parse_json(await read_body(request, max_bytes))
    if kind == b"multipart/form-data":
        data = await read_body(request, max_bytes)
        return await _parse_form(data, options.get(b"boundary", b""))
    raise ApiError(415, "send application/json or multipart/form-data", "unsupported_media_type")


def parse_json(data: bytes | str) -> Parsed:
    """Return a body that is JSON.

    Raises:
        ApiError: 400, a field is wrong.
    """
    return _parsed(partial(CreateVideo.model_validate_json, data, strict=True))


async def _parse_form(data: bytes, boundary: bytes) -> Parsed:
    fields = await _form_fields(data, boundary)
    init = None
    if isinstance(fields.get("input_reference"), bytes):
        init = fields.pop("input_reference")
    if _REFERENCE_URL in fields:
        fields["input_reference"] = {"image_url": fields.pop(_REFERENCE_URL)}
    return _parsed(partial(CreateVideo.model_validate, fields), init)


def _parsed(validate: Callable[[], CreateVideo], init: bytes | None = None) -> Parsed:
    try:
        create = validate()
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from error
    if create.input_reference is None:
        return Parsed(create, init)
    if init is not None:
        raise _wrong("input_reference", "is given twice")
    return Parsed(create, _decode(create.input_reference.image_url))


async def _form_fields(data: bytes, boundary: bytes) -> dict[str, Any]:
    """Return the fields of a multipart body: text, or the bytes of a file."""
    # Starlette reads what is no UTF-8 as Latin-1: read everything so, then decode strictly.
    header = b'multipart/form-data; charset=latin-1; boundary="' + boundary + b'"'

    async def stream() -> AsyncGenerator[bytes]:
        yield data

    headers = Headers(raw=[(b"content-type", header)])
    parser = MultiPartParser(
        headers, stream(), max_files=1, max_fields=_MAX_FIELDS, max_part_size=len(data)
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise ApiError(400, "the body is no multipart form", "invalid_body") from error
    fields: dict[str, Any] = {}
    try:
        for raw_name, value in form.multi_items():
            name = _utf8(raw_name, "a field name")
            if name in fields:
                raise _wrong(name, "is given twice")
            fields[name] = _utf8(value, name) if isinstance(value, str) else await value.read()
    finally:
        await form.close()
    return fields


def _wrong(name: str, what: str) -> ApiError:
    return ApiError(400, f"{name} {what}", "invalid_value", param=name)


def _utf8(text: str, name: str) -> str:
    try:
        return text.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise _wrong(name, "is not UTF-8") from error


def _decode(url: str) -> bytes:
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except binascii.Error as error:
        raise _wrong("input_reference", "is no base64") from error


def invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the error of the first field that is wrong.

    Args:
        errors: of pydantic or FastAPI.
    """
    first = errors[0]
    path = [str(part) for part in first["loc"] if part not in {"query", "path", "header", "body"}]
    name, message = (path[0] if path else None), first["msg"]
    if first["type"] == "extra_forbidden":
        message = f"unknown field {name} ({did_you_mean(str(name), CreateVideo.model_fields)})"
    elif path:
        message = f"{'.'.join(path)}: {message}"
    return ApiError(400, message, "invalid_value", param=name)


def resolve(parsed: Parsed, models: Sequence[ServedModel]) -> VideoRequest:
    """Return the request with the defaults of its model.

    Args:
        parsed: the body.
        models: all that are loaded, at least one.

    Raises:
        ApiError: 400 or 404, the model does not exist or cannot do it.
        ConfigError: a prompt cannot be used.
    """
    create, init, init_tokenizer = parsed
    model = find_model(create.model, models)
    for text in (create.prompt, *(change.prompt for change in create.prompt_changes)):
        Prompt(prompt=text).row("prompt")
    if create.size not in {None, _size(model)}:
        raise _wrong("size", f"is not {_size(model)}, the one of {model.id}")
    seconds = create.seconds or model.seconds
    if seconds > model.max_seconds:
        raise _wrong("seconds", f"is above {model.max_seconds:g}, the most of {model.id}")
    scales = len(create.temperature) if isinstance(create.temperature, tuple) else model.num_scales
    if scales != model.num_scales:
        what = f"has {scales} values, {model.id} has {model.num_scales} scales"
        raise _wrong("temperature", what)
    if late := [change for change in create.prompt_changes if change.at_s >= seconds]:
        raise _wrong("prompt_changes", f"has {late[0].at_s:g} s, the video ends at {seconds:g} s")
    return VideoRequest(
        model=model.id,
        seconds=seconds,
        size=_size(model),
        init_sha256=None if init is None else sha256_hex(init),
        init_tokenizer=init_tokenizer,
        **create.model_dump(exclude={"model", "seconds", "size", "input_reference"}),
    )


def find_model(name: str | None, models: Sequence[ServedModel]) -> ServedModel:
    """Return a model by name; None for the first.

    Raises:
        ApiError: 404, there is none.
    """
    for model in models:
        if name in {None, model.id}:
            return model
    hint = did_you_mean(str(name), [model.id for model in models])
    raise ApiError(404, f"there is no model {name} ({hint})", "model_not_found", param="model")
