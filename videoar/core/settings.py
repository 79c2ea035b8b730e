"""The only reader of the environment.

It says where things are, never what is computed: nothing here enters a fingerprint.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings from `VIDEOAR_*` variables; command-line options override them."""

    model_config = SettingsConfigDict(
        env_prefix="VIDEOAR_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    store: str = ""
    """Store URL (`file:///...`, `s3://bucket/prefix`); empty means `.videoar` in this directory."""
    s3_endpoint: str = ""
    """Endpoint of an S3 server other than AWS."""
    target: str = "local"
    """`local`, `inline`, `ray://host:port` or a Ray address, `job`, `kuberay`."""
    mlflow_uri: str = ""
    """MLflow tracking URI; empty means an SQLite file in the store's folder."""
    log: Literal["text", "json"] = "text"
    """Log form on stderr."""
    i3d_weights: str = ""
    """Path of the I3D `rgb_scratch` checkpoint data file; `fvd` exists only with it."""
    vbench_python: str = ""
    vbench_cache: str = ""
    crash_at: str = ""
    """Test hook: name of the point at which the process kills itself with SIGKILL."""

    @property
    def store_url(self) -> str:
        """The store URL with its default applied."""
        return self.store or (Path.cwd() / ".videoar").as_uri()


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Read the environment once per process."""
    return Settings()


def child_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment with additions, for a child process."""
    return {**os.environ, **extra}


def set_defaults(**values: str) -> None:
    """Set environment variables that libraries read at import, unless the user has set them."""
    for name, value in values.items():
        os.environ.setdefault(name, value)
