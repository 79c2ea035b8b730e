"""The only module that reads the environment.

Settings are addresses and paths, never options of a computation: none enters a fingerprint.
Standard library only, because every command imports it.
"""

import os
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from videoar.core.errors import ConfigError

_PREFIX = "VIDEOAR_"
_LOG_FORMS = ("text", "json")
_CHILD_VARIABLES = frozenset((
    "PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD",
    "CUDA_VISIBLE_DEVICES", "VIDEOAR_CRASH_AT",
))  # fmt: skip
_CHILD_PREFIXES: tuple[str, ...] = (
    "LC_", "PYTHON", "COVERAGE_", "COV_CORE_", "OMP_", "OPENBLAS_", "MKL_", "MALLOC_",
)  # fmt: skip
_S3_VARIABLES = frozenset((
    "VIDEOAR_S3_ENDPOINT",
    "VIDEOAR_STORE_WAIT_S",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    *(f"{name}_PROXY" for name in ("HTTP", "HTTPS", "NO", "ALL")),
    *(f"{name}_proxy" for name in ("http", "https", "no", "all")),
))


@dataclass(frozen=True)
class Settings:
    """Settings from `VIDEOAR_*` variables; command-line options override them."""

    store: str = ""
    """Store URL (`file:///...`, `s3://bucket/prefix`); empty means `.videoar` in this directory."""
    s3_endpoint: str = ""
    """Endpoint of an S3 server other than AWS."""
    target: str = "local"
    """`local`, `inline`, or the address of a Ray cluster."""
    mlflow_uri: str = ""
    """MLflow tracking URI; empty means an SQLite file in the store's folder."""
    log: str = ""
    """Log form on stderr, `text` or `json`; empty: text on a terminal, JSON lines elsewhere."""
    i3d_weights: str = ""
    """Path of the I3D `rgb_scratch` checkpoint data file; `fvd` exists only with it."""
    vbench_python: str = ""
    """Python interpreter of an environment with the package `vbench`."""
    vbench_cache: str = ""
    """Folder with the weights of VBench."""
    preemption_notice: str = ""
    """Path of a file that exists once this machine will be taken away (an agent of the node creates
    it); training then saves a checkpoint at once."""
    image: str = ""
    """Name or digest of the container image that this process runs in, for run records."""
    store_wait_s: float = 120.0
    """Seconds for which a bucket that does not answer is tried again, before a command fails."""
    lease_ttl_s: float = 20.0
    """Seconds without a renewal after which others take over what this process holds: longer than a
    store, or a loaded machine, keeps a renewal back."""
    bench_peers: str = ""
    """Python interpreter that has the peers of `bench loader`; empty: this one."""
    crash_at: str = ""
    """Test hook: name of the point at which the process kills itself with SIGKILL."""

    @property
    def store_url(self) -> str:
        """The store URL with its default applied."""
        return self.store or (Path.cwd() / ".videoar").as_uri()


# cached: a variable that changes during a run must not change the run
@lru_cache(maxsize=1)
def settings() -> Settings:
    """Read the environment once per process.

    Raises:
        ConfigError: the value of a variable is not allowed.
    """
    names = [field.name for field in fields(Settings)]
    values = {name: os.environ.get(_PREFIX + name.upper()) for name in names}
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    for name in given.keys() & {"store_wait_s", "lease_ttl_s"}:
        given[name] = _seconds(_PREFIX + name.upper(), given[name])
    result = Settings(**given)
    if result.log and result.log not in _LOG_FORMS:
        hint = f"use {' or '.join(_LOG_FORMS)}"
        raise ConfigError("VIDEOAR_LOG", f"cannot be {result.log}", hint)
    return result


def _seconds(variable: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(variable, f"cannot be {text}", "use a number of seconds above 0")
    return value


def child_environment(*, for_s3: bool = False, **extra: str) -> dict[str, str]:
    """Return the environment of a child process that works on media, with additions.

    What decodes a hostile file has no use for the credentials of this process, so only listed
    variables are passed on; `for_s3` adds what a client of S3 needs.
    """
    names, prefixes = _CHILD_VARIABLES, _CHILD_PREFIXES
    if for_s3:
        names, prefixes = names | _S3_VARIABLES, (*prefixes, "AWS_")
    passed = {k: v for k, v in os.environ.items() if k in names or k.startswith(prefixes)}
    return {**passed, **extra}


def secret(reference: str) -> str:
    """Return what `env:NAME` refers to; read at each use, and never kept.

    Raises:
        ConfigError: the variable is not set.
    """
    value = os.environ.get(reference.removeprefix("env:"))
    if not value:
        raise ConfigError(reference, "is not set", "set this environment variable")
    return value


def visible_gpus() -> str:
    """Return `CUDA_VISIBLE_DEVICES`; empty if it is not set or allows no GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return "" if visible in {"-1", "NoDevFiles"} else visible  # how CUDA and Slurm spell none


def set_defaults(**values: str) -> None:
    """Set environment variables that libraries read at import, unless the user has set them."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def share_cores() -> None:
    """Let threads of OpenMP sleep where they wait for each other; call before torch is imported.

    By default they spin. Measured with two threads on two cores beside other load: a step of a
    small network took 201 ms of CPU time spinning, 12.9 ms sleeping.
    """
    set_defaults(OMP_WAIT_POLICY="PASSIVE")


def set_variables(**values: str | None) -> dict[str, str | None]:
    """Set environment variables, or unset those that are None; return the values of before."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return before
