"""The software that this process runs, for run records and benchmark results."""

import hashlib
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from videoar.core.settings import child_environment

_PACKAGE = Path(__file__).parent.parent


@lru_cache(maxsize=1)
def commit_id() -> str:
    """Return the commit of this code, with `-dirty` if it was changed; "" outside of a checkout."""
    # an installed package may lie in the checkout of another project, which does not track it
    tracked = _git("ls-files", "--error-unmatch", "__init__.py")
    return _git("describe", "--always", "--dirty") if tracked else ""


def _git(*arguments: str) -> str:
    if (git := shutil.which("git")) is None:
        return ""
    done = subprocess.run(  # noqa: S603 - constant arguments
        [git, *arguments], cwd=_PACKAGE, env=child_environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout.strip()


@lru_cache(maxsize=1)
def packages_digest() -> str:
    """Return the SHA-256 over the names and versions of all installed packages."""
    # the names of their folders have both; reading the metadata of 200 takes 0.1 s
    folders = {path.name for entry in sys.path for path in Path(entry).glob("*.dist-info")}
    return hashlib.sha256("\n".join(sorted(folders)).encode()).hexdigest()
