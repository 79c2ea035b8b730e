"""A bucket of AWS or any other S3 server as an object store.

Conditional writes are single `PutObject` requests: Ceph 16 ignores `If-None-Match` on
`CompleteMultipartUpload`, and versioned buckets of some servers ignore it everywhere. So large
objects are uploaded under content-hash keys, and a small conditional record publishes them.
"""

import contextlib
import io
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar

from videoar.core.errors import StorageError, ThrottledError, TransientStorageError, one_line
from videoar.core.settings import settings
from videoar.storage.object_store import (
    MULTIPART_BYTES,
    PIECE_BYTES,
    STALE_TEMP_S,
    ObjectInfo,
    missing_error,
    read_exactly,
)
from videoar.storage.s3_client import (
    EXPIRED,
    TRANSIENT_STATUS,
    connect,
    credentials_error,
    is_final,
    retry_policy,
)

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from botocore.response import StreamingBody

T = TypeVar("T")
_Body: TypeAlias = "StreamingBody | io.BytesIO"
_NO_CREDENTIALS = ("no AWS credentials", "set AWS_ACCESS_KEY_ID or AWS_PROFILE")
_ATTEMPT = "attempt"  # metadata of an object: which call has written it


def _read_all(body: _Body) -> bytes:
    data: bytes = body.read()
    return data


def _read_into(target: memoryview, url: str, key: str, body: _Body) -> None:
    read_exactly(target, body.readinto, f"{url}/{key}")


class S3ObjectStore:
    """A bucket and prefix on AWS or any S3 server; credentials from the standard AWS chain.

    Args:
        bucket: its name.
        prefix: of all keys.
        endpoint: S3 server other than AWS.
        wait_s: how long a request waits for a server that does not answer; None: the setting
            `store_wait_s`.
    """

    is_local = False

    def __init__(
        self, bucket: str, prefix: str, endpoint: str = "", wait_s: float | None = None
    ) -> None:
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._wait_s = settings().store_wait_s if wait_s is None else wait_s
        self._connection = connect(endpoint, bucket, self._wait_s)
        self._client, self._endpoint = self._connection.client, self._connection.endpoint

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by address: every process opens its own connections and credentials."""
        address = (self._bucket, self._prefix.rstrip("/"), self._endpoint)
        return S3ObjectStore, (*address, self._wait_s)

    @property
    def unavailable_s(self) -> float:
        """For how long all requests of this process have failed; 0 if the newest was answered."""
        return self._connection.availability.unavailable_s

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from botocore import exceptions

        try:
            yield
        except exceptions.ClientError as error:
            # HEAD responses have no body, so their code is "404" and never "NoSuchKey"
            if _code(error) == "NoSuchKey":
                raise missing_error(self, key) from None
            raise _client_error(f"{self.url}/{key}", self._bucket, error) from error
        except exceptions.NoCredentialsError as error:
            raise StorageError(self.url, *_NO_CREDENTIALS) from error
        except (
            exceptions.HTTPClientError,
            exceptions.ConnectionError,
            exceptions.IncompleteReadError,
        ) as error:
            where = self._endpoint or self.url
            if is_final(error):
                hint = "check the certificates of this machine and of the endpoint"
                raise StorageError(where, one_line(error), hint) from error
            hint = "check the network and VIDEOAR_S3_ENDPOINT"
            raise TransientStorageError(where, "the S3 endpoint does not respond", hint) from error
        except exceptions.CredentialRetrievalError as error:
            raise credentials_error(error) from error
        except exceptions.BotoCoreError as error:
            raise StorageError(self.url, one_line(error)) from error

    def _call(self, operation: str, key: str, **arguments: object) -> dict[str, Any]:
        return getattr(self._client, operation)(  # type: ignore[no-any-return]
            Bucket=self._bucket, Key=self._prefix + key, **arguments
        )

    def find(self, key: str) -> bytes | None:
        """GET the object, if it exists."""
        with self._errors(key):
            try:
                return self._read(key, _read_all)
            except self._client.exceptions.NoSuchKey:
                return None

    def get(self, key: str) -> bytes:
        """GET the object."""
        with self._errors(key):
            return self._read(key, _read_all)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """GET a range."""
        with self._errors(key):
            return self._read(key, _read_all, (start, length))

    def read_into(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> None:
        """GET each range, one after the other."""
        with self._errors(key):
            for start, target in spans:
                self._read(key, partial(_read_into, target, self.url, key), (start, len(target)))

    def _read(self, key: str, read: Callable[[_Body], T], span: tuple[int, int] | None = None) -> T:
        """GET an object, or (start, length) of it, and read the body.

        Retries a connection that breaks in the body: botocore's own retries end with the headers.
        """
        from botocore import exceptions as s3

        broken = (s3.ResponseStreamingError, s3.IncompleteReadError, s3.ReadTimeoutError)
        return retry_policy(self._wait_s).call(
            lambda: read(self._body(key, span)), lambda e: isinstance(e, broken)
        )

    def _body(self, key: str, span: tuple[int, int] | None) -> _Body:
        """GET; the body is empty if the span starts after the end of the object.

        Raises:
            StorageError: the response is another range than the requested one.
        """
        from botocore.exceptions import ClientError

        if span is None:
            return self._call("get_object", key)["Body"]
        start, length = span
        try:
            answer = self._call("get_object", key, Range=f"bytes={start}-{start + length - 1}")
        except ClientError as error:
            if _code(error) not in {"InvalidRange", "416"}:
                raise
            return io.BytesIO()  # like pread at the end of a file
        # a proxy that ignores Range answers 200 with the whole object: its first bytes would be
        # mistaken for those of the range
        begin, *_ = answer.get("ContentRange", "bytes 0-").removeprefix("bytes ").split("-")
        if begin != str(start) or answer["ContentLength"] > length:
            what = f"requested {length} bytes from {start}, the response has another range"
            raise StorageError(f"{self.url}/{key}", what, "check for a proxy that ignores Range")
        return answer["Body"]

    def read_cached(self, key: str, spans: Sequence[tuple[int, memoryview]]) -> bool:  # noqa: ARG002 - there is no cache
        """Return False: there is no page cache of a bucket."""
        return False

    def stream(self, key: str) -> Iterator[bytes]:
        """GET the object in pieces, for objects larger than memory.

        Raises:
            StorageError: there is no such object.
            TransientStorageError: the connection broke.
        """
        with self._errors(key):
            yield from self._call("get_object", key)["Body"].iter_chunks(PIECE_BYTES)

    def put(self, key: str, data: bytes | memoryview, *, if_absent: bool = False) -> bool:
        """PUT in one request; large unconditional puts are multipart uploads."""
        with self._errors(key):
            if if_absent:
                return self._put_if_absent(key, data)
            if len(data) > MULTIPART_BYTES:
                self._put_parts(key, io.BytesIO(data))
            else:
                # bytes: botocore accepts no memoryview
                self._call("put_object", key, Body=bytes(data))
        return True

    def _put_if_absent(self, key: str, data: bytes | memoryview) -> bool:
        from botocore.exceptions import ClientError

        attempt = secrets.token_hex(8)
        try:
            metadata = {_ATTEMPT: attempt}
            self._call("put_object", key, Body=bytes(data), IfNoneMatch="*", Metadata=metadata)
        except ClientError as error:
            if _code(error) not in {"PreconditionFailed", "412"}:
                raise
            # of this request's own first copy, if its answer was lost, or a proxy has repeated it?
            head = self._head(key)
            if head is None:
                what = "rejected because it exists, but there is no such object"
                hint = "check for a proxy that answers for the S3 server"
                raise TransientStorageError(f"{self.url}/{key}", what, hint) from error
            return bool(head["Metadata"].get(_ATTEMPT) == attempt)
        return True

    def put_file(self, key: str, path: Path) -> None:
        """PUT as a multipart upload, a few parts in memory at a time."""
        with self._errors(key), path.open("rb") as file:
            self._put_parts(key, file)

    def _put_parts(self, key: str, file: BinaryIO) -> None:
        from boto3.s3.transfer import TransferConfig

        # twice the default part size: half the requests
        config = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=16 << 20)
        self._client.upload_fileobj(file, self._bucket, self._prefix + key, Config=config)

    def size(self, key: str) -> int | None:
        """HEAD the object."""
        head = self._head(key)
        return None if head is None else int(head["ContentLength"])

    def age_s(self, key: str) -> float | None:
        """HEAD the object; compare with the date of the response."""
        head = self._head(key)
        if head is None:
            return None
        now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
        age: timedelta = now - head["LastModified"]
        return age.total_seconds()

    def written_at(self, key: str) -> float | None:
        """HEAD the object; whole seconds."""
        head = self._head(key)
        return None if head is None else float(head["LastModified"].timestamp())

    def _head(self, key: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        with self._errors(key):
            try:
                head: dict[str, Any] = self._call("head_object", key)
            except ClientError as error:
                if _code(error) == "404":
                    return None
                raise
        return head

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """LIST page by page."""
        pages = self._client.get_paginator("list_objects_v2")
        start = {"StartAfter": self._prefix + after} if after else {}
        with self._errors(prefix):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, **start):
                for item in page.get("Contents", ()):
                    key = item["Key"].removeprefix(self._prefix)
                    yield ObjectInfo(key, item["Size"], item.get("ETag", "").strip('"'))

    def folders(self, prefix: str) -> Iterator[str]:
        """LIST with a delimiter, page by page: a thousand folders each."""
        pages = self._client.get_paginator("list_objects_v2")
        start = self._prefix + prefix
        with self._errors(prefix):
            for page in pages.paginate(Bucket=self._bucket, Prefix=start, Delimiter="/"):
                for item in page.get("CommonPrefixes", ()):
                    yield item["Prefix"].removeprefix(start).rstrip("/")

    def delete(self, key: str) -> None:
        """DELETE the object."""
        with self._errors(key):
            self._call("delete_object", key)

    def purge(self, key: str) -> None:
        """DELETE every version: in a versioned bucket a plain DELETE only hides the object."""
        self._delete_versions(key, lambda item: item["Key"] == self._prefix + key)

    def purge_older(self, prefix: str) -> None:
        """DELETE the versions that newer ones have replaced."""
        self._delete_versions(prefix, lambda item: not item["IsLatest"])

    def sweep(self, stale_s: float = STALE_TEMP_S) -> None:
        """Abort multipart uploads that are older than `stale_s`.

        Their age is the only sign that a writer was killed. A lifecycle rule of the bucket
        (AbortIncompleteMultipartUpload) does the same after days.
        """
        before = datetime.now(UTC) - timedelta(seconds=stale_s)
        pages = self._client.get_paginator("list_multipart_uploads")
        with self._errors(""):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for item in page.get("Uploads", ()):
                    if item["Initiated"] < before:
                        key = item["Key"].removeprefix(self._prefix)
                        self._call("abort_multipart_upload", key, UploadId=item["UploadId"])

    def _delete_versions(self, prefix: str, matches: Callable[[dict[str, Any]], bool]) -> None:
        pages = self._client.get_paginator("list_object_versions")
        with self._errors(prefix):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                # delete markers, too: they have the key, which may name a source
                for item in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]:
                    if matches(item):
                        key = item["Key"].removeprefix(self._prefix)
                        self._call("delete_object", key, VersionId=item["VersionId"])

    def location(self, key: str) -> str:
        """Return the `s3://` address."""
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def options(self) -> dict[str, str]:
        """Return endpoint, region, how long to wait, and credentials, which may expire."""
        credentials = self._connection.session.get_credentials()
        if credentials is None:
            raise StorageError(self.url, *_NO_CREDENTIALS)
        # frozen: key, secret and token of one moment; refreshed credentials change all three
        frozen = credentials.get_frozen_credentials()
        options = {
            "AWS_ACCESS_KEY_ID": frozen.access_key,
            "AWS_SECRET_ACCESS_KEY": frozen.secret_key,
            "AWS_SESSION_TOKEN": frozen.token,
            "AWS_REGION": self._client.meta.region_name,
            # both: the second would be read from the environment, and come first
            "AWS_ENDPOINT_URL": self._endpoint,
            "AWS_ENDPOINT_URL_S3": self._endpoint,
            # object_store of Rust, which delta-rs uses, rejects http:// by default
            "AWS_ALLOW_HTTP": "true" if self._endpoint.startswith("http://") else "",
            "max_retries": "1000000",  # the time ends them
            "retry_timeout": f"{round(self._wait_s * 1000)}ms",
            "backoff_config.max_backoff": "5s",
        }
        return {name: value for name, value in options.items() if value}


def _code(error: "ClientError") -> str:
    return str(error.response["Error"].get("Code", ""))


_THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
_DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", *EXPIRED}


def _client_error(where: str, bucket: str, error: "ClientError") -> StorageError:
    code, status = _code(error), error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return StorageError(f"s3://{bucket}", "no such bucket", "create it, or fix the store URL")
    if code in _DENIED:
        return StorageError(
            where, f"access denied ({code})", "check the AWS credentials and policy"
        )
    if status == 429 or code in _THROTTLED:
        return ThrottledError(where, f"the S3 server answered {code}")
    if status in TRANSIENT_STATUS:
        return TransientStorageError(where, f"the S3 server answered {code}")
    what = error.response["Error"].get("Message", "")
    return StorageError(where, f"the S3 server answered {code}: {what}")
