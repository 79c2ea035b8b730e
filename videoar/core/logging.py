"""Log set-up for `cli` and `jobs`: text on a terminal, JSON lines elsewhere.

`log_context` adds fields (`run_id`, `stage`, `shard`, `rank`) to every record inside its block.
"""

import contextlib
import contextvars
import json
import logging
import sys
from collections.abc import Iterator

from videoar.core.printable import printable
from videoar.core.redact import redact

_context: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("videoar_log")


@contextlib.contextmanager
def log_context(**fields: str) -> Iterator[None]:
    """Add fields to every record logged inside the block."""
    token = _context.set({**_context.get({}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            **_context.get({}),
        }
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        where = "/".join(_context.get({}).values())
        text = f"{record.levelname.lower():7} {where + ': ' if where else ''}{record.getMessage()}"
        lines = [
            printable(redact(text))
        ]  # messages contain file names, and errors of other programs
        if record.exc_info:
            lines.append(printable(redact(self.formatException(record.exc_info)), keep="\n"))
        return "\n".join(lines)


def configure_logging(form: str, *, verbose: bool, quiet: bool = False) -> None:
    """Send `videoar` logs to stderr as `text` or `json` lines; `quiet` shows warnings only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    root = logging.getLogger("videoar")
    root.handlers[:] = [handler]
    level = logging.DEBUG if verbose else logging.INFO
    root.setLevel(logging.WARNING if quiet else level)
    root.propagate = False  # Ray and MLflow add handlers to the root logger: lines would double
