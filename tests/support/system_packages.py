"""Debian packages that some tests need: installed if the user is root, else the test is skipped."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path


def install(package_of: Mapping[str, str]) -> str:
    """Install what is missing; return the reason if that cannot be done.

    Args:
        package_of: program to the package that brings it.
    """
    packages = sorted({package for name, package in package_of.items() if not shutil.which(name)})
    if not packages:
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"needs root and apt to install {', '.join(packages)}"
    with (Path(tempfile.gettempdir()) / "videoar-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes, apt in one
        return _install(packages)


def _install(packages: list[str]) -> str:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", "-qq", *command],
            env=environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        if done.returncode:
            return f"apt-get {command[0]} failed: {done.stderr.strip()[-200:]}"
    return ""
