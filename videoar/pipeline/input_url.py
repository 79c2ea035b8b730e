"""What an input of a pipeline may be: a folder, a file of prompts, or a URL of a known kind.

Checked without access to files or network, so that `validate` and `run` agree.
"""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from videoar.core.printable import printable

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")  # with ://, as a path may contain a colon
_LOCAL_HOSTS = ("", "localhost")  # RFC 8089: both mean this machine
_KINDS = "a folder, a file of prompts, file://, s3://, rendered://, ref:// or snapshot://"
_NAMED = ("ref", "snapshot")
_OPTIONAL = "?optional=true"
Problem = tuple[str, str]
"""What is wrong, and what to do."""


class NamedInput(NamedTuple):
    """What an input `ref://NAME` or `snapshot://ID` names."""

    scheme: str
    name: str
    """As `Store.snapshot` takes it."""
    parents: tuple[str, ...]
    """Ports from which to go on: of `ref://champion/tokens/clips`, `tokens` of the champion, then
    `clips` of those tokens."""
    is_optional: bool
    """Whether the input is absent, instead of an error, if there is no such ref or snapshot."""


def named_input(url: str) -> NamedInput | None:
    """Return the ref or snapshot that an input names, None if it names neither."""
    match = _SCHEME.match(url)
    # schemes are case-insensitive (RFC 3986)
    if match is None or match[1].lower() not in _NAMED:
        return None
    name = url[match.end() :]
    is_optional = name.endswith(_OPTIONAL)
    name, *parents = name.removesuffix(_OPTIONAL).split("/")
    return NamedInput(match[1].lower(), name, tuple(parents), is_optional)


def input_problem(url: str) -> Problem | None:
    """Return what is wrong with an input; None if it can be tried. Never repeats a password."""
    if not url.strip():
        return "is empty", f"give {_KINDS}"
    if printable(url) != url:
        hint = "give it as a file:// URL with %XX in their place"
        return "contains control characters or bytes that are not UTF-8", hint
    match = _SCHEME.match(url)
    if match is None:
        return _path_problem(url)
    if (named := named_input(url)) is not None:
        return _named_problem(named)
    return _url_problem(match[1].lower(), url)


def _named_problem(named: NamedInput) -> Problem | None:
    scheme, name, parents, _ = named
    if any("?" in part for part in (name, *parents)):
        return f"has another option than {_OPTIONAL}", f"write {scheme}://NAME{_OPTIONAL}"
    if not name:
        return f"names no {scheme}", f"e.g. {scheme}://NAME"
    if not all(parents):
        return "names no parent after a /", f"e.g. {scheme}://{name}/tokenizer"
    return None


def _path_problem(path: str) -> Problem | None:
    if path.startswith("~"):
        return "~ is not expanded here", "write the whole path; ./~ for a folder of this name"
    if path.startswith("file:"):
        # read as a path, it would be a folder called `file:...` in the current directory
        return "is not a file URL", "write file:///absolute/path, or the path alone"
    return None


def _url_problem(scheme: str, url: str) -> Problem | None:
    try:
        parts = urlsplit(url)
    except ValueError as error:  # such as an IPv6 address without its ]
        return f"is not a URL: {error}", f"give {_KINDS}"
    if "@" in parts.netloc:
        # run records, logs and report pages would keep it
        hint = "credentials come from the environment or ~/.aws"
        return "contains a user name or password", hint
    if scheme == "file":
        return _file_problem(parts, url)
    if scheme == "s3":
        return None if parts.netloc else ("names no bucket", "write s3://bucket/prefix")
    return (
        None if scheme == "rendered" else (f"unknown kind of input {scheme}://", f"give {_KINDS}")
    )


def _file_problem(parts: SplitResult, url: str) -> Problem | None:
    if parts.netloc.lower() not in _LOCAL_HOSTS:
        return f"names the host {parts.netloc}", "write file:///absolute/path"
    if not parts.path:
        return "names no folder", "write file:///absolute/path"
    if "?" in url or "#" in url:
        # a URL ends its path there, and another folder would be read silently
        return "contains ? or #", "write %3F or %23, or the path without file://"
    return None


def absolute_input(url: str, directory: Path) -> str:
    """Return an input with a relative path resolved against a directory; URLs stay as they are."""
    return url if _SCHEME.match(url) else str(directory / url)
