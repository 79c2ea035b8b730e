"""Check that this machine and this store can execute a run, and which metrics it can compute."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from itertools import chain

from videoar.contracts.names import MODELS
from videoar.core.errors import ConfigError, StorageError, VideoARError
from videoar.core.settings import settings
from videoar.core.types import Frozen
from videoar.evaluation.metric_names import FLICKERING, METRICS
from videoar.evaluation.vbench_constants import DIMENSIONS, QUALITY, SEMANTIC
from videoar.evaluation.vbench_process import vbench_version
from videoar.evaluation.vbench_weights import verified, weights_of
from videoar.media.confinement import unconfined
from videoar.storage.conformance import race
from videoar.storage.delta_log import iter_commits
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
    is_required: bool = True
    """Whether a run can fail without it; what a metric needs is optional."""


def diagnose(store: Store) -> list[Check]:
    """Check this machine and the store; a failed check does not stop the others."""
    checks: dict[str, Callable[[], str]] = {
        "store: put-if-absent under a race": lambda: _race(store),
        "store: write, read, delete": lambda: _round_trip(store),
        "ffmpeg": lambda: _binary("ffmpeg"),
        "ffprobe": lambda: _binary("ffprobe"),
        "packages": lambda: ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }
    required = [_run(name, check) for name, check in checks.items()]
    of_machine = {"decoder: no network, no programs, no writing": _confined}
    optional = {**of_machine, **_metric_checks(store), **_vbench_checks()}.items()
    return required + [_run(name, check, is_required=False) for name, check in optional]


def _run(name: str, check: Callable[[], str], *, is_required: bool = True) -> Check:
    try:
        ok, detail = True, check()
    except (VideoARError, ImportError) as error:  # PackageNotFoundError is an ImportError
        ok, detail = False, str(error)
    return Check(name=name, ok=ok, detail=detail, is_required=is_required)


def _metric_checks(store: Store) -> dict[str, Callable[[], str]]:
    """Return a check for the metrics of each network, and of each kind without one but VBench."""
    families: dict[str, dict[str, None]] = defaultdict(dict)
    for name, metric in METRICS.items():
        if metric.kind == "vbench":
            continue
        group, slash, _ = name.partition("/")
        families[metric.network or metric.kind][f"{group}/*" if slash else name] = None
    checks: dict[str, Callable[[], str]] = {
        "lite0": _lite0, "i3d": _i3d, "domain": partial(_domain, store),
        "reconstruction": lambda: "can run; `score` needs a tokenizer",
    }  # fmt: skip
    return {
        f"metrics {', '.join(names)}": checks.get(family, _can_run)
        for family, names in families.items()
    }


def _can_run() -> str:
    return "can run"


def _lite0() -> str:
    from videoar.model.pretrained.lite0 import load_lite0

    load_lite0()
    return "can run"


def _i3d() -> str:
    from videoar.evaluation.i3d import load_i3d

    load_i3d(settings().i3d_weights)
    return "can run"


def _domain(store: Store) -> str:
    ids = {commit.snapshot for commit in iter_commits(store.objects) if commit.contract == MODELS}
    kinds = (store.snapshot(id_).table(["kind"])["kind"].to_pylist() for id_ in ids)
    if not any("classifier" in of_snapshot for of_snapshot in kinds):
        raise ConfigError(store.url, "no classifier", "train one with the stage `train_domain`")
    return "can run"


def _vbench_checks() -> dict[str, Callable[[], str]]:
    """Return a check for each metric of VBench; one for all without its interpreter."""
    python, cache = settings().vbench_python, settings().vbench_cache
    try:
        vbench_version(python)
    except VideoARError:
        native = {} if python else {FLICKERING: _can_run}  # stage `vbench` computes it itself
        checks = {"*": lambda: vbench_version(python), **native}
    else:
        parts: dict[str, tuple[str, ...]] = {name: (name,) for name in DIMENSIONS}
        parts |= {"quality": (*QUALITY,), "semantic": (*SEMANTIC,), "total": DIMENSIONS}
        checks = {name: partial(_vbench_weights, cache, of) for name, of in parts.items()}
    return {f"metrics vbench/{name}": check for name, check in checks.items()}


def _vbench_weights(folder: str, dimensions: Iterable[str]) -> str:
    for weight in chain.from_iterable(map(weights_of, dimensions)):
        verified(weight, folder)
    return _can_run()


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


def _confined() -> str:
    if missing := unconfined():
        what = f"not forbidden here: {missing}"
        raise ConfigError("decoder", what, "apt install libseccomp2; a kernel from 5.13 on")
    return "forbidden"


def _binary(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ConfigError(name, "not on PATH", "apt install ffmpeg")
    return path
