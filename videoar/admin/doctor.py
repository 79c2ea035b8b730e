"""`doctor`: is this machine and this store fit to be trusted with a run?"""

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
    """One question and its answer."""

    name: str
    ok: bool
    detail: str


def diagnose(store: Store) -> list[Check]:
    """Ask all questions; none of them stops the others."""
    questions: dict[str, Callable[[], str]] = {
        "store: put-if-absent under a race": lambda: _race(store),
        "store: write, read, delete": lambda: _round_trip(store),
        "ffmpeg": lambda: _binary("ffmpeg"),
        "ffprobe": lambda: _binary("ffprobe"),
        "packages": lambda: ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }
    return [_ask(name, question) for name, question in questions.items()]


def _ask(name: str, question: Callable[[], str]) -> Check:
    try:
        return Check(name=name, ok=True, detail=question())
    except (VideoARError, ImportError) as error:
        return Check(name=name, ok=False, detail=str(error))


def _race(store: Store) -> str:
    winners = race(store.objects)
    if any(count != 1 for count in winners):
        raise StorageError(store.url, f"{max(winners)} racing writers won at once", "use another")
    return f"one winner in each of {len(winners)} rounds"


def _round_trip(store: Store) -> str:
    store.objects.put(ROUND_TRIP_KEY, b"videoar")
    same = store.objects.get(ROUND_TRIP_KEY) == b"videoar"
    store.objects.delete(ROUND_TRIP_KEY)
    if not same:
        raise ConfigError(store.url, "reads back other bytes than were written")
    return store.url


def _binary(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ConfigError(name, "not on PATH", "apt install ffmpeg")
    return found
