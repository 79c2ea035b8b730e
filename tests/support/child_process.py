"""Child processes that a crash point or a test's own signal kills.

They are forked from a server that has imported the heavy modules once: starting Python with
pyarrow, Delta Lake and torch takes seconds, a fork milliseconds.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import get_context, util
from multiprocessing.process import BaseProcess

_CONTEXT = get_context("forkserver")
_PRELOADED = ["pytest", "deltalake", "pandas"]
util.get_temp_dir()  # now: with the TMPDIR of a test, the path of the server's socket is too long


def preload(module: str) -> None:
    """Import a module in the server, if it has not started yet, before it forks."""
    _PRELOADED.append(module)
    _CONTEXT.set_forkserver_preload(_PRELOADED)


def _call(
    function: Callable[..., object], arguments: tuple, environment: Mapping[str, str]
) -> None:
    # the server has the environment of the moment at which it started: without a test's credentials
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # so that TMPDIR counts
    function(*arguments)


def start(function: Callable[..., object], *arguments: object, **environment: str) -> BaseProcess:
    """Start a child that calls a function of a module, with variables added to its environment."""
    child = _CONTEXT.Process(
        target=_call, args=(function, arguments, {**os.environ, **environment})
    )
    child.start()
    return child


def exit_code(
    function: Callable[..., object], *arguments: object, timeout_s: float = 120, **environment: str
) -> int | None:
    """Call a function in a child; return its exit code, -9 if SIGKILL ended it."""
    child = start(function, *arguments, **environment)
    child.join(timeout_s)
    return child.exitcode
