"""The HTTP API: what it rejects, and what it answers when something behind it fails."""

import hashlib
import json
import struct
import threading
import zlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx2
import pytest

from tests.support.video_files import moving_noise, write_video
from tests.support.video_service import UNLIMITED, LiveServer, OneByOne
from videoar.core.errors import (
    ClusterUnknownError,
    ConfigError,
    DamagedError,
    TransientStorageError,
)
from videoar.serving.limits import Limits
from videoar.serving.server import ServerSettings

JSON = {"Content-Type": "application/json"}
ADDRESS = "s3://bucket:secret@host"


def form(*fields):
    """Return a multipart body of (name, value) pairs, values in bytes."""
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in fields
    ]
    return b"".join(parts) + b"--b--\r\n"


def as_json(**fields):
    return json.dumps({"prompt": "a circle", **fields}).encode()


JSON_CASES = {
    "no body": (b"", None),
    "no JSON": (b"{", None),
    "no object": (b"[]", None),
    "bytes that are not UTF-8": (b'{"prompt": "\xff\xfe"}', None),
    "half of a surrogate pair": (rb'{"prompt": "\ud800"}', None),
    "deeply nested": (b'{"prompt": ' + b"[" * 100_000, None),
    "no prompt": (b"{}", "prompt"),
    "empty prompt": (as_json(prompt=""), "prompt"),
    "blank prompt": (as_json(prompt=" \u3000 "), "prompt"),
    "long prompt": (as_json(prompt="x" * 4001), "prompt"),
    "NUL in the prompt": (as_json(prompt="a\0b"), "prompt"),
    "escape sequence in the prompt": (as_json(prompt="\x1b[2Ja"), "prompt"),
    "line break in the prompt": (as_json(prompt="a\nb"), "prompt"),
    "reversed text in the prompt": (as_json(prompt="a\u202eb"), "prompt"),
    "prompt is a number": (as_json(prompt=1), "prompt"),
    "unknown field": (as_json(negative_prompt="x"), "negative_prompt"),
    "zero seconds": (as_json(seconds=0), "seconds"),
    "negative seconds": (as_json(seconds=-1), "seconds"),
    "NaN seconds": (as_json(seconds=float("nan")), "seconds"),
    "endless": (as_json(seconds=float("inf")), "seconds"),
    "too many seconds": (as_json(seconds=1e9), "seconds"),
    "seconds in words": (as_json(seconds="four"), "seconds"),
    "seconds true": (as_json(seconds=True), "seconds"),
    "other size": (as_json(size="1x1"), "size"),
    "size in words": (as_json(size="large"), "size"),
    "negative seed": (as_json(seed=-1), "seed"),
    "seed of 65 bits": (as_json(seed=2**64), "seed"),
    "fractional seed": (as_json(seed=0.5), "seed"),
    "unknown guidance": (as_json(guidance="strong"), "guidance"),
    "NaN guidance": (as_json(guidance=float("nan")), "guidance"),
    "zero temperature": (as_json(temperature=0), "temperature"),
    "temperatures of another model": (as_json(temperature=[1, 1]), "temperature"),
    "negative temperature of a scale": (as_json(temperature=[1, -1, 1]), "temperature"),
    "interval from its end": (as_json(guidance_interval=[1, 0]), "guidance_interval"),
    "interval of one": (as_json(guidance_interval=[1]), "guidance_interval"),
    "threshold zero": (as_json(apg={"norm_threshold": 0}), "apg"),
    "greedy in words": (as_json(greedy="yes"), "greedy"),
    "reference by id": (as_json(input_reference={"file_id": "f"}), "input_reference"),
    "reference by address": (
        as_json(input_reference={"image_url": "http://169.254.169.254/"}), "input_reference",
    ),
    "reference to a file": (
        as_json(input_reference={"image_url": "file:///etc/passwd"}), "input_reference",
    ),
    "reference is no base64": (
        as_json(input_reference={"image_url": "data:image/png;base64,*"}), "input_reference",
    ),
    "reference is no image": (
        as_json(input_reference={"image_url": "data:image/png;base64,AAAA"}), "input_reference",
    ),
    "change before the start": (
        as_json(prompt_changes=[{"at_s": 0, "prompt": "b"}]), "prompt_changes",
    ),
    "change after the end": (
        as_json(seconds=1, prompt_changes=[{"at_s": 1, "prompt": "b"}]), "prompt_changes",
    ),
    "change to nothing": (
        as_json(prompt_changes=[{"at_s": 0.5, "prompt": "\x00"}]), "prompt",
    ),
    "zero deadline": (as_json(deadline_s=0), "deadline_s"),
}  # fmt: skip


def require_error(answer, status, param=None, code=None):
    """Check form and content of an error, and that it tells nothing of the server."""
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert sorted(error) == ["code", "message", "param", "type"]
    assert code is None or error["code"] == code
    assert error["message"].isprintable()
    for secret in ("Traceback", ADDRESS, "secret", "/tmp", "site-packages"):
        assert secret not in answer.text
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("name", JSON_CASES)
def test_create_bad_json_error_names_the_field(http, name):
    body, param = JSON_CASES[name]
    answer = http.post("/v1/videos", content=body, headers=JSON)
    require_error(answer, 400, param)


FORM_CASES = {
    "no parts": (b"", "prompt"),
    "no end": (b"--b\r\nContent-Disposition: form-data; name=", "prompt"),
    "no form": (b"{}", None),
    "prompt that is not UTF-8": (form(("prompt", b"\xff\xfe")), "prompt"),
    "Latin-1": (form(("prompt", "caf\u00e9".encode("latin-1"))), "prompt"),
    "prompt twice": (form(("prompt", b"a"), ("prompt", b"b")), "prompt"),
    "unknown field": (form(("prompt", b"a"), ("n", b"2")), "n"),
    "nameless field": (form(("prompt", b"a"), ("", b"2")), ""),
    "seed in words": (form(("prompt", b"a"), ("seed", b"one")), "seed"),
    "NaN": (form(("prompt", b"a"), ("temperature", b"nan")), "temperature"),
    "reference as text": (form(("prompt", b"a"), ("input_reference", b"x")), "input_reference"),
    "1000 fields": (form(*((f"f{i}", b"") for i in range(1000))), None),
}


@pytest.mark.parametrize("name", FORM_CASES)
def test_create_bad_form_error_names_the_field(http, name):
    body, param = FORM_CASES[name]
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    require_error(http.post("/v1/videos", content=body, headers=headers), 400, param)


def test_create_utf8_form_prompt_is_kept(http):
    text = "caf\u00e9 \u4e2d <b>&"
    body = form(("prompt", text.encode()), ("seconds", b"0.5"), ("seed", b"7"), ("greedy", b"true"))
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    job = http.post("/v1/videos", content=body, headers=headers).json()
    assert (job["prompt"], job["seconds"], job["seed"], job["greedy"]) == (text, "0.5", 7, True)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "\xff"])
def test_create_other_content_type_is_rejected(http, kind):
    headers = {"Content-Type": kind.encode("latin-1")}
    require_error(http.post("/v1/videos", content=b"prompt=a", headers=headers), 415)


def test_create_large_body_is_rejected_with_and_without_a_length(http):
    body = as_json(prompt="x" * (2 << 20))
    require_error(http.post("/v1/videos", content=body, headers=JSON), 413)
    chunks = (body[i : i + 65536] for i in range(0, len(body), 65536))
    require_error(http.post("/v1/videos", content=chunks, headers=JSON), 413)


def _png_header(width, height):
    """Return an image that claims a size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


INIT_CASES = {
    "empty": b"",
    "text": b"no image",
    "a page": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "a playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "pixels of 10 GB": _png_header(60_000, 60_000),
    "no pixels": _png_header(64, 64),
}


@pytest.mark.slow  # a process each
@pytest.mark.parametrize("name", [*INIT_CASES, "half an image", "a long video"])
def test_create_bad_input_reference_is_rejected(http, png, tmp_path, name):
    if name == "half an image":
        data = png[: len(png) // 2]
    elif name == "a long video":
        path = write_video(tmp_path / "long.mp4", moving_noise(40, size=(32, 32)), 8.0)
        data = path.read_bytes()
    else:
        data = INIT_CASES[name]
    files = {"input_reference": ("start", data), "prompt": (None, "a circle")}
    jobs = http.get("/v1/videos").json()
    require_error(http.post("/v1/videos", files=files), 400, "input_reference")
    assert http.get("/v1/videos").json()["first_id"] == jobs["first_id"]


def test_create_unknown_model_names_the_known_ones(http):
    answer = http.post("/v1/videos", content=as_json(model="champio"), headers=JSON)
    require_error(answer, 404, "model", "model_not_found")
    assert "did you mean champion?" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["", "/content", "/events", "/lineage"])
@pytest.mark.parametrize("id_", ["video_" + "0" * 32, "video_0", "..%2f..%2fformat", "\u00e9"])
def test_get_unknown_video_is_404(http, id_, path):
    param = None if "/" in unquote(id_) else "video_id"
    require_error(http.get(f"/v1/videos/{id_}{path}"), 404, param)


def test_delete_unknown_video_is_404(http):
    require_error(http.delete("/v1/videos/video_0"), 404, "video_id", "video_not_found")


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order")],
)
def test_list_bad_query_error_names_it(http, query, param):
    require_error(http.get(f"/v1/videos?{query}"), 400, param)


def test_list_after_unknown_video_is_404(http):
    require_error(http.get("/v1/videos?after=video_0"), 404, "video_id")


def test_unknown_path_and_method_have_the_form_of_errors(http):
    require_error(http.get("/v1/chat/completions"), 404)
    answer = http.put("/v1/videos")
    require_error(answer, 405)
    assert answer.headers["allow"] == "GET, POST"


def test_content_variant_thumbnail_is_rejected(http):
    job = http.post("/v1/videos", content=as_json(), headers=JSON).json()
    require_error(http.get(f"/v1/videos/{job['id']}/content?variant=thumbnail"), 400, "variant")


def test_idempotency_key_same_request_same_job(http):
    headers = {**JSON, "Idempotency-Key": "k1"}
    first, second = (
        http.post("/v1/videos", content=as_json(), headers=headers).json() for _ in range(2)
    )
    assert first["id"] == second["id"]
    answer = http.post("/v1/videos", content=as_json(seed=1), headers=headers)
    require_error(answer, 409, "Idempotency-Key", "idempotency_conflict")


@pytest.mark.parametrize("key", ["", "x" * 256, "\u00e9", "\x01"])
def test_idempotency_key_bad_is_rejected(http, key):
    headers = {**JSON, "Idempotency-Key": key.encode("latin-1")}
    try:
        answer = http.post("/v1/videos", content=as_json(), headers=headers)
    except httpx2.LocalProtocolError:
        return  # no such header can be sent
    assert answer.status_code == 400


def test_other_site_requests_are_rejected(http):
    headers = {**JSON, "Origin": "https://example.com"}
    answer = http.post("/v1/videos", content=as_json(), headers=headers)
    require_error(answer, 403, code="cross_origin")
    own = {**JSON, "Origin": str(http.base_url).rstrip("/")}
    assert http.post("/v1/videos", content=as_json(), headers=own).status_code == 200


@pytest.fixture
def serve(served_store, loaded):
    """Return a function that starts a server and returns it and a client."""
    entered = []

    def start(service=None, headers=None, **settings):
        service = service or OneByOne(served_store, loaded)
        limits = settings.pop("limits", UNLIMITED)
        server = LiveServer(service, ServerSettings(limits=limits, **settings)).__enter__()
        client = httpx2.Client(
            base_url=server.url, verify=False, headers={**JSON, **(headers or {})}
        )
        entered.append((server, client))
        return server.app.state.server, client

    yield start
    for server, client in entered:
        client.close()
        server.__exit__()


def test_keys_only_known_ones_are_let_in(serve):
    _, client = serve(keys={hashlib.sha256(b"right").hexdigest(): "one"})
    for value in ("", "Bearer", "Bearer  wrong", "Bearer wrong", "Basic right", "right"):
        answer = client.get("/v1/videos", headers={"Authorization": value})
        require_error(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/videos", headers={"Authorization": "Bearer right"}).is_success
    assert client.get("/healthz").is_success


def test_rate_limit_429_until_retry_after(serve):
    _, client = serve(limits=Limits(requests_per_s=1, burst=3))
    answers = [client.get("/v1/models") for _ in range(4)]
    assert [answer.status_code for answer in answers[:3]] == [200, 200, 200]
    require_error(answers[3], 429, code="rate_limit_exceeded")
    assert answers[3].headers["retry-after"] == "1"
    assert client.get("/readyz").is_success


def test_full_queue_429_then_accepted_jobs_finish(serve, served_store, loaded):
    gate = threading.Event()
    _, client = serve(OneByOne(served_store, loaded, gate), limits=Limits(max_queue=2))
    answers = [client.post("/v1/videos", content=as_json()) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    require_error(answers[-1], 429, code="queue_full")
    assert int(answers[-1].headers["retry-after"]) >= 1
    gate.set()
    with client.stream("GET", f"/v1/videos/{answers[2].json()['id']}/events") as events:
        assert "event: done" in "".join(events.iter_text())
    assert client.post("/v1/videos", content=as_json()).is_success


def test_draining_503_for_new_jobs_only(serve):
    server, client = serve()
    server.draining = True
    answer = client.post("/v1/videos", content=as_json())
    require_error(answer, 503, code="draining")
    assert answer.headers["retry-after"]
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").is_success
    assert client.get("/v1/videos").is_success


def test_loading_503_until_ready(serve, served_store, loaded):
    service = OneByOne(served_store, loaded)
    service.ready = False
    _, client = serve(service)
    assert client.get("/readyz").status_code == 503
    require_error(client.post("/v1/videos", content=as_json()), 503, code="not_ready")


class Failing(OneByOne):
    """Fails as it is told, after the readiness has been asked."""

    error: Exception

    async def create(self, *_):
        raise self.error

    async def get(self, _):
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TransientStorageError(ADDRESS, "does not answer"), 503),
        (DamagedError(ADDRESS, "is damaged"), 503),
        (ClusterUnknownError("ray://secret:1", "does not answer"), 503),
        (ConfigError("guidance", "cannot be used"), 400),
        (TimeoutError(), 503),
        (RuntimeError(ADDRESS), 500),
        (MemoryError(), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_failing_service_answers_without_its_address(
    serve, served_store, loaded, caplog, error, status
):
    service = Failing(served_store, loaded)
    service.error = error
    _, client = serve(service)
    param = "guidance" if status == 400 else None
    require_error(client.post("/v1/videos", content=as_json()), status, param)
    answer = client.get("/v1/videos/video_" + "0" * 32)
    require_error(answer, status, param)
    assert ("retry-after" in answer.headers) == (status == 503)
    logged = [record.message for record in caplog.records if record.exc_info]
    assert len(logged) == 2 * (status >= 500)
    assert all(line.startswith("req_") for line in logged)
    assert not logged or answer.headers["x-request-id"] in logged[-1]


def test_store_gone_503_until_it_is_back(serve_copy):
    with (
        serve_copy(ServerSettings(limits=UNLIMITED)) as server,
        httpx2.Client(base_url=server.url, verify=False, headers=JSON) as client,
    ):
        before = client.post("/v1/videos", content=as_json()).json()
        with client.stream("GET", f"/v1/videos/{before['id']}/events") as events:
            events.read()
        folder = Path(urlsplit(server.store.url).path)
        folder.rename(folder.with_name("away"))
        folder.write_text("no folder")
        answer = client.post("/v1/videos", content=as_json())
        require_error(answer, 503, code="unavailable")
        assert answer.headers["retry-after"]
        # a folder without a file and no folder are the same to a reader
        answer = client.get(f"/v1/videos/{before['id']}/content")
        require_error(answer, 404, "video_id")
        assert client.get("/healthz").is_success
        folder.unlink()
        folder.with_name("away").rename(folder)
        assert client.post("/v1/videos", content=as_json()).is_success
        assert client.get(f"/v1/videos/{before['id']}/content").is_success


def test_request_id_of_a_proxy_is_left_to_it(http):
    assert http.get("/v1/models").headers["x-request-id"].startswith("req_")
    answer = http.get("/v1/models", headers={"x-request-id": "of the proxy"})
    assert "x-request-id" not in answer.headers


@pytest.mark.slow
def test_slow_body_408(serve):
    _, client = serve(limits=Limits(timeout_s=0.3))
    released = threading.Event()

    def trickle():
        yield b"{"
        released.wait(1)
        yield b"}"

    require_error(client.post("/v1/videos", content=trickle()), 408)
    released.set()
