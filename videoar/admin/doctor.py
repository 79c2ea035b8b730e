"""Check that this machine and this store can execute a run."""

import shutil
from collections.abc import Callable
from importlib.metadata import version

from videoar.core.errors import ConfigError, StorageError, VideoARError
from videoar.core.types import Frozen
from videoar.storage.conformance import race
from videoar.storage.layout import ROUND_TRIP_KEY
from videoar.storage.store import Store

_PACKAGES = (
    "av",
    "boto3",
    "dask",
    "deltalake",
    "great-expectations",
    "mlflow",
    "pyarrow",
    "ray",
    "torch",
)


class Check(Frozen):
    """One check and its result."""

    name: str
    ok: bool
    detail: str


def diagnose(store: Store) -> list[Check]:
    """Check this machine and the store; a failed check does not stop the others."""
    checks: dict[str, Callable[[], str]] = {
        "store: put-if-absent under a race": lambda: _race(store),
        "store: write, read, delete": lambda: _round_trip(store),
        "ffmpeg": lambda: _binary("ffmpeg"),
        "ffprobe": lambda: _binary("ffprobe"),
        "packages": lambda: ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }
    return [_run(name, check) for name, check in checks.items()]


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, detail=check())
    except (VideoARError, ImportError) as error:  # PackageNotFoundError is an ImportError
        return Check(name=name, ok=False, detail=str(error))


def _race(store: Store) -> str:
    winners = race(store.objects)
    if any(count != 1 for count in winners):
        raise StorageError(
            store.url, f"{max(winners)} concurrent writers won the same key", "use another store"
        )
    return f"one winner in each of {len(winners)} rounds"


def _round_trip(store: Store) -> str:
    store.objects.put(ROUND_TRIP_KEY, b"videoar")
    is_equal = store.objects.get(ROUND_TRIP_KEY) == b"videoar"
    store.objects.delete(ROUND_TRIP_KEY)
    if not is_equal:
        raise ConfigError(store.url, "returns other bytes than those written", "use another store")
    return store.url


def _binary(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ConfigError(name, "not on PATH", "apt install ffmpeg")
    return path
