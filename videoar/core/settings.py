"""The only module that reads the environment.

Settings are addresses and paths, never options of a computation: none enters a fingerprint.
Standard library only, because every command imports it.
"""

import os
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from videoar.core.errors import ConfigError

_PREFIX = "VIDEOAR_"
_LOG_FORMS = ("text", "json")


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
    result = Settings(**{name: value for name, value in values.items() if value is not None})
    if result.log and result.log not in _LOG_FORMS:
        raise ConfigError(
            "VIDEOAR_LOG", f"cannot be {result.log}", f"use {' or '.join(_LOG_FORMS)}"
        )
    return result


def child_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment with additions, for a child process."""
    return {**os.environ, **extra}


def visible_gpus() -> str:
    """Return `CUDA_VISIBLE_DEVICES`; empty if it is not set or allows no GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return "" if visible in {"-1", "NoDevFiles"} else visible  # how CUDA and Slurm spell none


def set_defaults(**values: str) -> None:
    """Set environment variables that libraries read at import, unless the user has set them."""
    for name, value in values.items():
        os.environ.setdefault(name, value)
