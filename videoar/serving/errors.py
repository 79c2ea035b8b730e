"""Errors of the API, in the form that clients of the OpenAI API read."""

import math
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from videoar.core.errors import (
    ClusterUnknownError,
    ConfigError,
    SnapshotConflictError,
    SnapshotNotFoundError,
    StorageError,
    WithdrawnError,
    WorkerLostError,
)
from videoar.core.printable import printable

_RETRY_S = 5  # chosen: a store or a cluster that is restarted answers again after some seconds
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Body of every answer with a status of 400 or above."""

    error: ErrorBody


class ApiError(Exception):
    """An answer other than success.

    Args:
        status: of HTTP.
        message: for the user; without addresses, paths and secrets.
        code: for programs.
        param: field of the request that is wrong.
        retry_after_s: when the same request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        message = printable(str(self))
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def not_found(job_id: str) -> ApiError:
    """Return the error of an unknown job."""
    return ApiError(404, f"there is no video {job_id}", "video_not_found", param="video_id")


def as_api_error(error: Exception) -> ApiError:
    """Return the answer to an exception of the part that runs the jobs.

    What the client can change is named. What it cannot stays in the log: messages of the store name
    its address, and those of exceptions that nobody expected may hold anything.
    """
    match error:
        case ApiError():
            result = error
        case ConfigError():
            hint = f" ({error.hint})" if error.hint else ""
            result = ApiError(400, error.what + hint, "invalid_value", param=_param(error.where))
        case SnapshotConflictError():
            what = f"the idempotency key {error.what}"
            result = ApiError(409, what, "idempotency_conflict", param="Idempotency-Key")
        case SnapshotNotFoundError() | WithdrawnError():
            result = ApiError(404, "it was deleted or withdrawn", "not_found")
        case StorageError() | ClusterUnknownError() | WorkerLostError() | TimeoutError():
            what = "the store or the cluster does not answer; the same request may succeed later"
            result = ApiError(503, what, "unavailable", retry_after_s=_RETRY_S)
        case _:
            result = ApiError(500, "internal error; the log of the server has it", "internal_error")
    return result


def _param(where: str) -> str | None:
    name = where.partition("=")[0].strip()
    return name if name.isidentifier() else None
