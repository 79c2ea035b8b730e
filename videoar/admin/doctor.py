"""Check that this machine and this store can execute a run, and which metrics it can compute."""

import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from videoar.admin.damage import Check, damage
from videoar.admin.registry import mirror
from videoar.contracts.names import MODELS
from videoar.core.errors import ConfigError, StorageError, VideoARError
from videoar.core.scratch import sweep
from videoar.core.settings import settings
from videoar.evaluation.metric_names import FLICKERING, METRICS
from videoar.evaluation.vbench_constants import DIMENSIONS, QUALITY, SEMANTIC
from videoar.evaluation.vbench_process import vbench_version
from videoar.evaluation.vbench_weights import verified, weights_of
from videoar.media.confinement import unconfined
from videoar.storage.conformance import race
from videoar.storage.delta_log import iter_commits
from videoar.storage.layout import CLOCK_KEY, ROUND_TRIP_KEY
from videoar.storage.store import Store

_MAX_OFFSET_S = 60.0  # chosen: the finest step of cron windows
_MIN_FREE_BYTES = 5 << 30
"""chosen: a few checkpoints of the smaller presets."""
_REMOTE = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "gluster", "lustre", "beegfs")
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


def diagnose(store: Store, *, verify: bool = False, fix: bool = False) -> list[Check]:
    """Check this machine and the store; a failed check does not stop the others.

    Args:
        store: the store.
        verify: also read everything that commits name, see `admin.damage`.
        fix: remove what killed processes have left in temporary folders, and mirror to MLflow what
            it lacks; with `verify` also remove what is damaged, so that the next run makes it
            again.
    """
    if fix:
        sweep()
        store.objects.sweep()
    checks: dict[str, Callable[[], str]] = {
        "store: put-if-absent under a race": lambda: _race(store),
        "store: write, read, delete": lambda: _round_trip(store),
        "ffmpeg": lambda: _binary("ffmpeg"),
        "packages": lambda: ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }
    required = [_run(name, check) for name, check in checks.items()]
    folders = {"temporary files": Path(tempfile.gettempdir())}
    if store.objects.is_local:
        folders["store"] = Path(store.objects.location(ROUND_TRIP_KEY)).parents[1]
    of_machine: dict[str, Callable[[], str]] = {
        "decoder: no network, no programs, no writing": _confined,
        "clock": lambda: _clock(store),
        "mlflow: runs and refs": lambda: mirror(store, fix=fix),
    }
    for name, folder in folders.items():
        of_machine[f"free space: {name}"] = partial(_free_space, folder)
        of_machine[f"file system: {name}"] = partial(_file_system, folder)
    required += [_run(name, check, is_required=False) for name, check in of_machine.items()]
    if verify:
        required += damage(store, fix=fix)
    of_metrics = {**_metric_checks(store), **_vbench_checks()}.items()
    return required + [_run(name, check, is_required=False) for name, check in of_metrics]


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
    ids = {commit.snapshot for commit in iter_commits(store.objects, contract=MODELS)}
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


def _clock(store: Store) -> str:
    """Compare the clock of this machine with that of the store."""
    before = time.time()
    store.objects.put(CLOCK_KEY, b"videoar")
    after = time.time()
    written_at = store.objects.written_at(CLOCK_KEY)
    store.objects.delete(CLOCK_KEY)
    # S3 rounds down to seconds: no offset that lies within the request and that second counts
    offset_s = min(0.0, (written_at or 0.0) + 1 - before) + max(0.0, (written_at or 0.0) - after)
    if abs(offset_s) > _MAX_OFFSET_S:
        side = "behind" if offset_s > 0 else "ahead of"
        what = f"is {abs(offset_s):.0f} s {side} the one of the store"
        raise ConfigError(
            "clock", what, "windows of `schedule` fire off by that much; leases compare no clocks"
        )
    return f"differs from the store's by {abs(offset_s):.0f} s"


def _free_space(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < _MIN_FREE_BYTES:
        what = f"{free / 2**30:.1f} GiB are free"
        raise ConfigError(str(folder), what, f"a run may need {_MIN_FREE_BYTES >> 30} GiB")
    return f"{free / 2**30:.0f} GiB"


def _file_system(folder: Path) -> str:
    kind = file_system(folder.resolve(), Path("/proc/mounts"))
    if kind.startswith(_REMOTE):
        hint = "run doctor on each host that uses it; better: a local folder, or a bucket"
        raise ConfigError(str(folder), f"{kind}: hard links and locks are those of a server", hint)
    return kind


def file_system(folder: Path, mounts: Path) -> str:
    """Return the type of the file system that a folder is on; "unknown" without a table of mounts.

    Args:
        folder: without symbolic links.
        mounts: the table, as Linux has it in /proc/mounts.
    """
    kind, best = "unknown", -1
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        _, place, type_, *_ = line.split(" ")
        # spaces in names are octal: `\040`
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place))
        if folder.is_relative_to(point) and len(point.parts) >= best:  # the last one hides others
            kind, best = type_, len(point.parts)
    return kind


def _binary(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ConfigError(name, "not on PATH", "apt install ffmpeg")
    return path
