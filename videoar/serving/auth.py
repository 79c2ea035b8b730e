"""API keys: the server keeps their SHA-256 and never the keys.

A file of keys has a line per key, the digest and a name: `printf %s "$KEY" | sha256sum`. A plain
digest is enough for keys that are random (32 bytes from `openssl rand -hex 32`): nobody can try all
of them, unlike passwords.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from videoar.core.errors import ConfigError
from videoar.serving.errors import ApiError

_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})(\s+(?P<name>\S.*))?")


def read_keys(path: Path) -> dict[str, str]:
    """Return the keys of a file, digest to name.

    Raises:
        ConfigError: the file cannot be read, has no key, or has a line of another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "cannot be read", "give a text file of key digests") from error
    keys = {}
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        if not (found := _LINE.fullmatch(text)):
            what, hint = "is no SHA-256 in hex and a name", "printf %s KEY | sha256sum"
            raise ConfigError(f"{path}:{number}", what, hint)
        keys[found["digest"]] = found["name"] or found["digest"][:8]
    if not keys:
        raise ConfigError(str(path), "has no key", "an empty file would lock everybody out")
    return keys


def check_key(headers: Headers, keys: Mapping[str, str]) -> str:
    """Return the name of the key of a request.

    Raises:
        ApiError: 401, there is no key, or an unknown one.
    """
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise ApiError(401, "give an API key: Authorization: Bearer KEY", "missing_api_key")
    # how long the look-up takes says something of the digest, but nothing of the key
    name = keys.get(hashlib.sha256(key.strip().encode("utf-8", "replace")).hexdigest())
    if name is None:
        raise ApiError(401, "the API key is not known", "invalid_api_key")
    return name


def check_origin(headers: Headers) -> None:
    """Check that no page of another site makes a browser send the request.

    A server without keys on this machine is within reach of every page that its user opens.

    Raises:
        ApiError: 403, another site does.
    """
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise ApiError(403, "requests from pages of other sites are rejected", "cross_origin")
