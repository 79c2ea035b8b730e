"""The OpenAPI schema of what FastAPI cannot see: bodies that a route parses, and error answers."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from videoar.serving.errors import ErrorAnswer
from videoar.serving.wire import CreateVideo

_TEMPLATE = "#/components/schemas/{model}"
_RETRY = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
_MEANINGS = {
    400: "A field is wrong.",
    401: "The API key is missing or unknown.",
    403: "A page of another site made the browser send this.",
    404: "There is no such video or model.",
    408: "The body did not arrive in time.",
    409: "The state of the job does not allow it, or the idempotency key is taken.",
    413: "The body is too large.",
    415: "The body is neither JSON nor multipart.",
    429: "Too many requests, or the queue is full.",
    500: "Internal error.",
    503: "The store, the cluster or the model is not available, or the server ends.",
}
_FILE = {"type": "string", "format": "binary"}
REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": _TEMPLATE.format(model="CreateVideo")}},
            "multipart/form-data": {"schema": {"$ref": _TEMPLATE.format(model="CreateVideoForm")}},
        },
    }
}
"""Of `POST /v1/videos`."""
MP4: dict[int | str, dict[str, Any]] = {
    200: {"description": "OK", "content": {"video/mp4": {"schema": _FILE}}}
}
"""The answer with a video."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route, with those that every route has."""
    return {
        status: {
            "content": {"application/json": {"schema": {"$ref": _TEMPLATE.format(model="Error")}}},
            "description": _MEANINGS[status],
            **({"headers": _RETRY} if status in {429, 503} else {}),
        }
        for status in sorted({*statuses, 500})
    }


def _flat(field: dict[str, Any]) -> dict[str, Any] | None:
    """Return what of a field a form can hold; None if it is an object or a list."""
    options = [option for option in field.get("anyOf", [field]) if _is_flat(option)]
    if not [option for option in options if option.get("type") != "null"]:
        return None
    return field | {"anyOf": options} if "anyOf" in field else field


def _is_flat(option: dict[str, Any]) -> bool:
    return "$ref" not in option and option.get("type") not in {"array", "object"}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the schema of the API."""
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = schema["components"]["schemas"]
    body = CreateVideo.model_json_schema(ref_template=_TEMPLATE)
    components |= body.pop("$defs")
    # a form has no nested fields, but files
    fields = {name: field for name, value in body["properties"].items() if (field := _flat(value))}
    form = body | {"title": "CreateVideoForm", "properties": {**fields, "input_reference": _FILE}}
    error = ErrorAnswer.model_json_schema(ref_template=_TEMPLATE)
    components |= error.pop("$defs")
    components |= {"CreateVideo": body, "CreateVideoForm": form, "Error": error}
    # FastAPI documents its own form of validation errors, which this API answers with 400
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for content in operation["responses"]["200"]["content"].values():
                if "itemSchema" in content:  # of OpenAPI 3.2, but the document says 3.1
                    content["schema"] = content.pop("itemSchema")
    return schema
