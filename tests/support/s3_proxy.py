"""An HTTP proxy before an S3 server that fails as a test tells it to."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Plan = Callable[[BaseHTTPRequestHandler], str]
"""Returns what happens to a request:

pass        it is passed on
503, ...    it is not passed on; the answer is this one of FAILURES
hang        it is not passed on; its connection is closed after a second
lost        it is passed on; its connection is closed
then 503    it is passed on; the answer is this one of FAILURES (412: only if it is conditional)
twice       it is passed on two times; the answer is that to the second
"""
FAILURES = {
    "403": (403, "AccessDenied"), "expired": (403, "ExpiredToken"),
    "412": (412, "PreconditionFailed"), "500": (500, "InternalError"),
    "503": (503, "ServiceUnavailable"), "slow": (503, "SlowDown"),
}  # fmt: skip


class S3Proxy:
    """A running proxy; `requests` has the method and path of each request that it got."""

    def __init__(self, backend: str) -> None:
        self.plan: Plan = lambda _: "pass"
        self.requests: list[tuple[str, str]] = []
        self._handler = type("Handler", (_Handler,), {"proxy": self})
        self.backend = urlsplit(backend).netloc
        self._server: ThreadingHTTPServer
        self.port, self.is_open = 0, False
        self.open()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        self._server.daemon_threads = True
        self.port, self.is_open = self._server.server_port, True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections, until `open`; those that are open get no answer."""
        self.is_open = False
        self._server.shutdown()
        self._server.server_close()

    def fail_for(self, seconds: float, fault: str = "503", share: float = 1.0) -> None:
        """Do `fault` to a share of all requests from now on for some seconds."""
        end, count = time.monotonic() + seconds, iter(range(1 << 30))

        def plan(_: BaseHTTPRequestHandler) -> str:
            number = next(count)
            is_hit = int((number + 1) * share) > int(number * share)
            return fault if is_hit and time.monotonic() < end else "pass"

        self.plan = plan

    def fail_first(self, fault: str, method: str, part: str = "") -> None:
        """Do `fault` to the first request of a method to each path that contains `part`."""
        seen: set[str] = set()

        def plan(request: BaseHTTPRequestHandler) -> str:
            path = request.path.partition("?")[0]
            is_meant = request.command == method and part in request.path and path not in seen
            seen.update([path] if is_meant else [])
            return fault if is_meant else "pass"

        self.plan = plan


@contextmanager
def s3_proxy(backend: str) -> Iterator[S3Proxy]:
    """Run a proxy before the endpoint `backend`."""
    proxy = S3Proxy(backend)
    try:
        yield proxy
    finally:
        proxy.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer has two writes
    proxy: S3Proxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.proxy.is_open:
            self.close_connection = True
            return
        self.proxy.requests.append((self.command, self.path))
        fault = self.proxy.plan(self)
        if fault == "then 412" and "If-None-Match" not in self.headers:
            fault = "pass"
        if fault in ("pass", "twice", "lost") or fault.startswith("then "):
            answer = self._pass_on(body)
        if fault == "twice":
            answer = self._pass_on(body)
        if fault in ("hang", "lost"):
            time.sleep(fault == "hang")
            self.close_connection = True
        elif fault in ("pass", "twice"):
            self._answer(*answer)
        else:
            self._fail(*FAILURES[fault.removeprefix("then ")])

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - http.server's names

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.backend)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        skipped = {"connection", "transfer-encoding", "server", "date"}
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in skipped]
        if "content-length" not in {k.lower() for k, _ in kept}:
            kept.append(("Content-Length", str(len(content))))
        return answer.status, kept, content

    def _fail(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told</Message></Error>"
        content = b"" if self.command == "HEAD" else text.encode()
        self._answer(status, [("Content-Length", str(len(content)))], content)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        with suppress(BrokenPipeError):  # the client has changed its mind
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
