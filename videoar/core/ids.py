"""Digests and ids: canonical JSON, SHA-256, and run ids that sort by time."""

import hashlib
import json
import secrets
import time

from videoar.core.types import Json

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
SHORT_DIGEST = 16


def canonical_json(value: Json) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_hex(data: bytes | memoryview) -> str:
    """Return the SHA-256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Json) -> str:
    """Return the SHA-256 of a value's canonical JSON in hex."""
    return sha256_hex(canonical_json(value).encode())


def new_run_id() -> str:
    """Return a ULID-like id: 10 characters of milliseconds, 8 of randomness; sorts by time."""
    number = (int(time.time() * 1000) << 40) | secrets.randbits(40)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(85, -1, -5))


def seed_from(*parts: Json) -> int:
    """Derive a 63-bit seed from JSON values, the same on every machine and in every process."""
    return int(digest_json(list(parts))[:16], 16) >> 1
