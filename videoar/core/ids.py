"""Digests and ids: canonical JSON, SHA-256, and run ids that sort by time."""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterable

from videoar.core.types import Json

# Crockford's base 32: no i, l, o, u; its characters sort like the digits they stand for.
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_MAX_PART_BYTES = 200
"""chosen: a file name has at most 255 bytes, and keys add endings such as `.rejects` to names."""
_MAX_KEY_BYTES = 900
"""chosen: an S3 key has at most 1,024 bytes, with the prefix of the store and such endings."""
_RUN_ID = re.compile(f"[0-7][{_CROCKFORD}]{{17}}")
# 64 bits: among a million snapshots of one dataset, two collide with probability 3e-8
SHORT_DIGEST = 16
# NaN and infinity are no JSON: other parsers would reject the record
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_json(value: Json) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces; NaN is an error."""
    return _ENCODER.encode(value)


def sha256_hex(data: bytes | memoryview) -> str:
    """Return the SHA-256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Json) -> str:
    """Return the SHA-256 of a value's canonical JSON in hex."""
    return sha256_hex(canonical_json(value).encode())


def is_safe_key(name: str) -> bool:
    """Return whether a name from outside may become a part of a store key.

    Keys are paths in a folder store, so `../../etc` would address files outside of it. What comes
    before a colon is the dataset of a snapshot id, and becomes a folder of its own.
    """
    parts = [part.partition(":")[0] for part in name.split("/")]
    sizes = [len(part.encode(errors="surrogatepass")) for part in parts]
    is_short = max(sizes) <= _MAX_PART_BYTES and sum(sizes) + len(sizes) <= _MAX_KEY_BYTES
    return is_short and "\0" not in name and not {"", ".", ".."} & set(parts)


def new_run_id(after: Iterable[str] = ()) -> str:
    """Return a ULID-like id: 10 characters of milliseconds since 1970, 8 of randomness.

    Ids sort by time. If the clock was set back, the time of the newest earlier id plus 1 ms is used
    instead, so that "the latest run" stays the one that was created last.

    Args:
        after: ids that the new one must be greater than; ids of another form are ignored.
    """
    floor_ms = max((_time_ms(id_) for id_ in after if _RUN_ID.fullmatch(id_)), default=-1) + 1
    time_ms = max(int(time.time() * 1000), floor_ms)
    # 40 random bits separate runs that start in one millisecond
    number = (time_ms << 40) | secrets.randbits(40)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(85, -1, -5))


def run_time_s(run_id: str) -> float | None:
    """Return when a run id was made, seconds since 1970; None if it has another form."""
    return _time_ms(run_id) / 1000 if _RUN_ID.fullmatch(run_id) else None


def _time_ms(run_id: str) -> int:
    return sum(_CROCKFORD.index(c) << 5 * i for i, c in enumerate(reversed(run_id[:10])))


def seed_from(*parts: Json) -> int:
    """Derive a 63-bit seed from JSON values, the same on every machine and in every process."""
    # 63 bits: seeds are stored in int64 columns
    return int(digest_json(list(parts))[:16], 16) >> 1
